"""Which files may be replaced: the rule that every function of this library follows when it writes a file.

A file that this library wrote, and that was not changed since, is replaced by a new result of the same kind. Any other
file is replaced only with `overwrite`. An input of the run is never replaced, under any name.

Files are recognised by their content. Where the digest is stored depends on the format:

- NIfTI: the header's `descrip` holds `liverseg_tf <version> <kind> <digest>`, with the digest of the
  uncompressed file in which this field is blank. It stays with the file. A mask that was corrected in a viewer keeps
  the text, but the digest no longer matches. Files of version 0.1.0 have no digest: they can't be proved unchanged, so
  they are not replaced.
- JSON Lines: each line ends with its own digest (`signed_line`), because such a file grows, also at a URL.
- everything else (JSON, CSV, HTML, figures, models): `.liverseg.jsonl` in the file's folder gets a line with name, kind
  and digest for each write. Lines are only added, and before the file gets its name, so neither a killed run nor a
  second process can make a file of this library unrecognisable. If this record is lost, the files are not replaced.
- folders that are replaced as a whole (`kind="images"`): the same record inside the folder, for each of its files.

Loads nothing heavy.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NewType

from liverseg_tf.errors import OutputError
from liverseg_tf.files import atomic_write, sha256_of
from liverseg_tf.strict_json import to_json

if TYPE_CHECKING:
    import nibabel as nib
    from typing_extensions import TypeIs

LEDGER = ".liverseg.jsonl"
# Kinds of NIfTI files whose voxels are numbers, not classes.
MAPS = ("probabilities", "uncertainty", "heatmap")
_MARK = "liverseg_tf"
_DIGITS = 32
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_PROTOCOLS = {"s3a": "s3", "gcs": "gs", "abfss": "abfs"}
# (offset of the signature, signatures, offset of `descrip`) of NIfTI-1 and NIfTI-2
_NIFTI = ((344, (b"n+1\0", b"ni1\0"), 148), (4, (b"n+2\0", b"ni2\0"), 240))
_DESCRIP_BYTES = 80

Where = str | os.PathLike
# A URL for `is_url`; other strings are local files.
Url = NewType("Url", str)


def claim(path: Where, kind: str, *, inputs: Iterable[Where] = (), overwrite: bool = False) -> Path:
    """Check that a file may be written, before any work is done.

    Args:
        path: the file.
        kind: what will be written, such as "mask" or "scores"; this library's files of another kind are not replaced.
        inputs: all files that the run reads, paths or URLs; links to them are recognised.
        overwrite: also replace a file that this library did not write, or that was changed since; never an input.

    Returns:
        The path.

    Raises:
        OutputError: if the path is an input, a folder, a device, or a file that may not be replaced.

    Examples:
        >>> claim("scores.json", "scores", inputs=["segmentation-7.nii.gz"]).name
        'scores.json'
    """
    path = Path(path)
    refuse_inputs([path], inputs)
    try:
        if path.is_dir():
            raise OutputError(f"{path}: expected a file to write, got a folder; name a file in it")
        if not os.path.lexists(path):
            return path
        if path.exists() and not path.is_file():
            raise OutputError(f"{path}: expected a file to write, got a device or a pipe; choose another output")
        reason = None if overwrite else why_not_ours(path, kind)
    except OSError as error:
        raise OutputError(f"{path}: can't be written ({error.strerror or error}); choose another output") from None
    if reason:
        raise OutputError(f"{path}: {reason}; choose another output, or replace it with overwrite=True")
    return path


def claim_folder(folder: Where, kind: str, *, inputs: Iterable[Where] = ()) -> Path:
    """Check that a folder may be made or replaced: it is missing, empty, or holds only files of this library.

    There is no `overwrite`, because it could delete many unrelated files.

    Raises:
        OutputError: if the path is a file, or the folder holds an input or a file that this library did not write.
    """
    folder = Path(folder)
    try:
        if not os.path.lexists(folder):
            return folder
        if not folder.is_dir():
            raise OutputError(f"{folder}: expected a folder to write, got a file; choose another output")
        inside = Path(os.path.realpath(folder))
        for source in inputs:
            if not is_url(source) and Path(os.path.realpath(source)).is_relative_to(inside):
                raise OutputError(f"{source}: is an input and {folder} would be replaced; choose another output")
        files = [path for path in folder.rglob("*") if not path.is_dir()]
        known = _ledger(folder)
        for path in files:
            name = path.relative_to(folder).as_posix()
            if name != LEDGER and (path.is_symlink() or (name, kind, sha256_of(path)) not in known):
                raise OutputError(
                    f"{path}: {_CHANGED if name in {row[0] for row in known} else _FOREIGN}; "
                    "choose another output, or move the folder away"
                )
    except OSError as error:
        raise OutputError(f"{folder}: can't be written ({error.strerror or error}); choose another output") from None
    return folder


@contextlib.contextmanager
def owned_write(
    path: Where, kind: str, *, inputs: Iterable[Where] = (), overwrite: bool = False, folder: bool = False
) -> Iterator[Path]:
    """`claim` a path, write it atomically (see `atomic_write`), and record it as a file of this library.

    NIfTI images are written by `save_image`. A folder needs `folder=True`.

    Raises:
        OutputError: as `claim` and `claim_folder`, or if the file can't be written.

    Examples:
        >>> with owned_write("cases.csv", "table") as temporary:
        ...     _ = temporary.write_text("case,dice\\n")
    """
    path = claim_folder(path, kind, inputs=inputs) if folder else claim(path, kind, inputs=inputs, overwrite=overwrite)
    with atomic_write(path) as temporary:
        yield temporary
        if folder:
            for file in sorted(p for p in temporary.rglob("*") if p.is_file()):
                _record(temporary, file.relative_to(temporary).as_posix(), kind, sha256_of(file))
        elif not _is_nifti(path) and path.suffix.lower() != ".jsonl":
            _record(path.parent, path.name, kind, sha256_of(temporary))


def write_text(path: Where, text: str, kind: str, *, inputs: Iterable[Where] = (), overwrite: bool = False) -> None:
    """`owned_write` of UTF-8 text.

    Raises:
        OutputError: as `owned_write`.
    """
    with owned_write(path, kind, inputs=inputs, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_image(
    image: nib.Nifti1Image,
    path: Where,
    kind: str,
    *,
    comment: str = "",
    inputs: Iterable[Where] = (),
    overwrite: bool = False,
) -> None:
    """Write a NIfTI image with its digest; texts and extensions of its header, which may name a patient, are removed.

    Args:
        image: the image; the texts in its header are changed.
        path: file to write; ends in .nii or .nii.gz.
        comment: text for an extension of the header; empty for none.
        kind, inputs, overwrite: as `claim`.

    Raises:
        OutputError: as `owned_write`, or for a name with another ending.
    """
    path = Path(path)
    if not _is_nifti(path):
        raise OutputError(f"{path}: expected a name ending in .nii or .nii.gz")
    with owned_write(path, kind, inputs=inputs, overwrite=overwrite) as temporary:
        sign(image, kind, comment).to_filename(temporary)


def sign(image: nib.Nifti1Image, kind: str, comment: str = "") -> nib.Nifti1Image:
    """Put this library's mark and the digest of the file into an image's header; see `save_image`."""
    from liverseg_tf import __version__

    header = image.header
    header.extensions.clear()
    if comment:
        from nibabel.nifti1 import Nifti1Extension

        header.extensions.append(Nifti1Extension("comment", comment.encode()))
    for name in header.structarr.dtype.names:
        if header.structarr.dtype[name].kind == "S" and name not in ("magic", "eol_check"):
            header[name] = b""
    sink = _HashingSink()
    image.to_stream(sink)
    header["descrip"] = f"{_MARK} {__version__[:16]} {kind[:16]} {sink.digest.hexdigest()[:_DIGITS]}".encode()
    return image


def publish(folder: Path, into: Path, *, inputs: Iterable[Where] = (), overwrite: bool = False, last: str = "") -> None:
    """Move the files of a staging folder to their places: all of them, or none if one may not be replaced.

    Args:
        folder: folder of `files.staging_folder`, on the same disk; its files were written by this module.
        into: destination folder.
        inputs, overwrite: as `claim`.
        last: name of the file that is moved last; once it is there, all files are there.

    Raises:
        OutputError: as `claim`.
    """
    kinds = {name: (kind, digest) for name, kind, digest in _ledger(folder)}
    files = sorted((p for p in folder.rglob("*") if p.is_file() and p.name != LEDGER), key=lambda p: p.name == last)
    names = [path.relative_to(folder).as_posix() for path in files]
    for path, name in zip(files, names, strict=True):
        kind = kind_of(path) or kinds[name][0]
        claim(into / name, kind, inputs=inputs, overwrite=overwrite)
    try:
        for path, name in zip(files, names, strict=True):
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name in kinds:
                _record(target.parent, target.name, *kinds[name])
            os.replace(path, target)
    except OSError as error:
        raise OutputError(f"{into}: could not be written ({error.strerror or error})") from error


def signed_line(content: dict[str, Any], kind: str) -> str:
    """A line of a JSON Lines file that ends in its own digest."""
    return to_json({**content, "digest": _line_digest(content, kind)}) + "\n"


def read_signed_line(line: str | bytes, kind: str) -> dict[str, Any] | None:
    """The content of a `signed_line`; None if the line is incomplete, changed, or of another kind."""
    try:
        content = json.loads(line)
        digest = content.pop("digest")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    return content if digest == _line_digest(content, kind) else None


def adopt(path: Path, kind: str) -> None:
    """Record a file that version 0.1.0 wrote without a record; the caller has proof from the file's folder.

    Raises:
        OutputError: if there is a record, and the file was changed since.
    """
    reason = why_not_ours(path, kind)
    if reason == _FOREIGN and path.is_file():
        _record(path.parent, path.name, kind, sha256_of(path))
    elif reason:
        raise OutputError(f"{path}: {reason}; move it to another place, or name another folder")


def is_ours(path: Where, kind: str) -> bool:
    """Tell whether this library wrote a local file, as this kind, and the file was not changed since."""
    try:
        return why_not_ours(Path(path), kind) is None
    except OSError:
        return False


def why_not_ours(path: Path, kind: str) -> str | None:
    """The reason why a file may not be replaced; None if it may.

    Raises:
        OSError: if the file can't be read.
    """
    if not path.is_file():
        return _FOREIGN
    if _is_nifti(path):
        return _nifti_reason(path, kind)
    if path.suffix.lower() == ".jsonl":
        *lines, last = path.read_bytes().split(b"\n")
        if not lines or not all(read_signed_line(line, kind) is not None for line in lines):
            return _CHANGED if any(read_signed_line(line, kind) is not None for line in lines) else _FOREIGN
        # a killed run may have cut its last line
        return None if not last or (last.startswith(b'{"') and not last.endswith(b"}")) else _CHANGED
    known = [row for row in _ledger(path.parent) if row[0] == path.name]
    if not known:
        return _FOREIGN
    digest = sha256_of(path)
    kinds = {row[1] for row in known if row[2] == digest}
    if kind in kinds:
        return None
    return f"exists and is another result of this library ({', '.join(sorted(kinds))})" if kinds else _CHANGED


def carries_our_mark(start: bytes, kind: str) -> bool:
    """Tell by a NIfTI file's first 2 kB, compressed or not, whether it has this library's mark; reads no digest."""
    if start[:2] == b"\x1f\x8b":
        try:
            start = zlib.decompressobj(31).decompress(start, 600)
        except zlib.error:
            return False
    return _parts(_descrip(start)[1], kind) is not None


def kind_of(path: Where) -> str | None:
    """The kind of a NIfTI file of this library, such as "mask" or "probabilities"; None for any other file.

    Only the mark in the header is read: the file may have been changed or renamed since.

    Examples:
        >>> kind_of("segmentation-7.nii.gz") is None  # there is no such file
        True
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(2048)
        if start[:2] == b"\x1f\x8b":
            start = zlib.decompressobj(31).decompress(start, 600)
    except (OSError, zlib.error):
        return None
    words = _descrip(start)[1].rstrip(b"\0").split(b" ")
    is_marked = len(words) >= 3 and words[0] == _MARK.encode()
    return words[2].decode("ascii", "replace") if is_marked else None


