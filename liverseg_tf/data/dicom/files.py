"""The files that may be DICOM: in folders, alone, or in a zip archive that is read without being unpacked."""

from __future__ import annotations

import functools
import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from liverseg_tf.data.nifti import max_bytes_limit
from liverseg_tf.errors import InputFileError

# deflate can't expand more than this: a smaller member can't hold what its archive declares
_LARGEST_RATIO = 1032
_PREAMBLE = 128
# how far into a file its meta group reaches at most
_META_BYTES = 1024
_DEFLATED = b"1.2.840.10008.1.2.1.99"
# of one file; the largest multi-frame CTs have less
_MOST_INFLATED_BYTES = 1 << 30


@dataclass(frozen=True)
class DicomFile:
    """A file on disk, or a member of a zip archive.

    Attributes:
        path: the file, or the archive.
        member: name in the archive; None for a file.
    """

    path: Path
    member: str | None = None

    @property
    def name(self) -> str:
        """What messages call it: the file's own name, without folders."""
        return Path(self.member or self.path).name

    @property
    def folder(self) -> str:
        """Where it lies; files of one series mostly share it."""
        return str(Path(self.member).parent) if self.member else str(self.path.parent)

    def open(self) -> BinaryIO:
        """Open it for reading, with `seek`; a deflated data set is inflated.

        Raises:
            OSError, zipfile.BadZipFile: if it can't be read, or expands beyond the limit.
        """
        stream: BinaryIO
        if self.member is None:
            stream = self.path.open("rb")
        else:
            archive = _archive(self.path, self.path.stat().st_mtime_ns)
            with archive.open(self.member) as file:  # no more than the declared size: a false one is noticed here
                stream = io.BytesIO(file.read(archive.getinfo(self.member).file_size))
        start = stream.read(_META_BYTES)
        stream.seek(0)
        if _DEFLATED not in start:
            return stream
        with stream:
            return io.BytesIO(_inflated(stream.read()))

    def looks_like_dicom(self) -> bool:
        """Tell by the first bytes: the DICM mark, or a data set that begins without one.

        Raises:
            OSError, zipfile.BadZipFile: if it can't be read.
        """
        if self.member is None:
            with self.path.open("rb") as file:
                start = file.read(_PREAMBLE + 4)
        else:
            with _archive(self.path, self.path.stat().st_mtime_ns).open(self.member) as file:
                start = file.read(_PREAMBLE + 4)
        # old files have neither preamble nor meta group: group 8 comes first, with a short element
        bare = start[:2] == b"\x08\x00" and start[3:4] == b"\x00" and len(start) == _PREAMBLE + 4
        return start[_PREAMBLE:] == b"DICM" or bare


def _inflated(content: bytes) -> bytes:
    """A file with a deflated data set as one without; pydicom would inflate it whatever it expands to."""
    if content[_PREAMBLE + 4 : _PREAMBLE + 8] != b"\x02\0\0\0":
        raise OSError("is deflated, and its header does not say where the data begin")
    start = _PREAMBLE + 16 + int.from_bytes(content[_PREAMBLE + 12 : _PREAMBLE + 16], "little")
    limit = min(max_bytes_limit(), _MOST_INFLATED_BYTES)
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = machine.decompress(memoryview(content)[start:], limit + 1)
    except zlib.error:
        raise OSError("is damaged in its deflated data") from None
    if len(data) > limit:
        raise OSError(f"its deflated data expand to more than {limit} bytes; convert it with: dcmconv +te")
    if not machine.eof:
        raise OSError("is truncated in its deflated data")
    # the name of the plain transfer syntax, padded to the same length
    return content[:start].replace(_DEFLATED, _DEFLATED[:-3] + bytes(3), 1) + data


def is_dicom_file(path: Path) -> bool:
    """Tell whether one file is DICOM, or named so."""
    if path.suffix.lower() in (".dcm", ".dicom", ".ima"):
        return True
    try:
        return path.is_file() and DicomFile(path).looks_like_dicom()
    except OSError:
        return False


def files_of(path: Path, max_bytes: int | None = None) -> Iterator[DicomFile]:
    """The files at or below a path, sorted by name; hidden ones and links to folders are passed over.

    Args:
        path: a folder, one file, or a .zip archive.
        max_bytes: most bytes that one member of an archive may take; see `max_bytes_limit`.

    Raises:
        InputFileError: if the path is missing, or the archive can't be read or would expand beyond the limit.
    """
    if path.is_dir():
        for folder, folders, names in os.walk(path):  # links to folders are not followed: no loops
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                file = Path(folder, name)
                if not name.startswith(".") and file.is_file():
                    yield DicomFile(file)
    elif path.suffix.lower() == ".zip":
        yield from _members(path, max_bytes_limit(max_bytes))
    elif path.exists():
        yield DicomFile(path)
    else:
        raise InputFileError(f"{path}: there is no such file; check the path")


def _members(path: Path, limit: int) -> Iterator[DicomFile]:
    try:
        members = _archive(path, path.stat().st_mtime_ns).infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise InputFileError(f"{path}: expected a zip archive of DICOM, it can't be read ({error})") from None
    total = 0
    for member in members:
        total += member.file_size
        if total > limit or member.file_size > member.compress_size * _LARGEST_RATIO + 1024:
            raise InputFileError(
                f"{path}: expands to more than {limit} bytes, or declares a false size; unpack what you need, or raise "
                "the limit with max_bytes= or LIVERSEG_MAX_BYTES"
            )
        if member.flag_bits & 1:
            raise InputFileError(f"{path}: is encrypted; unpack it first")
    for member in sorted(members, key=lambda member: member.filename):
        if not member.is_dir() and not Path(member.filename).name.startswith("."):
            yield DicomFile(path, member.filename)


@functools.lru_cache(maxsize=2)
def _archive(path: Path, modified_ns: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)
