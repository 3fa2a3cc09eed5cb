"""Records warnings per thread: `warnings.catch_warnings` mixes those of all threads."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_messages: dict[int, list[str]] = {}


@contextmanager
def routed_warnings() -> Iterator[None]:
    """Let `warnings_here` see every warning. Enter it in one thread, around the work of the others; may be nested."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        otherwise = warnings.showwarning

        def show(message, category, *place, **more):
            kept = _messages.get(threading.get_ident())
            if kept is None:
                otherwise(message, category, *place, **more)
            elif issubclass(category, UserWarning):
                kept.append(str(message))

        warnings.showwarning = show
        yield


@contextmanager
def warnings_here() -> Iterator[list[str]]:
    """Texts of this thread's `UserWarning`s, within `routed_warnings`; other warnings are dropped."""
    thread = threading.get_ident()
    before = _messages.get(thread)
    found: list[str] = []
    _messages[thread] = found
    try:
        yield found
    finally:
        if before is None:
            del _messages[thread]
        else:
            _messages[thread] = before
