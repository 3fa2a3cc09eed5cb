"""Reads and writes at positions of an open file, in any thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

_seeking = threading.Lock()


def read_at(descriptor: int, at: int, count: int) -> bytes:
    """`count` bytes of a file from a position, or fewer at its end, in any thread."""
    if not hasattr(os, "pread"):  # Windows
        with _seeking:
            os.lseek(descriptor, at, os.SEEK_SET)
            return _whole(lambda left, done: os.read(descriptor, left), count)
    return _whole(lambda left, done: os.pread(descriptor, left, at + done), count)


def write_at(descriptor: int, at: int, content: memoryview) -> None:
    """Write bytes at a position of a file, in any thread.

    Raises:
        OSError: as from `os.write`, such as for a full disk.
    """
    done = 0
    while done < len(content):
        if hasattr(os, "pwrite"):
            done += os.pwrite(descriptor, content[done:], at + done)
        else:  # Windows
            with _seeking:
                os.lseek(descriptor, at + done, os.SEEK_SET)
                done += os.write(descriptor, content[done:])


def _whole(read: Callable[[int, int], bytes], count: int) -> bytes:
    parts, done = [], 0
    while done < count and (part := read(count - done, done)):
        parts.append(part)
        done += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
