"""Reading NIfTI files without trusting their headers."""

from __future__ import annotations

import gzip
import io
import logging
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from liverseg_tf.errors import ConfigError, GeometryError, GeometryWarning, InputFileError, first_line, warn

SUFFIXES = (".nii", ".nii.gz")
_VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".zip")
DEFAULT_MAX_BYTES = 8 * 1024**3
# deflate's largest compression ratio: a smaller file can't hold the voxels that its header declares
_LARGEST_GZIP_RATIO = 1032
_OBLIQUE_DEGREES = 15.0
# NIfTI's code for plain text in header extensions, and how far into a file extensions are searched
_COMMENT, _LONGEST_EXTENSIONS = 6, 1 << 16
# NIfTI's codes of spatial units; 0, unknown, is millimetres as everywhere.
_UNITS_MM = {1: 1000.0, 2: 1.0, 3: 0.001}
# nibabel would print every field that it corrects to stderr
_silent = logging.getLogger(f"{__name__}.header")
_silent.setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True, eq=False)
class NiftiFile:
    """The header of a checked NIfTI file; the voxels are not read yet.

    Attributes:
        path: the file.
        shape: (x, y, z) as stored, x fastest.
        dtype: dtype of the stored voxels, with byte order.
        slope, intercept: HU are stored values times slope plus intercept.
        affine: (4, 4) float64, voxel indices to mm (whatever the header's unit), from sform or qform as nibabel
            chooses.
        offset: bytes before the first voxel, in the uncompressed stream.
        header: nibabel's header, for results on the same grid.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype
    slope: float
    intercept: float
    affine: np.ndarray
    offset: int
    header: nib.Nifti1Header

    @property
    def compressed(self) -> bool:
        return self.path.name.lower().endswith(".gz")

    @property
    def data_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)


def max_bytes_limit(max_bytes: int | None = None) -> int:
    """The memory limit of a volume in bytes: the argument, else LIVERSEG_MAX_BYTES, else 8 GiB.

    Raises:
        ConfigError: if the environment variable is not a positive integer.
    """
    if max_bytes is not None:
        return max_bytes
    text = os.environ.get("LIVERSEG_MAX_BYTES")
    if text is None:
        return DEFAULT_MAX_BYTES
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(f"LIVERSEG_MAX_BYTES: expected a positive number of bytes. Received: {text!r}")
    return int(text)


def is_nifti_name(path: str | Path) -> bool:
    """Whether a file's name ends in .nii or .nii.gz and is not hidden."""
    name = Path(path).name
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def stem(path: str | Path) -> str:
    """A file's name without its format's extension."""
    name = Path(path).name
    lower = name.lower()
    return next((name[: -len(s)] for s in _VOLUME_ENDINGS if lower.endswith(s)), name)


def open_nifti(path: str | Path, max_bytes: int | None = None) -> NiftiFile:
    """Check a NIfTI file's name, signature, header and size, before allocating memory for it.

    Args:
        path: a .nii or .nii.gz file, NIfTI-1 or NIfTI-2, 2-D or 3-D (or 4-D with a trailing 1).
        max_bytes: memory limit for its voxels; see `max_bytes_limit`.

    Raises:
        InputFileError: if it is missing, empty, not NIfTI, misnamed, truncated, too large or of an unusable dtype.
        GeometryError: if its dimensions or its affine can't be used.

    Warns:
        GeometryWarning: if qform and sform disagree, or the slices are more than 15 degrees oblique.
    """
    file = check_nifti(path, max_bytes)
    for doubt in doubts_about_affine(file):
        warn(f"{file.path}: {doubt}", GeometryWarning)
    return file


def check_nifti(path: str | Path, max_bytes: int | None = None) -> NiftiFile:
    """`open_nifti` without warnings, for use in threads."""
    path = Path(path)
    size = _check_exists(path)
    header = _read_header(path)
    dtype = _check_dtype(path, header)
    shape = _check_shape(path, header)
    affine = _affine(path, header)
    slope, intercept = _scaling(path, header)
    offset = int(header["vox_offset"]) if np.isfinite(header["vox_offset"]) else 0
    if offset < header.sizeof_hdr:
        offset = header.sizeof_hdr + 4
    file = NiftiFile(path, shape, dtype, slope, intercept, affine, offset, header)
    _check_size(file, size, max_bytes_limit(max_bytes))
    return file