def refuse_inputs(outputs: Iterable[Where], inputs: Iterable[Where]) -> None:
    """Check that no output (path or URL) is an input, under any name or link.

    Raises:
        OutputError: naming the output.
    """
    inputs = list(inputs)
    names = {_normal(source) for source in inputs}
    ids = {_file_id(source) for source in inputs} - {None}
    for output in outputs:
        if _normal(output) in names or _file_id(output) in ids:
            raise OutputError(f"{output}: is an input and is never written over; choose another output")


def is_url(where: Where) -> TypeIs[Url]:
    """Tell whether there is something at a URL that is not a local file."""
    match = _URL.match(where) if isinstance(where, str) else None
    return match is not None and match[1].lower() not in ("file", "local")


_FOREIGN = "exists and was not made by this library"
_CHANGED = "exists and was changed since this library made it"


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _normal(where: Where) -> str:
    """A unique name of a place: the real path of a local file, or a normalised URL."""
    text = os.fspath(where)
    match = _URL.match(text) if isinstance(where, str) else None
    if match is None:
        return os.path.realpath(text)
    protocol, rest = match[1].lower(), text[match.end() :]
    if protocol in ("file", "local"):
        return os.path.realpath(rest)
    return f"{_PROTOCOLS.get(protocol, protocol)}://{re.sub('/+', '/', rest).rstrip('/')}"


