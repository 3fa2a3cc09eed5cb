"""CT volumes and masks: HU or labels, their geometry, and the conversion back to the file's grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from liverseg_tf.data.nifti import check_affine, check_nifti, open_nifti, read_comment, unit_mm
from liverseg_tf.data.nifti_slices import NiftiSlices
from liverseg_tf.data.reading import format_of, is_segmentation_file, pick_dicom, read_volume, warn_about_series
from liverseg_tf.data.temporary_slices import TemporarySlices
from liverseg_tf.errors import DataWarning, GeometryError, InputFileError, NotHounsfieldWarning, warn
from liverseg_tf.hounsfield import AIR_HU, HU_RANGE
from liverseg_tf.labels import LIVER_CLASSES, ClassSet, to_labels
from liverseg_tf.wording import counted

if TYPE_CHECKING:
    from liverseg_tf.data.dicom.series import DicomSeries

AFFINE_TOLERANCE = 1e-3
# Axes with a larger cosine are sheared (a tilted gantry); smaller ones are rounding errors of headers.
_SHEAR_TOLERANCE = 1e-4
_CANONICAL = nib.orientations.axcodes2ornt(("P", "L", "S"))
# Of slices on the disk so many are checked at a time.
_SLICES_AT_ONCE = 16
# Smaller volumes are always read into memory.
_LEAST_BYTES_ON_DISK = 96 * 1024**2


@dataclass(frozen=True, eq=False)
class Geometry:
    """A file's voxel grid, and the conversion to the canonical view and back.

    In the canonical view axial slices have radiological orientation: axis 0 runs from anterior to posterior (rows),
    axis 1 from the patient's right to left (columns), axis 2 from inferior to superior (slices).

    Attributes:
        shape: (x, y, z) of the file.
        affine: (4, 4) float64, the file's voxel indices to mm in RAS+ coordinates.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @classmethod
    def from_spacing(cls, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Geometry:
        """The grid of an array in the canonical view; its first voxel is at 0 mm.

        Raises:
            GeometryError: if the spacing is not three positive numbers.
        """
        spacing = np.asarray(spacing_mm, np.float64)
        if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
            raise GeometryError(
                f"spacing_mm: expected three positive numbers (row, column, slice). Received: {spacing_mm}"
            )
        affine = np.zeros((4, 4))
        affine[1, 0], affine[0, 1], affine[2, 2], affine[3, 3] = -spacing[0], -spacing[1], spacing[2], 1
        return cls((shape[0], shape[1], shape[2]), affine)

    @cached_property
    def _orientation(self) -> np.ndarray:
        return nib.orientations.io_orientation(self.affine)

    @cached_property
    def transform(self) -> np.ndarray:
        """nibabel orientation transform (3, 2) from the file to the canonical view."""
        return nib.orientations.ornt_transform(self._orientation, _CANONICAL)

    @property
    def axis_codes(self) -> str:
        """The file's axes as three letters, such as LPS or RAS."""
        return "".join(nib.orientations.ornt2axcodes(self._orientation))

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """(rows, columns, slices)."""
        rows, columns, slices = (self.shape[int(a)] for a in np.argsort(self.transform[:, 0]))
        return rows, columns, slices

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbours along (rows, columns, slices) of the canonical view, in mm."""
        sizes = nib.affines.voxel_sizes(self.affine)
        rows, columns, slices = (float(sizes[int(a)]) for a in np.argsort(self.transform[:, 0]))
        return rows, columns, slices

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of a voxel in ml: the affine's determinant. In a sheared grid the spacings' product is too large."""
        x, y, z = self.affine[:3, :3].T
        return abs(float(x @ np.cross(y, z))) / 1000  # exact for unsheared grids, unlike LAPACK's determinant

    @property
    def steps_mm(self) -> np.ndarray:
        """(3, 3) float64: its columns are the steps along (rows, columns, slices) of the canonical view, in mm.

        The matrix is rotated so that rows run along the first axis, and columns within the first two. It converts index
        differences to mm, so lengths are also right in a sheared grid (tilted gantry). Without shear it is the diagonal
        matrix of `spacing_mm`.
        """
        steps = self.canonical_affine[:3, :3]
        unit = steps / self.spacing_mm
        if np.abs(unit.T @ unit - np.eye(3)).max() <= _SHEAR_TOLERANCE:
            return np.diag(self.spacing_mm)
        upper = np.linalg.qr(steps).R
        return upper * np.sign(np.diag(upper))[:, None]

    @property
    def canonical_affine(self) -> np.ndarray:
        """(4, 4) float64, canonical indices (row, column, slice) to mm in RAS+ coordinates."""
        return self.affine @ nib.orientations.inv_ornt_aff(self.transform, self.shape)

    @property
    def is_identity_affine(self) -> bool:
        """True for the identity, as in LiTS volumes 28 to 47: mm and ml are then unreliable."""
        return bool(np.allclose(np.abs(self.affine[:3, :3]), np.eye(3), atol=1e-6))

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """View an (x, y, z) array of the file as (rows, columns, slices)."""
        return nib.orientations.apply_orientation(array, self.transform)

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """View a (rows, columns, slices) array as (x, y, z) of the file."""
        back = nib.orientations.ornt_transform(_CANONICAL, self._orientation)
        return nib.orientations.apply_orientation(array, back)

    def matches(self, other: Geometry, tolerance: float = AFFINE_TOLERANCE) -> bool:
        """Whether two grids have the same shape, and affines equal to within `tolerance` in each element."""
        return self.shape == other.shape and bool(np.allclose(self.affine, other.affine, rtol=0, atol=tolerance))


def check_same_grid(first: Geometry, second: Geometry, names: tuple[str | Path, str | Path]) -> None:
    """Check that two files have the same grid.

    Raises:
        GeometryError: if not; the message shows both shapes or both affines.
    """
    if first.shape != second.shape:
        raise GeometryError(
            f"{names[1]}: expected the shape {first.shape} of {names[0]}, got {second.shape}; are they of one patient?"
        )
    if not first.matches(second):

        def show(affine):
            return np.array2string(affine[:3], precision=3, separator=",", suppress_small=True).replace("\n", "")

        raise GeometryError(
            f"{names[1]}: its affine {show(second.affine)} differs from {show(first.affine)} of {names[0]} "
            f"by more than {AFFINE_TOLERANCE}; resample one onto the other, or copy the other's header if only this "
            "one's is wrong"
        )


def check_same_voxels(first: Geometry, second: Geometry, names: tuple[str | Path, str | Path]) -> None:
    """Check that two files hold the same voxels, in whatever order and direction each stores its axes.

    Raises:
        GeometryError: as `check_same_grid`.
    """
    if first.canonical_shape != second.canonical_shape or not np.allclose(
        first.canonical_affine, second.canonical_affine, rtol=0, atol=AFFINE_TOLERANCE
    ):
        check_same_grid(first, second, names)


class CTVolume:
    """A CT volume in Hounsfield units.

    Made by `load`, `from_image` or `from_array`. Voxels are kept as stored in the file; `hu` and `slices` scale them to
    HU, bring them to the canonical view, replace NaN and infinity by air, and clip.

    Attributes:
        geometry: the file's grid (`Geometry`).
        path: the file, folder or archive, or None.
        header: nibabel's header of the file, or None.
        series: the DICOM series (`DicomSeries`) from which it was read, or None.
        hu_range: lowest and highest HU that values are clipped to, or None.
        doubt: why its values are probably not HU, or None.

    Examples:
        >>> volume = CTVolume.from_array(np.zeros((4, 5, 6)), spacing_mm=(0.7, 0.7, 2.0))
        >>> volume.hu.shape, volume.spacing_mm
        ((4, 5, 6), (0.7, 0.7, 2.0))
    """

    def __init__(
        self,
        stored: np.ndarray | NiftiSlices | TemporarySlices,
        geometry: Geometry,
        *,
        slope: float = 1.0,
        intercept: float = 0.0,
        path: Path | None = None,
        header: nib.Nifti1Header | None = None,
        series: DicomSeries | None = None,
        hu_range: tuple[float, float] | None = HU_RANGE,
        values: _Values | None = None,
    ):
        self._stored = geometry.to_canonical(stored) if isinstance(stored, np.ndarray) else stored
        self._slope, self._intercept = slope, intercept
        self.geometry, self.path, self.header, self.hu_range = geometry, path, header, hu_range
        self.series = series
        if values is None:
            values, count = _Values(self.shape), self.shape[2]
            for first in range(0, count, step := count if isinstance(stored, np.ndarray) else _SLICES_AT_ONCE):
                values.add(first, self._canonical(first, min(first + step, count)))
        self._check_values(values)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        hu_range: tuple[float, float] | None = HU_RANGE,
        max_bytes: int | None = None,
        series: str | DicomSeries | None = None,
        allow_gaps: bool = False,
        in_memory: bool = True,
    ) -> CTVolume:
        """Read a whole CT.

        Args:
            path: NIfTI (.nii, .nii.gz), NRRD, MetaImage; or DICOM: a folder, one file, or a .zip archive.
            hu_range: HU range to clip to, or None.
            max_bytes: memory limit for its voxels in bytes; by default LIVERSEG_MAX_BYTES, else 8 GiB.
            series: UID of the DICOM series to read, if there are several at `path`; or the series, found before.
            allow_gaps: resample a DICOM series with gaps or uneven steps to even ones.
            in_memory: False keeps the voxels of a large axial CT on the disk, after they were read and checked once:
                slices are read again when they are needed. A NIfTI file must stay as it is until then; voxels of a
                DICOM series are decoded into a temporary file (in memory after all if that can't be written). NRRD and
                MetaImage are always read into memory.

        Raises:
            InputFileError: if it can't be read completely, or there is no usable DICOM series, or several.
            GeometryError: if its dimensions or affine can't be used.
            MissingDependencyError: if the extra that reads the format is missing.

        Warns:
            GeometryWarning: for suspicious geometry.
            NotHounsfieldWarning: for intensities that don't look like HU.
            DataWarning: for NaN or infinity, with their count; for duplicate or interpolated DICOM slices.
        """
        if not in_memory:
            volume = None
            if series is None and not allow_gaps and format_of(path) == "nifti":
                volume = cls._nifti_on_disk(path, hu_range, max_bytes)
            elif not isinstance(series, str | None) or format_of(path) == "dicom":
                series = pick_dicom(Path(path), series, allow_gaps, max_bytes)
                volume = cls._dicom_on_disk(Path(path), series, hu_range, max_bytes)
            if volume is not None:
                return volume
        stored = read_volume(path, series=series, allow_gaps=allow_gaps, max_bytes=max_bytes)
        return cls(
            stored.voxels,
            Geometry(stored.voxels.shape, stored.affine),
            slope=stored.slope,
            intercept=stored.intercept,
            path=stored.path,
            header=stored.header,
            series=stored.series,
            hu_range=hu_range,
        )

    @classmethod
    def _nifti_on_disk(
        cls, path: str | Path, hu_range: tuple[float, float] | None, max_bytes: int | None
    ) -> CTVolume | None:
        """A NIfTI file whose voxels stay on the disk; None if it is small or not stored by slices."""
        file = check_nifti(path, max_bytes)
        geometry = Geometry(file.shape, file.affine)
        if file.data_bytes < _LEAST_BYTES_ON_DISK or geometry.transform[2, 0] != 2:
            return None
        open_nifti(path, max_bytes)  # which warns
        values = _Values(geometry.canonical_shape)

        def check(first: int, voxels: np.ndarray) -> None:
            is_flipped = geometry.transform[2, 1] < 0
            start = file.shape[2] - first - voxels.shape[2] if is_flipped else first
            values.add(start, geometry.to_canonical(voxels))

        return cls(
            NiftiSlices(file, check),
            geometry,
            slope=file.slope,
            intercept=file.intercept,
            path=file.path,
            header=file.header,
            hu_range=hu_range,
            values=values,
        )

    @classmethod
    def _dicom_on_disk(
        cls, path: Path, series: DicomSeries, hu_range: tuple[float, float] | None, max_bytes: int | None
    ) -> CTVolume | None:
        """A DICOM series whose voxels lie in a temporary file; None if it is small, uneven or not axial, or if the
        file can't be written."""
        from liverseg_tf.data.dicom.voxels import read_series_to_disk

        geometry = Geometry((series.shape[1], series.shape[0], len(series.places)), series.affine)
        if 2 * math.prod(geometry.shape) < _LEAST_BYTES_ON_DISK or series.is_uneven:
            return None
        check_affine(geometry.affine, str(path))
        if geometry.transform[2, 0] != 2:
            return None
        try:
            slices = read_series_to_disk(series, max_bytes)
        except OSError:
            return None
        warn_about_series(series, path)
        return cls(slices, geometry, path=path, series=series, hu_range=hu_range)

    @classmethod
    def from_image(
        cls, image: nib.spatialimages.SpatialImage, *, hu_range: tuple[float, float] | None = HU_RANGE
    ) -> CTVolume:
        """Take a nibabel image.

        Raises:
            GeometryError: if it is not 3-D, or its affine can't be used.
            InputFileError: if its voxels can't be read or are not real numbers.
        """
        try:
            stored = np.asanyarray(image.dataobj)
        except Exception as error:  # any error of an image that is read lazily
            raise InputFileError(f"nibabel image: its voxels could not be read ({error})") from None
        while stored.ndim > 3 and stored.shape[-1] == 1:
            stored = stored[..., 0]
        _check_array(stored, "nibabel image")
        header = image.header if isinstance(image.header, nib.Nifti1Header) else None
        affine = np.eye(4) if image.affine is None else np.array(image.affine, np.float64)
        affine[:3] *= unit_mm(header)
        check_affine(affine, "nibabel image")
        return cls(stored, Geometry(stored.shape, affine), header=header, hu_range=hu_range)

    @classmethod
    def from_array(
        cls, hu: np.ndarray, spacing_mm: tuple[float, float, float], *, hu_range: tuple[float, float] | None = HU_RANGE
    ) -> CTVolume:
        """Take an array in the canonical view.

        Args:
            hu: (rows A->P, columns R->L, slices I->S), any real dtype, HU.
            spacing_mm: distances along those axes, in mm.

        Raises:
            GeometryError: for another number of axes, or a spacing that is not positive.
        """
        stored = np.asarray(hu)
        _check_array(stored, "HU array")
        return cls(stored, Geometry.from_spacing(stored.shape, spacing_mm), hu_range=hu_range)

    @cached_property
    def hu(self) -> np.ndarray:
        """(rows A->P, columns R->L, slices I->S) float32, in HU. Computed once and cached."""
        return self._to_hu(self._canonical(0, self.shape[2]))

    def slices(self, start: int, stop: int) -> np.ndarray:
        """Slices start to stop - 1 as (slices, rows, columns) float32, in HU; takes memory only for these slices."""
        return np.ascontiguousarray(np.moveaxis(self._to_hu(self._canonical(start, stop)), 2, 0))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rows, columns, slices)."""
        return self.geometry.canonical_shape

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distances along (rows, columns, slices), in mm."""
        return self.geometry.spacing_mm

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of a voxel in ml, right for a sheared grid too."""
        return self.geometry.voxel_volume_ml

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) float64 affine of the file."""
        return self.geometry.affine

    @property
    def files(self) -> list[Path]:
        """The files from which it was read; empty for an array."""
        if self.series is not None:
            return list(dict.fromkeys(image.file.path for image in self.series.images))
        return [self.path] if self.path else []

    @property
    def name(self) -> str:
        return str(self.path) if self.path else "volume"

    def image_like(self, array: np.ndarray) -> nib.Nifti1Image:
        """A canonical (rows, columns, slices) array as an image in the file's own grid, orientation and header.

        Args:
            array: an array of this volume's shape; the image gets its dtype.

        Raises:
            GeometryError: for another shape.
        """
        if array.shape != self.shape:
            raise GeometryError(f"expected an array of shape {self.shape} like {self.name}, got {array.shape}")
        header = self.header.copy() if self.header is not None else nib.Nifti1Header()
        header.set_data_dtype(array.dtype)
        header["scl_slope"], header["scl_inter"] = np.nan, np.nan
        header["cal_min"] = header["cal_max"] = header["vox_offset"] = 0
        header["intent_code"] = 0
        kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        with np.errstate(all="ignore"):  # the header of a 2-D file may hold any spacing for the third axis
            affine = self.affine.copy()
            affine[:3] /= unit_mm(self.header)
            image = kind(np.asfortranarray(self.geometry.to_file(array)), affine, header)
        if self.header is None:
            image.set_qform(self.affine, code=1)
            image.set_sform(self.affine, code=1)
            image.header.set_xyzt_units("mm")
        return image

    def __repr__(self) -> str:
        return (
            f"CTVolume({self.path.name if self.path else 'array'}: {grid_in_words(self.shape, self.spacing_mm)}, "
            f"stored {self.geometry.axis_codes} as {self._stored.dtype.name}, {self._stored.nbytes / 1e6:.0f} MB)"
        )

    def _canonical(self, start: int, stop: int) -> np.ndarray:
        """Slices as stored, (rows, columns, slices)."""
        if isinstance(self._stored, np.ndarray):
            return self._stored[..., start:stop]
        if self.geometry.transform[2, 1] < 0:
            start, stop = self.shape[2] - stop, self.shape[2] - start
        return self.geometry.to_canonical(self._stored.read(start, stop))

    def _to_hu(self, stored: np.ndarray) -> np.ndarray:
        is_scaled = self._slope != 1.0 or self._intercept != 0.0
        with np.errstate(all="ignore"):  # values beyond float32 become infinite, and then air
            if is_scaled:
                hu = (stored.astype(np.float64) * self._slope + self._intercept).astype(np.float32)
            else:
                hu = stored.astype(np.float32)
        if is_scaled or stored.dtype.kind == "f":
            air = AIR_HU
            np.nan_to_num(hu, copy=False, nan=air, posinf=air, neginf=air)
        if self.hu_range is not None:
            np.clip(hu, *self.hu_range, out=hu)
        return hu

    def _check_values(self, values: _Values) -> None:
        if bad := values.not_finite:
            warn(
                f"{self.name}: {counted(bad, 'voxel is', 'voxels are')} NaN or infinite; "
                f"{'it is' if bad == 1 else 'they are'} taken as air",
                DataWarning,
            )
        self.doubt = _doubt_about_sample(values.sample(), self._slope, self._intercept)
        if self.doubt:
            warn(
                f"{self.name}: {self.doubt}",
                NotHounsfieldWarning,
            )