def read_comment(path: str | Path) -> str:
    """The comment in the extensions of a NIfTI file's header, as `ownership.save_image` writes it; "" if there is none.

    Raises:
        InputFileError: if its header can't be read.
    """
    path = Path(path)
    header = _read_header(path)
    start = header.sizeof_hdr
    length = max(0, min(int(header["vox_offset"]), _LONGEST_EXTENSIONS)) if np.isfinite(header["vox_offset"]) else 0
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as stream:
            content = stream.read(length)[start:]
    except (EOFError, zlib.error, OSError) as error:
        raise damaged(path, error) from None
    at = 4
    while content[:1] == b"\1" and at + 8 <= len(content):
        size, code = struct.unpack_from(f"{header.endianness}ii", content, at)
        if size < 8:
            break
        if code == _COMMENT:
            return content[at + 8 : at + size].rstrip(b"\0").decode("utf-8", errors="replace")
        at += size
    return ""


def read_voxels(file: NiftiFile) -> np.ndarray:
    """Read all voxels of a checked file as stored, unscaled.

    Returns:
        (x, y, z) array of `file.dtype`, x fastest in memory.

    Raises:
        InputFileError: if the file ends early or its compressed stream is damaged.
    """
    try:
        voxels = np.empty(math.prod(file.shape), file.dtype)
    except MemoryError as error:
        raise InputFileError(
            f"{file.path}: needs {size_in_words(file.data_bytes)}, more memory than is available"
        ) from error
    view = voxels.view(np.uint8).data
    try:
        with gzip.open(file.path) if file.compressed else file.path.open("rb") as stream:
            _skip(stream, file)
            done = 0
            while done < len(view):
                count = stream.readinto(view[done : done + (1 << 24)])
                if not count:
                    raise InputFileError(
                        f"{file.path}: is truncated: expected {size_in_words(file.data_bytes)} of voxels, got "
                        f"{size_in_words(done)}; copy or download it again"
                    )
                done += count
            if file.compressed:
                stream.read(1 << 20)  # reading to the end verifies the checksum
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged(file.path, error) from None
    except OSError as error:
        raise InputFileError(f"{file.path}: could not be read ({error.strerror or error})") from None
    return voxels.reshape(file.shape, order="F")


def _skip(stream, file: NiftiFile) -> None:
    if not file.compressed:
        stream.seek(file.offset)
        return
    left = file.offset
    while left:
        block = stream.read(min(left, 1 << 20))
        if not block:
            raise InputFileError(f"{file.path}: is truncated before its first voxel; copy or download it again")
        left -= len(block)


def damaged(path: Path, error: Exception) -> InputFileError:
    return InputFileError(
        f"{path}: expected a whole .nii.gz, but its compressed stream is truncated or damaged ({error}); "
        "copy or download it again"
    )


def _check_exists(path: Path) -> int:
    try:
        if path.is_dir():
            raise InputFileError(f"{path}: expected a NIfTI file, got a folder; name the file inside it")
        if not path.exists():
            raise InputFileError(f"{path}: there is no such file; check the path")
        size = path.stat().st_size
    except OSError as error:
        raise InputFileError(f"{path}: could not be read ({error.strerror or error})") from None
    if not path.name.lower().endswith(SUFFIXES):
        raise InputFileError(
            f"{path}: expected a name ending in .nii or .nii.gz (or .nrrd, .mha, .zip, or DICOM), got {path.name!r}; "
            "convert it to NIfTI"
        )
    if size == 0:
        raise InputFileError(f"{path}: the file is empty; copy or download it again")
    return size


def _read_header(path: Path) -> nib.Nifti1Header:
    try:
        with path.open("rb") as stream:
            start = stream.read(600)
    except OSError as error:
        raise InputFileError(f"{path}: could not be read ({error.strerror or error})") from None
    named_gzip, is_gzip = path.name.lower().endswith(".gz"), start[:2] == b"\x1f\x8b"
    if is_gzip and not named_gzip:
        raise InputFileError(f"{path}: is gzip-compressed but named .nii; rename it to {path.name}.gz")
    if named_gzip and not is_gzip:
        kind = "an uncompressed NIfTI" if _header_class(start) else "no gzip file"
        advice = f"rename it to {path.name[:-3]}" if _header_class(start) else "convert it to NIfTI"
        raise InputFileError(f"{path}: is named .nii.gz but is {kind}; {advice}")
    if is_gzip:
        try:
            with gzip.open(path) as stream:
                start = stream.read(600)
        except (EOFError, zlib.error, OSError) as error:
            raise damaged(path, error) from None
    header_class = _header_class(start)
    if header_class is None:
        raise InputFileError(f"{path}: expected a NIfTI file, got something else (no NIfTI signature)")
    if len(start) < header_class.sizeof_hdr:
        raise InputFileError(f"{path}: is truncated inside its header; copy or download it again")
    try:
        header = header_class.from_fileobj(io.BytesIO(start[: header_class.sizeof_hdr] + b"\0\0\0\0"), check=False)
        header.check_fix(logger=_silent)  # nibabel raises an error for what it can't fix
        return header
    except Exception as error:  # nibabel raises many kinds of error for a broken header
        raise InputFileError(f"{path}: its NIfTI header is broken ({first_line(error)})") from None