def _file_id(where: Where) -> tuple[int, int] | None:
    """Device and inode, which all hard links of a file share; None if the file does not exist."""
    if is_url(where):
        return None
    try:
        status = os.stat(_normal(where))
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _nifti_reason(path: Path, kind: str) -> str | None:
    try:
        with path.open("rb") as file:
            stream = gzip.open(file) if file.read(2) == b"\x1f\x8b" else file  # noqa: SIM115 (closed with `file`)
            file.seek(0)
            start = stream.read(600)
            offset, descrip = _descrip(start)
            digest = _parts(descrip, kind)
            if digest is None:
                other = descrip.split(b"\0")[0].split(b" ")
                ours = len(other) == 4 and other[0] == _MARK.encode()
                return f"exists and is another result of this library ({other[2].decode()})" if ours else _FOREIGN
            found = hashlib.sha256(start[:offset] + bytes(_DESCRIP_BYTES) + start[offset + _DESCRIP_BYTES :])
            while block := stream.read(1 << 20):
                found.update(block)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return _FOREIGN
    return None if found.hexdigest()[:_DIGITS] == digest else _CHANGED


def _descrip(start: bytes) -> tuple[int, bytes]:
    """Where a NIfTI header has its description, and what it is."""
    for offset, signatures, place in _NIFTI:
        if start[offset : offset + 4] in signatures:
            return place, start[place : place + _DESCRIP_BYTES]
    return 0, b""


