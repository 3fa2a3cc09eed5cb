"""Functions with many options: a frozen dataclass names and describes each of them once.

Such a function takes the dataclass as `options`, and any of its fields as a keyword, which overrides `options`:

    train(cases, "run/", epochs=3)
    train(cases, "run/", options=TrainingOptions(epochs=3))

A `TypedDict` beside the dataclass repeats names and types, because editors and type checkers can't read a dataclass's
fields as keywords; a test checks that both are equal.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from liverseg_tf.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])
Options = TypeVar("Options")


class UnknownOptionError(ConfigError, TypeError):
    """A keyword that a function does not have."""


def takes_options(cls: type) -> Callable[[F], F]:
    """Decorator: `help()` and notebooks show the fields of `cls` in place of the function's `**changes`."""

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        fields = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=_default(f), annotation=f.type)
            for f in dataclasses.fields(cls)
        ]
        function.__signature__ = signature.replace(parameters=[*own, *fields])  # type: ignore[attr-defined]
        return function

    return decorate


def with_changes(options: Options | None, cls: type[Options], changes: Mapping[str, Any], function: str) -> Options:
    """The options in effect: `options`, or the defaults of `cls`, with single fields replaced by `changes`.

    Args:
        options: of the class `cls`, or None.
        cls: a frozen dataclass whose fields all have defaults.
        changes: keywords as the caller gave them.
        function: name of the function that was called, for errors.

    Raises:
        UnknownOptionError: for a keyword that is no field; both a `ConfigError` and a `TypeError`.
        ConfigError: for options of another class.
    """
    if options is not None and not isinstance(options, cls):
        raise ConfigError(f"{function}: expected options of {cls.__name__}. Received: {options!r:.80}")
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in changes:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            advice = f"did you mean {near[0]!r}" if near else f"it has {', '.join(names)}"
            raise UnknownOptionError(f"{function}: has no option {name!r}; {advice}")
    return dataclasses.replace(options if options is not None else cls(), **changes)  # type: ignore[type-var]


def _default(f: dataclasses.Field) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
