"""Reads CTs and masks of any supported format (NIfTI, DICOM, NRRD, MetaImage) into voxels and an affine."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from liverseg_tf.data.nifti import (
    check_affine,
    check_nifti,
    doubts_about_affine,
    is_nifti_name,
    max_bytes_limit,
    open_nifti,
    read_voxels,
)
from liverseg_tf.errors import (
    ConfigError,
    DataWarning,
    GeometryError,
    GeometryWarning,
    InputFileError,
    require,
    warn,
)

if TYPE_CHECKING:
    from liverseg_tf.data.dicom.series import DicomSeries

ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class StoredVolume:
    """Voxels as stored in a file.

    Attributes:
        voxels: (x, y, z), any real dtype.
        affine: (4, 4) float64, indices to mm in RAS+ coordinates.
        slope, intercept: HU are voxels times slope plus intercept.
        path: the file, folder or archive.
        header: a NIfTI file's header, else None.
        series: the DICOM series, else None.
    """

    voxels: np.ndarray
    affine: np.ndarray
    path: Path
    slope: float = 1.0
    intercept: float = 0.0
    header: nib.Nifti1Header | None = None
    series: DicomSeries | None = None


@dataclass(frozen=True, eq=False)
class VolumeHeader:
    """What is known of a volume before its voxels are read.

    Attributes:
        path: the file, folder or archive.
        shape: (x, y, z).
        affine: (4, 4) float64, indices to mm in RAS+ coordinates.
        dtype: of the voxels; of a DICOM series, if all of its slopes and intercepts are whole, int16.
        slope, intercept: voxels times slope plus intercept are HU.
        doubts: what is worth a look: `duplicate` or `orientation`, and a text.
        read: gives the voxels (x, y, z), read completely.
        series: the DICOM series, else None.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: np.ndarray
    dtype: np.dtype
    slope: float
    intercept: float
    doubts: tuple[tuple[str, str], ...]
    read: Callable[[], np.ndarray]
    series: DicomSeries | None = None

    @property
    def data_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)


def format_of(path: str | Path) -> str:
    """The format of a path: `nifti`, `dicom` or `itk`; reads at most a file's first bytes."""
    path = Path(path)
    if is_nifti_name(path):
        return "nifti"
    if path.is_dir() or path.suffix.lower() == ".zip":
        return "dicom"
    if is_itk_name(path):
        return "itk"
    from liverseg_tf.data.dicom.files import is_dicom_file

    return "dicom" if is_dicom_file(path) else "nifti"


def is_segmentation_file(path: str | Path) -> bool:
    """Whether a file is a DICOM segmentation, which is a mask."""
    if is_volume_name(path) or not Path(path).is_file() or format_of(path) != "dicom":
        return False
    from liverseg_tf.data.dicom.segmentation import is_segmentation

    return is_segmentation(path)


def is_volume_name(path: str | Path) -> bool:
    """Whether a name is that of a CT or mask in one file (NIfTI, NRRD or MetaImage) and is not hidden."""
    return is_nifti_name(path) or is_itk_name(path)


def is_itk_name(path: str | Path) -> bool:
    """Whether a file has a NRRD or MetaImage name and is not hidden."""
    path = Path(path)
    return path.suffix.lower() in ITK_SUFFIXES and not path.name.startswith(".")


def read_volume(
    path: str | Path, *, series: str | DicomSeries | None = None, allow_gaps: bool = False, max_bytes: int | None = None
) -> StoredVolume:
    """Read a whole CT or mask.

    Args:
        path: .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd; a folder of DICOM files, one of them, or a .zip of them.
        series: UID of the DICOM series that is meant, where a folder holds several; or the series, found before.
        allow_gaps: resample a DICOM series with gaps or uneven steps.
        max_bytes: memory limit for the voxels in bytes; by default LIVERSEG_MAX_BYTES, else 8 GiB.

    Raises:
        InputFileError: if it can't be read completely, or has another format.
        GeometryError: if its dimensions or affine can't be used.
        ConfigError: for `series` or `allow_gaps` with another format.
        MissingDependencyError: if the extra for the format is not installed.
    """
    path = Path(path)
    kind = "dicom" if series is not None and not isinstance(series, str) else format_of(path)
    if kind == "dicom":
        return read_dicom(path, series, allow_gaps, max_bytes)
    if series is not None or allow_gaps:
        raise ConfigError(f"{path}: series= and allow_gaps= are only for DICOM")
    if kind == "itk":
        return _read_itk(path, max_bytes)
    file = open_nifti(path, max_bytes)
    return StoredVolume(read_voxels(file), file.affine, file.path, file.slope, file.intercept, file.header)


