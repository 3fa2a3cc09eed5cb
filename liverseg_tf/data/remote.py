"""Files at URLs: s3://, gs://, memory:// and other protocols of fsspec, which is loaded only when needed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from liverseg_tf.errors import InputFileError, LiverSegError, MissingDependencyError, OutputError, require
from liverseg_tf.files import temporary_name
from liverseg_tf.ownership import Url, is_url

_LOCAL = re.compile("^(file|local)://", re.IGNORECASE)
_WEB = re.compile("^https?://", re.IGNORECASE)
# These protocols show an object only once it is complete. With others an upload needs a temporary name.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci"}
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")


def location(where: str | Path) -> Url | Path:
    """A URL without its final slash; anything else, including `file://`, as a path.

    Examples:
        >>> location("s3://bucket/scans/"), location("file:///data/ct.nii").name
        ('s3://bucket/scans', 'ct.nii')
    """
    if is_url(where):
        return Url(where if where.endswith("://") else where.rstrip("/"))
    return Path(_LOCAL.sub("", where, count=1) if isinstance(where, str) else where)


def join(folder: Url | Path, name: str) -> Url | Path:
    """Path or URL of a file in a folder."""
    if isinstance(folder, Path):
        return folder / name
    return child(folder, name)


def child(url: Url, name: str) -> Url:
    """The URL of a folder's file."""
    return Url(url + name if url.endswith("/") else f"{url}/{name}")


def file_name(where: Url | Path) -> str:
    """The last part of a path or URL, without the query of a web address (`?X-Amz-Signature=...`).

    Examples:
        >>> file_name(Url("https://host/scans/ct.nii.gz?sig=a%2Fb")), file_name(Url("s3://bucket/what?.nii"))
        ('ct.nii.gz', 'what?.nii')
    """
    if isinstance(where, Path):
        return where.name
    return Path(re.split("[?#]", where, maxsplit=1)[0] if _WEB.match(where) else where).name


def parent(url: Url) -> Url:
    """The folder of a URL's file."""
    return Url(url.rsplit("/", 1)[0])


def listing(url: Url) -> dict[Url, float]:
    """Find the files at or below a URL.

    Returns:
        Time of last change, in seconds since 1970, by URL, sorted; empty if the folder is missing.

    Raises:
        InputFileError: if its bucket is missing, or it can't be listed.
        MissingDependencyError: if fsspec or the protocol's package is missing.
    """
    system, path = _open(url)
    with _errors_as_ours(url, InputFileError, "listed"):
        system.invalidate_cache()
        found = system.find(path, detail=True)
        return {
            Url(url + name.removeprefix(path)) if path else child(url, name): _modified(info or system.info(name))
            for name, info in sorted(found.items())
        }


def starts(urls: Sequence[Url], count: int) -> list[bytes]:
    """The first bytes of files of one protocol; empty for a file that can't be read."""
    if not urls:
        return []
    system, _ = _open(urls[0])
    paths = [_open(url)[1] for url in urls]
    with _errors_as_ours(urls[0], InputFileError, "read"):
        found = system.cat_ranges(paths, [0] * len(paths), [count] * len(paths), on_error="return")
    return [content if isinstance(content, bytes) else b"" for content in found]


def fetch(url: Url, path: Path) -> None:
    """Copy a file to a local path; its folder is made.

    Raises:
        InputFileError: if there is no file, or it can't be read.
    """
    system, remote = _open(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _errors_as_ours(url, InputFileError, "read"):
        system.get_file(remote, str(path))


def fetch_all(url: Url, path: Path) -> None:
    """Copy a file, or every file below a folder, to a local path.

    Raises:
        InputFileError: if there is no file, or one can't be read.
    """
    there = listing(url)
    if url in there or not there:
        fetch(url, path)
        return
    for found in there:
        fetch(found, path / found.removeprefix(url).lstrip("/"))


def store(path: Path, url: Url) -> None:
    """Copy a local file to a URL. After an error no partial file is left.

    Raises:
        OutputError: if it can't be written.
    """
    system, remote = _open(url)
    with _errors_as_ours(url, OutputError, "written"):
        if url.split("://")[0].lower() in _OBJECT_STORES:
            system.put_file(str(path), remote)
            return
        folder, name = remote.rsplit("/", 1)
        temporary = f"{folder}/{temporary_name(name)}"
        try:
            system.makedirs(folder, exist_ok=True)
            system.put_file(str(path), temporary)
            system.mv(temporary, remote)
        except BaseException:
            with contextlib.suppress(Exception):
                system.rm_file(temporary)
            raise


def _open(url: Url) -> tuple[Any, str]:
    """The URL's file system (cached by fsspec) and the path in it."""
    core = require("fsspec.core", "cloud", f"{url}: a URL")
    try:
        system, path = core.url_to_fs(url)
    except ImportError as error:
        raise MissingDependencyError(
            f"{url}: its protocol needs another package ({error}); s3:// and gs:// come with: "
            "pip install 'liverseg_tf[cloud]'"
        ) from None
    except ValueError as error:
        raise InputFileError(f"{url}: expected a path, s3://, gs:// or another URL of fsspec ({error})") from None
    return system, path.rstrip("/")


def _modified(info: dict[str, Any]) -> float:
    time = next((info[key] for key in _TIMES if info.get(key) is not None), 0.0)
    if isinstance(time, str):
        time = datetime.fromisoformat(time.replace("Z", "+00:00"))
    return time.timestamp() if isinstance(time, datetime) else float(time)


@contextlib.contextmanager
def _errors_as_ours(url: str, kind: type[LiverSegError], done: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise kind(f"{url}: could not be {done}: no such file, folder or bucket ({error}); check the URL") from None
    except PermissionError as error:
        raise kind(f"{url}: could not be {done}: access is denied ({error}); check the credentials") from None
    except Exception as error:  # each protocol's client raises its own kinds of error
        text = (str(error).strip().splitlines() or [""])[0][:200]
        raise kind(
            f"{url}: could not be {done} ({type(error).__name__}: {text}); check the URL, the credentials, the network"
        ) from None