class _Values:
    """What is checked of a volume's values, as its slices are read.

    Args:
        shape: (rows, columns, slices).

    Attributes:
        not_finite: number of voxels that are NaN or infinite.
    """

    def __init__(self, shape: tuple[int, int, int]):
        self._step, self.not_finite = _sampling_step(shape), 0
        self._samples: dict[int, np.ndarray] = {}

    def add(self, first: int, stored: np.ndarray) -> None:
        """Add slices (rows, columns, slices) as stored, the first of them numbered `first`."""
        if stored.dtype.kind == "f":
            self.not_finite += stored.size - int(np.count_nonzero(np.isfinite(stored)))
        step = self._step
        self._samples[first] = stored[::step, ::step, -first % step :: step].copy()

    def sample(self) -> np.ndarray:
        """(rows, columns, slices) every n-th voxel along each axis, as stored."""
        return np.concatenate([part for _, part in sorted(self._samples.items())], axis=2)


class MaskVolume:
    """A mask of class indices on a file's grid.

    Attributes:
        labels: (rows A->P, columns R->L, slices I->S) uint8, values of `classes`.
        geometry: the file's grid.
        path: the file, or None.
        classes: the classes of the values; by default liver and tumour.
        is_cropped: True for a DICOM SEG read without its CT: its grid ends with its frames, not with the CT.

    Examples:
        >>> labels = np.zeros((4, 5, 6), np.uint8)
        >>> MaskVolume(labels, Geometry(labels.shape, np.diag([-0.7, -0.7, 2.0, 1.0]))).labels.shape
        (5, 4, 6)
    """

    def __init__(
        self,
        labels: np.ndarray,
        geometry: Geometry,
        path: Path | None = None,
        classes: ClassSet = LIVER_CLASSES,
        *,
        is_cropped: bool = False,
    ):
        self.geometry, self.path, self.classes, self.is_cropped = geometry, path, classes, is_cropped
        self.labels = geometry.to_canonical(to_labels(labels, str(path or "mask"), classes.names))

    @classmethod
    def load(
        cls,
        path: str | Path,
        max_bytes: int | None = None,
        *,
        classes: ClassSet | None = None,
        like: CTVolume | MaskVolume | None = None,
    ) -> MaskVolume:
        """Read a whole mask file.

        Args:
            path: NIfTI, NRRD, MetaImage, or a DICOM SEG, whose segments are identified by their codes.
            max_bytes: memory limit for its voxels in bytes; see `CTVolume.load`.
            classes: the classes of the values; by default those that `predict` wrote into the file, else liver and
                tumour.
            like: the CT of the mask. A SEG lacks empty slices and is placed on this grid; without it, a SEG gets the
                smallest grid that holds its frames.

        Raises:
            InputFileError, GeometryError: as `CTVolume.load`.
            LabelError: for values that are not within 0.001 of a class index, with their counts.
        """
        if is_segmentation_file(path):
            from liverseg_tf.data.dicom.segmentation import read_segmentation

            series = getattr(like, "series", None)
            voxels, affine = read_segmentation(
                path,
                None if like is None else (like.geometry.shape, like.geometry.affine),
                series.frame_of_reference_uid if series is not None else "",
                max_bytes,
            )
            geometry = Geometry((voxels.shape[0], voxels.shape[1], voxels.shape[2]), affine)
            return cls(voxels, geometry, Path(path), is_cropped=like is None)
        stored = read_volume(path, max_bytes=max_bytes)
        voxels = stored.voxels
        if (stored.slope, stored.intercept) != (1.0, 0.0):
            voxels = voxels * stored.slope + stored.intercept
        if classes is None and stored.header is not None:
            classes = ClassSet.from_json(read_comment(path))
        return cls(voxels, Geometry(voxels.shape, stored.affine), stored.path, classes or LIVER_CLASSES)

    @cached_property
    def organ_labels(self) -> np.ndarray:
        """`labels` with all classes except organ and lesion as background."""
        return self.classes.organ_part(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rows, columns, slices)."""
        return self.labels.shape

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distances along (rows, columns, slices), in mm."""
        return self.geometry.spacing_mm

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of a voxel in ml, right for a sheared grid too."""
        return self.geometry.voxel_volume_ml

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) float64 affine of the file."""
        return self.geometry.affine

    def __repr__(self) -> str:
        classes = ", ".join(map(str, np.flatnonzero(np.bincount(self.labels.ravel()))))
        return (
            f"MaskVolume({self.path.name if self.path else 'array'}: {grid_in_words(self.shape, self.spacing_mm)}, "
            f"stored {self.geometry.axis_codes}, classes {classes}, {self.labels.nbytes / 1e6:.0f} MB)"
        )


