"""Atomic writing of files: a reader never sees an incomplete file."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from liverseg_tf.errors import OutputError

_PARTIAL_NAME = re.compile(r"\.[0-9a-f]{8}\.partial\.")
# A temporary file that was not written to for so long is left over from a killed process.
_ABANDONED_SECONDS = 3600
# of a file's name, on every file system in common use
_NAME_BYTES = 255


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` for a file or folder; on success it is renamed to `path`.

    The temporary name keeps the suffixes, because writers choose the format by them. On failure it is removed.

    Raises:
        OutputError: if the folder can't be made or written, or the disk is full.

    Examples:
        >>> with atomic_write("scores.json") as temporary:
        ...     _ = temporary.write_text("{}")
    """
    path = Path(path)
    temporary = path.with_name(temporary_name(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        yield temporary
        if temporary.is_dir():
            if path.is_dir():
                old = path.with_name(temporary_name(path.name, "old"))
                os.replace(path, old)
                os.replace(temporary, path)
                shutil.rmtree(old)
            else:
                os.replace(temporary, path)
        else:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # else a crash can leave an empty file under the final name
            os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"{path}: could not be written ({error.strerror or error}); check the folder's rights and free space"
        ) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staging_folder(path: str | Path) -> Iterator[Path]:
    """Yield a hidden folder beside `path`, for files of which all are to appear, or none.

    It is removed at the end; `ownership.publish` moves its files to their places before that.

    Raises:
        OutputError: if the folder can't be made.
    """
    path = Path(path)
    folder = path.with_name(temporary_name(path.name))
    try:
        folder.mkdir(parents=True)
        _sweep(path)
    except OSError as error:
        raise OutputError(
            f"{path}: could not be written ({error.strerror or error}); check the folder's rights and free space"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def temporary_name(name: str, what: str = "partial") -> str:
    """A hidden temporary name for a file `name`: unique, with the same suffixes, and within the allowed length."""
    return f".{uuid.uuid4().hex[:8]}.{what}.{_tail(name)}"


def _tail(name: str) -> str:
    """As much of a name's end as the temporary name has room for."""
    encoded, room = os.fsencode(name), _NAME_BYTES - len(".01234567.partial.")
    return name if len(encoded) <= room else encoded[-room:].decode("utf-8", "ignore")


def is_partial(path: Path) -> bool:
    """Tell whether a file is a temporary file of `atomic_write`, possibly left by a killed process."""
    return bool(_PARTIAL_NAME.match(path.name))


def _sweep(path: Path) -> None:
    """Remove temporary files of `path` that killed processes left."""
    for partial in path.parent.glob(f".*.partial.{glob.escape(_tail(path.name))}"):
        with contextlib.suppress(FileNotFoundError):  # another process that writes to `path` has just finished
            if is_partial(partial) and time.time() - partial.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(missing_ok=True)


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: if the file can't be read.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def csv_cell(value: Any) -> Any:
    """A value for a CSV cell; text that a spreadsheet would run as a formula gets an apostrophe in front.

    Example:
        >>> csv_cell("=1+1"), csv_cell(-1.5), csv_cell("7")
        ("'=1+1", -1.5, '7')
    """
    return f"'{value}" if isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@")) else value


def is_hidden(path: Path, folder: Path) -> bool:
    """Tell whether a file below a folder, or a folder around it there, is hidden: someone's trash, or half written."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text to a file, atomically.

    Raises:
        OutputError: as `atomic_write`.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