def _parts(descrip: bytes, kind: str) -> str | None:
    """The digest in a description that this library wrote."""
    match = re.fullmatch(rf"{_MARK} \S+ {re.escape(kind[:16])} ([0-9a-f]{{{_DIGITS}}})\0*".encode(), descrip)
    return match[1].decode() if match else None


class _HashingSink(io.RawIOBase):
    """A file object for nibabel that keeps only the digest of what is written."""

    def __init__(self):
        self.digest, self._place = hashlib.sha256(), 0

    def write(self, content) -> int:
        self.digest.update(content)
        self._place += len(content)
        return len(content)

    def tell(self) -> int:
        return self._place

    def seek(self, place: int, whence: int = 0) -> int:
        if place != self._place or whence:
            raise OSError("only written to from start to end")  # nibabel then fills gaps itself
        return place

    def read(self, count: int = -1) -> bytes:
        raise OSError("only written to")  # nibabel takes nothing without it for a file


def _line_digest(content: dict[str, Any], kind: str) -> str:
    return hashlib.sha256(f"{kind} {to_json(content)}".encode()).hexdigest()[:_DIGITS]


def _ledger(folder: Path) -> set[tuple[str, str, str]]:
    """(name, kind, digest) of everything that was written into a folder."""
    rows = set()
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / LEDGER).read_bytes().splitlines():
            with contextlib.suppress(
                ValueError, KeyError, TypeError, RecursionError
            ):  # incomplete, or of another program
                row = json.loads(line)
                rows.add((str(row["name"]), str(row["kind"]), str(row["sha256"])))
    return rows


def _record(folder: Path, name: str, kind: str, digest: str) -> None:
    line = to_json({"name": name, "kind": kind, "sha256": digest}) + "\n"
    with (folder / LEDGER).open("ab", buffering=0) as file:  # in one write, because other processes add lines too
        file.write(line.encode())