def grid_in_words(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> str:
    """A grid in words: "512 x 512 x 75 (rows, columns, slices), 0.7 x 0.7 x 5 mm"."""
    spacing = " x ".join(f"{distance:.3g}" for distance in spacing_mm)
    return f"{' x '.join(map(str, shape))} (rows, columns, slices), {spacing} mm"


def doubt_about_hu(stored: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> str | None:
    """Why intensities are probably not Hounsfield units, or None.

    A CT of a body holds air or fat, so some values are below 0.

    Args:
        stored: any shape; a sample of it is checked.
        slope, intercept: scaling to HU.
    """
    return _doubt_about_sample(
        stored[(slice(None, None, _sampling_step(stored.shape)),) * stored.ndim], slope, intercept
    )


def _sampling_step(shape: tuple[int, ...]) -> int:
    return max(1, round((math.prod(shape) / 500_000) ** (1 / len(shape))))


def _doubt_about_sample(stored: np.ndarray, slope: float, intercept: float) -> str | None:
    with np.errstate(all="ignore"):
        sample = stored.astype(np.float64) * slope + intercept
    sample = sample[np.isfinite(sample)]
    if not sample.size or sample.min() < 0 or sample.max() == sample.min():
        return None
    lowest, highest = sample.min(), sample.max()
    found = f"no value is below 0 (range {lowest:g} to {highest:g})"
    if highest <= 1:
        return f"{found}: expected Hounsfield units, these look scaled to 0..1; export the CT without rescaling"
    if highest <= 255:
        return f"{found}: expected Hounsfield units, these look scaled to 0..255; export the CT without rescaling"
    body = sample[sample > 300]
    if body.size and 900 <= np.median(body) <= 1300:
        return f"{found}: expected Hounsfield units, these look shifted by 1024; subtract 1024"
    return f"{found}: expected Hounsfield units; is this a CT?"


def _check_array(stored: np.ndarray, name: str) -> None:
    if stored.ndim != 3 or 0 in stored.shape:
        raise GeometryError(f"{name}: expected three axes (rows, columns, slices), got shape {stored.shape}")
    if stored.dtype.kind not in "iufb":
        raise InputFileError(f"{name}: expected real numbers, got dtype {stored.dtype}")