def open_volume(path: str | Path, series: DicomSeries | None = None, max_bytes: int | None = None) -> VolumeHeader:
    """Check a volume's header, before any memory is taken for its voxels; warns of nothing, so threads may call it.

    Raises:
        as `read_volume`.
    """
    path = Path(path)
    kind = "dicom" if series is not None else format_of(path)
    if kind == "nifti":
        file = check_nifti(path, max_bytes)
        doubts = tuple(("orientation", doubt) for doubt in doubts_about_affine(file))
        return VolumeHeader(
            path, file.shape, file.affine, file.dtype, file.slope, file.intercept, doubts, lambda: read_voxels(file)
        )
    if kind == "itk":
        reader, shape, itk_dtype, affine = _open_itk(path, max_bytes)
        return VolumeHeader(path, shape, affine, itk_dtype, 1.0, 0.0, (), lambda: _read_itk(path, max_bytes).voxels)
    from liverseg_tf.data.dicom.series import doubts_about_series, find_series, pick_series
    from liverseg_tf.data.dicom.voxels import read_series

    picked = series or pick_series(find_series(path, max_bytes))
    check_affine(picked.affine, str(path))
    whole = all(float(i.slope).is_integer() and float(i.intercept).is_integer() for i in picked.images)
    return VolumeHeader(
        path,
        (picked.shape[1], picked.shape[0], len(picked.places)),
        picked.affine,
        np.dtype(np.int16 if whole else np.float32),
        1.0,
        0.0,
        tuple(doubts_about_series(picked)),
        lambda: read_series(picked, max_bytes)[0],
        picked,
    )


def open_mask(path: str | Path, like: VolumeHeader | None = None, max_bytes: int | None = None) -> VolumeHeader:
    """`open_volume` of a mask; a DICOM SEG is read at once, on the grid of its CT `like`."""
    if not is_segmentation_file(path):
        return open_volume(path, None, max_bytes)
    from liverseg_tf.data.dicom.segmentation import read_segmentation

    frame = like.series.frame_of_reference_uid if like is not None and like.series is not None else ""
    voxels, affine = read_segmentation(path, None if like is None else (like.shape, like.affine), frame, max_bytes)
    shape = (voxels.shape[0], voxels.shape[1], voxels.shape[2])
    return VolumeHeader(Path(path), shape, affine, voxels.dtype, 1.0, 0.0, (), lambda: voxels)


def read_dicom(path: Path, series: str | DicomSeries | None, allow_gaps: bool, max_bytes: int | None) -> StoredVolume:
    """The one usable series at a path, or the one that is named or was found before."""
    from liverseg_tf.data.dicom.voxels import read_series

    picked = pick_dicom(path, series, allow_gaps, max_bytes)
    voxels, affine = read_series(picked, max_bytes)
    warn_about_series(picked, path)
    check_affine(affine, str(path))
    return StoredVolume(voxels, affine, path, series=picked)


def pick_dicom(path: Path, series: str | DicomSeries | None, allow_gaps: bool, max_bytes: int | None) -> DicomSeries:
    """The series that `read_dicom` reads."""
    from liverseg_tf.data.dicom.series import find_series, pick_series

    if series is None or isinstance(series, str):
        return pick_series(find_series(path, max_bytes), series, allow_gaps=allow_gaps)
    return series


def warn_about_series(series: DicomSeries, path: Path) -> None:
    """Warn of what deserves a look in a usable series."""
    from liverseg_tf.data.dicom.series import doubts_about_series

    for kind, doubt in doubts_about_series(series):
        warn(f"{path}: {doubt}", GeometryWarning if kind == "orientation" else DataWarning)


def _read_itk(path: Path, max_bytes: int | None) -> StoredVolume:
    reader, _, _, affine = _open_itk(path, max_bytes)
    try:
        voxels = require("SimpleITK", "formats", "reading NRRD and MetaImage").GetArrayFromImage(reader.Execute())
    except RuntimeError:
        raise _itk_error(path) from None
    return StoredVolume(voxels.transpose(2, 1, 0), affine, path)


def _itk_error(path: Path) -> InputFileError:
    return InputFileError(
        f"{path}: could not be read whole as {path.suffix[1:].upper()}; is it truncated, or its data file missing?"
    )


def _open_itk(path: Path, max_bytes: int | None) -> tuple[Any, tuple[int, int, int], np.dtype, np.ndarray]:
    """Reader, shape (x, y, z), dtype and affine of a NRRD or MetaImage file."""
    itk = require("SimpleITK", "formats", "reading NRRD and MetaImage")
    if not path.is_file():
        raise InputFileError(f"{path}: there is no such file; check the path")
    itk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = itk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        shape = reader.GetSize()
        kind = itk.GetPixelIDValueAsString(reader.GetPixelID())
        if reader.GetNumberOfComponents() != 1 or "complex" in kind:
            raise InputFileError(f"{path}: expected one value a voxel, got {kind}; export the CT as int16")
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3 or reader.GetDimension() != 3:
            raise GeometryError(f"{path}: expected a 3-D volume, got shape {reader.GetSize()}; split it into 3-D files")
        bytes_each = int(re.sub(r"\D", "", kind)) // 8
        needed, limit = math.prod(int(n) for n in shape) * bytes_each, max_bytes_limit(max_bytes)
        if needed > limit:
            raise InputFileError(
                f"{path}: shape {shape} of {kind} takes {needed} bytes, the limit is {limit}; if that is right, raise "
                "the limit with max_bytes= or LIVERSEG_MAX_BYTES"
            )
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
        affine[:3, 3] = reader.GetOrigin()
    except RuntimeError:
        raise _itk_error(path) from None
    affine = _LPS_TO_RAS @ affine
    check_affine(affine, str(path))
    sign = "f" if "float" in kind else "u" if "unsigned" in kind else "i"
    columns, rows, slices = (int(n) for n in shape)
    return reader, (columns, rows, slices), np.dtype(f"{sign}{bytes_each}"), affine
