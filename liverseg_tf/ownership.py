"""Whose file is it? The one rule by which every file of this library is written.

A file of ours that nobody has changed since is replaced by the next one of its kind. Any other file is left alone,
unless the caller says `overwrite`. An input of the run is never written over, whatever is said and whatever its name.

Files are known by their content. Where the digest is kept depends on what the format has room for:

- NIfTI: the header's `descrip` holds `liverseg_tf <version> <kind> <digest>`, the digest being that of the uncompressed
  file with this field blank. It goes wherever the file goes. A mask that was corrected by hand in a viewer keeps the
  text and no longer fits it. Files of version 0.1.0 have the text alone: nothing proves them unchanged, so they are
  refused.
- JSON Lines: a digest ends each line (`signed_line`), because such a file grows, also behind a URL.
- everything else (JSON, CSV, HTML, figures, models): `.liverseg.jsonl` in the file's folder, a line a write with name,
  kind and digest. Lines are only ever added, before the file gets its name: neither a kill nor a second process can
  make a file of ours look like somebody else's. Where that record is lost, the files are refused.
- folders that are replaced whole (`kind="images"`): the same record inside, of every file in them.

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
# Kinds of NIfTI files with a number for each voxel that is no class.
MAPS = ("probabilities", "uncertainty", "heatmap")
_MARK = "liverseg_tf"
_DIGITS = 32
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_PROTOCOLS = {"s3a": "s3", "gcs": "gs", "abfss": "abfs"}
# (offset of the signature, signatures, offset of `descrip`) of NIfTI-1 and NIfTI-2
_NIFTI = ((344, (b"n+1\0", b"ni1\0"), 148), (4, (b"n+2\0", b"ni2\0"), 240))
_DESCRIP_BYTES = 80

Where = str | os.PathLike
# What `is_url` calls one; other strings name local files.
Url = NewType("Url", str)


def claim(path: Where, kind: str, *, inputs: Iterable[Where] = (), overwrite: bool = False) -> Path:
    """Check, before any work is done, that a file may be written.

    Args:
        path: the file.
        kind: what will be written, as "mask" or "scores": a file of ours of another kind is not replaced.
        inputs: all files that the run reads, paths or URLs. They are told by what they are, through links too.
        overwrite: replace a file that isn't ours, or no longer; never an input.

    Returns:
        The path.

    Raises:
        OutputError: if it is an input, a folder or a device, or a file that isn't ours.

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
    """Check that a folder may be made, or replaced whole: it is missing, empty, or ours to the last file.

    There is no `overwrite`: nobody can mean a whole folder of other files.

    Raises:
        OutputError: if it is a file, holds anything that isn't ours, or an input.
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
    """`claim` a path and write it, whole or not at all, so that it is known as ours later on; see `atomic_write`.

    NIfTI images are written by `save_image`. A folder needs `folder=True`.

    Raises:
        OutputError: as `claim` and `claim_folder`, or if it can't be written.

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
    """Write a NIfTI image with its digest; texts and extensions of its header, which may name a patient, are dropped.

    Args:
        image: its header's texts are changed.
        path: ends in .nii or .nii.gz.
        comment: kept in an extension of the header, if there is any.
        kind, inputs, overwrite: as `claim`.

    Raises:
        OutputError: as `owned_write`, or for another name.
    """
    path = Path(path)
    if not _is_nifti(path):
        raise OutputError(f"{path}: expected a name ending in .nii or .nii.gz")
    with owned_write(path, kind, inputs=inputs, overwrite=overwrite) as temporary:
        sign(image, kind, comment).to_filename(temporary)


def sign(image: nib.Nifti1Image, kind: str, comment: str = "") -> nib.Nifti1Image:
    """Put our mark and the digest of what will be written into an image's header; see `save_image`."""
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
    """Move what was written into a staging folder to its place: all of it, or nothing if one file may not be replaced.

    Args:
        folder: of `files.staging_folder`, on the same disk; its files were written by this module.
        into: where they go.
        inputs, overwrite: as `claim`.
        last: name of the file that is moved after all others, as a sign that they are there.

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
    """The content of a `signed_line`; None if it is no whole line of this kind, or was changed."""
    try:
        content = json.loads(line)
        digest = content.pop("digest")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    return content if digest == _line_digest(content, kind) else None


def adopt(path: Path, kind: str) -> None:
    """Take a file for ours that version 0.1.0 wrote without a record, where its folder proves whose it is.

    Raises:
        OutputError: if there is a record, and the file was changed since.
    """
    reason = why_not_ours(path, kind)
    if reason == _FOREIGN and path.is_file():
        _record(path.parent, path.name, kind, sha256_of(path))
    elif reason:
        raise OutputError(f"{path}: {reason}; move it to another place, or name another folder")


def is_ours(path: Where, kind: str) -> bool:
    """Tell whether a local file is one of this kind that this library wrote and that nobody has changed since."""
    try:
        return why_not_ours(Path(path), kind) is None
    except OSError:
        return False


def why_not_ours(path: Path, kind: str) -> str | None:
    """What keeps a file from being replaced; None if nothing does.

    Raises:
        OSError: if it can't be read.
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
    """Tell by a NIfTI file's first 2 kB, compressed or not, whether it may be ours: its digest is not looked at."""
    if start[:2] == b"\x1f\x8b":
        try:
            start = zlib.decompressobj(31).decompress(start, 600)
        except zlib.error:
            return False
    return _parts(_descrip(start)[1], kind) is not None


def kind_of(path: Where) -> str | None:
    """What a NIfTI file of this library is, as "mask" or "probabilities"; None for any other file.

    Goes by the mark in its header alone: the file may have been changed since, or renamed.

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
    """Check that no output, path or URL, is an input: the same file under any name or link.

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
    """Tell whether something lies behind a URL that isn't a local file's."""
    match = _URL.match(where) if isinstance(where, str) else None
    return match is not None and match[1].lower() not in ("file", "local")


_FOREIGN = "exists and was not made by this library"
_CHANGED = "exists and was changed since this library made it"


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _normal(where: Where) -> str:
    """One name for each place: the real path of a local file, a URL in one spelling."""
    text = os.fspath(where)
    match = _URL.match(text) if isinstance(where, str) else None
    if match is None:
        return os.path.realpath(text)
    protocol, rest = match[1].lower(), text[match.end() :]
    if protocol in ("file", "local"):
        return os.path.realpath(rest)
    return f"{_PROTOCOLS.get(protocol, protocol)}://{re.sub('/+', '/', rest).rstrip('/')}"


def _file_id(where: Where) -> tuple[int, int] | None:
    """Device and inode, which all hard links of a file share; None for what isn't there."""
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
    """The digest in a description of ours."""
    match = re.fullmatch(rf"{_MARK} \S+ {re.escape(kind[:16])} ([0-9a-f]{{{_DIGITS}}})\0*".encode(), descrip)
    return match[1].decode() if match else None


class _HashingSink(io.RawIOBase):
    """Takes what nibabel writes and keeps its digest alone."""

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
            raise OSError("only written to from start to end")  # nibabel then fills gaps by itself
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
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):  # cut, or somebody else's
                row = json.loads(line)
                rows.add((str(row["name"]), str(row["kind"]), str(row["sha256"])))
    return rows


def _record(folder: Path, name: str, kind: str, digest: str) -> None:
    line = to_json({"name": name, "kind": kind, "sha256": digest}) + "\n"
    with (folder / LEDGER).open("ab", buffering=0) as file:  # in one piece: other processes add to it too
        file.write(line.encode())