def _header_class(start: bytes) -> type[nib.Nifti1Header] | None:
    if start[344:348] in (b"n+1\0", b"ni1\0"):
        return nib.Nifti1Header
    if start[4:8] in (b"n+2\0", b"ni2\0"):
        return nib.Nifti2Header
    return None


def _check_dtype(path: Path, header: nib.Nifti1Header) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except Exception as error:
        raise InputFileError(f"{path}: its voxels have an unknown type ({first_line(error)})") from None
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        kind = "complex" if dtype.kind == "c" else "RGB" if dtype.names else str(dtype)
        raise InputFileError(f"{path}: expected one integer or float value a voxel, got {kind}; export the CT as int16")
    return dtype


def _check_shape(path: Path, header: nib.Nifti1Header) -> tuple[int, int, int]:
    try:
        shape = tuple(int(n) for n in header.get_data_shape())
    except Exception as error:
        raise GeometryError(f"{path}: its dimensions are broken ({first_line(error)})") from None
    full = shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3:
        raise GeometryError(f"{path}: expected a 3-D volume, got shape {full}; split it into 3-D files")
    if min(shape) < 1:
        raise GeometryError(f"{path}: expected at least one voxel along each axis, got shape {full}")
    return shape


def _affine(path: Path, header: nib.Nifti1Header) -> np.ndarray:
    try:
        with np.errstate(all="ignore"):
            affine = np.array(header.get_best_affine(), np.float64)
    except Exception as error:
        raise GeometryError(f"{path}: its affine is broken ({first_line(error)})") from None
    affine[:3] *= unit_mm(header)
    check_affine(affine, str(path))
    return affine


def unit_mm(header: nib.Nifti1Header | None) -> float:
    """Millimetres per unit of length in a NIfTI header."""
    return 1.0 if header is None else _UNITS_MM.get(int(header["xyzt_units"]) & 7, 1.0)


def check_affine(affine: np.ndarray, name: str) -> None:
    """Check that an affine (4, 4) describes a voxel grid.

    Raises:
        GeometryError: if not; the message shows the affine.
    """
    with np.errstate(all="ignore"):
        sizes = nib.affines.voxel_sizes(affine)
        singular = not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-3
    if singular or not (sizes > 1e-4).all() or not (sizes < 1e4).all():
        raise GeometryError(
            f"{name}: expected an affine with three independent axes and voxels between 0.0001 and 10000 mm, "
            f"got {np.array2string(affine[:3], precision=4, separator=',').replace(chr(10), '')}"
        )


def doubts_about_affine(file: NiftiFile) -> list[str]:
    """What is usable but suspicious about a file's affine, in words."""
    doubts = []
    try:
        qform, sform = file.header.get_qform(coded=True)[0], file.header.get_sform(coded=True)[0]
    except Exception:  # a broken qform that is not used for the affine
        qform = sform = None
    if qform is not None and sform is not None and not np.allclose(qform, sform, atol=1e-3):
        doubts.append("qform and sform disagree; the sform is used, as nibabel does")
    angle = math.degrees(float(np.max(nib.affines.obliquity(file.affine))))
    if angle > _OBLIQUE_DEGREES:
        doubts.append(
            f"its axes lie {angle:.0f} degrees oblique to the patient's; the model was trained on axial slices"
        )
    return doubts


def _scaling(path: Path, header: nib.Nifti1Header) -> tuple[float, float]:
    try:
        slope, intercept = header.get_slope_inter()
    except Exception as error:
        raise InputFileError(f"{path}: its scl_slope and scl_inter are broken ({first_line(error)})") from None
    return (1.0, 0.0) if slope is None else (float(slope), float(intercept or 0.0))


def _check_size(file: NiftiFile, size: int, limit: int) -> None:
    needed = file.offset + file.data_bytes
    if not file.compressed and size < needed:
        raise InputFileError(
            f"{file.path}: is truncated or its header is wrong: shape {file.shape} of {file.dtype.name} needs "
            f"{needed} bytes, the file has {size}; copy or download it again"
        )
    if file.compressed and needed > size * _LARGEST_GZIP_RATIO + 1024:
        raise InputFileError(
            f"{file.path}: is truncated or its header is wrong: shape {file.shape} of {file.dtype.name} can't come "
            f"out of {size} compressed bytes; copy or download it again"
        )
    if needed > limit:
        raise InputFileError(
            f"{file.path}: shape {file.shape} of {file.dtype.name} takes {size_in_words(needed)}, the limit is "
            f"{size_in_words(limit)}; if that is right, raise the limit with max_bytes= or LIVERSEG_MAX_BYTES"
        )


def size_in_words(count: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
