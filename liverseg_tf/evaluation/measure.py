"""`measure`: what a radiologist wants to know of a mask, and what makes it doubtful."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from liverseg_tf.data.cases import case_number, is_mask_name
from liverseg_tf.data.dicom.segmentation import referenced_series
from liverseg_tf.data.nifti import stem
from liverseg_tf.data.reading import is_segmentation_file, is_volume_name
from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.errors import CaseError, InputFileError, MissingDependencyError
from liverseg_tf.evaluation.lesion_axes import LesionAxes, lesion_axes, numbered_lesions, volume_sd
from liverseg_tf.evaluation.pairs import masks_in
from liverseg_tf.evaluation.radiomics import load_radiomics, radiomics_of
from liverseg_tf.evaluation.statistics import LesionStatistics, MaskStatistics, as_mask, check_fits, statistics
from liverseg_tf.evaluation.surface import Box, bounding_box, distances_mm, surface_voxels, within
from liverseg_tf.files import csv_cell
from liverseg_tf.labels import BACKGROUND, LIVER, ClassSet

# Adult livers have 1000 ml and more.
SMALLEST_LIVER_ML = 200.0
# The liver ends in a tip: what the last slice shows of it is little against its largest cross-section.
_LARGEST_RIM = 0.05
# Liver tissue this near a lesion is what it is compared with.
_AROUND_MM = 10.0
_PERCENTILES = (5, 25, 50, 75, 95)
_SLICES_AT_ONCE = 8

FLAGS = {
    "ct_extent_unknown": "a DICOM SEG without its CT: whether the liver extends beyond the CT is unknown",
    "cut_by_field_of_view": "the liver goes on beyond the CT: its volume, and what is counted in it, is a lower bound",
    "gap_in_liver": "slices without liver lie between slices with liver: slices or parts of the mask may be missing",
    "no_liver": "the mask holds no liver: that is no finding, but a mask to look at",
    "small_liver": f"less than {SMALLEST_LIVER_ML:.0f} ml of liver: cut, a child's, resected, or not found",
    "identity_affine": "the file says 1x1x1 mm without direction: mm and ml are unreliable",
    "sheared_grid": "slices are shifted against one another (gantry tilt): measured as they lie",
    "tumour_beside_liver": "tumour that touches no liver: look whether it is one",
}


@dataclass(frozen=True)
class LesionMeasurement:
    """One lesion.

    Attributes:
        statistics: number, volume, place.
        axes: long and short axis in the axial slice (RECIST 1.1) and the largest diameter, with end points.
        sphericity: surface of the ball of the same volume over the lesion's surface, 0 to 1 (IBSI's QCFX, both of the
            mesh by marching cubes); None for a lesion of fewer than 8 voxels, which has no shape.
        distance_to_surface_mm: from its edge to the liver's surface; 0 where it reaches it, None without liver.
        hu: mean, sd and percentiles of HU in it; None without a CT.
        contrast_hu: its mean HU minus that of liver tissue within 10 mm; None without a CT or such tissue.
        radiomics: as `radiomics_of` gives it; None if it was not asked for.
        volume_sd_ml: standard deviation of its volume that is due to voxels alone, by `volume_sd`.
    """

    statistics: LesionStatistics
    axes: LesionAxes
    sphericity: float | None
    distance_to_surface_mm: float | None
    hu: dict[str, float] | None
    contrast_hu: float | None
    radiomics: dict[str, float | None] | None = None
    volume_sd_ml: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Flat, for JSON and tables; names of indices say what they are counted from."""
        row = self.statistics.to_dict()
        axes = asdict(self.axes)
        axes["axis_slice_from_1"] = axes.pop("slice") + 1
        hu = {f"hu_{name}": value for name, value in (self.hu or dict.fromkeys(_hu_names())).items()}
        own = {"volume_sd_ml": self.volume_sd_ml, "sphericity": self.sphericity}
        own |= {"distance_to_surface_mm": self.distance_to_surface_mm}
        return {**row, **axes, **own, **hu, "contrast_hu": self.contrast_hu, **(self.radiomics or {})}


@dataclass(frozen=True)
class Measurement:
    """One mask.

    Attributes:
        case: the mask's name.
        statistics: volumes, burden, HU of the liver.
        flags: what makes it doubtful, by the names of `FLAGS`; `FLAGS` has the words.
        volume_is_lower_bound: the CT holds a part of the liver alone.
        lesions: the largest first, numbered as in `statistics`.

    Examples:
        >>> found = measure("site/references/segmentation-0.nii.gz")
        >>> round(found.statistics.liver_volume_ml, 1), len(found.lesions), found.flags
        (345.6, 1, ())
    """

    case: str
    statistics: MaskStatistics
    flags: tuple[str, ...]
    volume_is_lower_bound: bool
    lesions: tuple[LesionMeasurement, ...]

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary, for JSON."""
        figures, named = self.statistics.to_dict(), self.statistics.classes.named
        figures.pop("lesions")
        return {
            "case": self.case,
            **figures,
            "volume_is_lower_bound": self.volume_is_lower_bound,
            "flags": {named(name): named(FLAGS[name]) for name in self.flags},
            "lesions": [lesion.to_dict() for lesion in self.lesions],
        }


def measure(
    mask: str | Path | MaskVolume | np.ndarray,
    ct: str | Path | CTVolume | np.ndarray | None = None,
    *,
    spacing_mm: tuple[float, float, float] | None = None,
    classes: ClassSet | None = None,
    radiomics: bool = False,
) -> Measurement:
    """Measure any mask of an organ and its lesions, whoever made it; by default of the liver.

    Args:
        mask: a mask file, a `MaskVolume`, or labels (rows A->P, columns R->L, slices I->S) of 0, 1 and 2.
        ct: the CT on the same grid, for HU: a file, a `CTVolume`, or HU in the mask's canonical shape.
        spacing_mm: of an array, (row, column, slice) in mm; a file brings its own.
        classes: what the values are; by default what the mask says of itself, else liver and tumour.
        radiomics: also IBSI's first-order and shape features of each lesion.

    Returns:
        A `Measurement`.

    Raises:
        InputFileError, GeometryError, LabelError: as `MaskVolume.load`; also for a CT on another grid, and for an array
            without `spacing_mm`.
        MissingDependencyError: for `radiomics` before Python 3.12, or without the extra `[radiomics]`.

    Examples:
        >>> labels = np.zeros((40, 40, 40), np.uint8)
        >>> labels[5:35, 5:35, 5:35] = 1
        >>> labels[10:20, 15:20, 20:24] = 2
        >>> found = measure(labels, spacing_mm=(2, 2, 2))
        >>> lesion = found.lesions[0]
        >>> round(lesion.axes.long_axis_mm, 1), lesion.distance_to_surface_mm, found.flags
        (21.5, 10.0, ())
    """
    if radiomics:
        load_radiomics()
    if isinstance(ct, (str, Path)):
        ct = CTVolume.load(ct)
    mask = as_mask(mask, spacing_mm, ct, classes)
    check_fits(ct, mask)
    found = statistics(mask, ct)
    flags = list(_flags(mask, found))
    lesions = tuple(_measure_lesions(mask, ct, found, radiomics))
    if found.liver_slices is not None and any(_is_beside(lesion, mask) for lesion in _crops(mask)):
        flags.append("tumour_beside_liver")
    name = Path(mask.path).name if mask.path else "mask"
    return Measurement(name, found, tuple(flags), "cut_by_field_of_view" in flags, lesions)


class MaskAndCT(NamedTuple):
    """A mask's file, its CT, and the UID of the DICOM series that is meant where `ct` holds several."""

    mask: Path
    ct: Path | None = None
    series: str | None = None


def find_masks(mask: str | Path, ct: str | Path | None = None) -> list[MaskAndCT]:
    """A mask and its CT, or the masks of a folder and their CTs: paired by number, else by name; a DICOM SEG whose name
    names no CT, by the series that it refers to.

    Raises:
        InputFileError, CaseError: if there is no such folder, it holds no mask, or a mask has no CT.
    """
    mask = Path(mask)
    if not mask.is_dir():
        return [MaskAndCT(mask, Path(ct) if ct is not None else None)]
    masks = masks_in(mask)
    if ct is None:
        return [MaskAndCT(path) for path in masks.values()]
    folder = Path(ct)
    if not folder.is_dir():
        raise InputFileError(f"{folder}: expected a folder of CTs beside a folder of masks; name the folder")
    volumes: dict[int | str, tuple[Path, str | None]] = {}
    for path in sorted(folder.rglob("*")):
        is_volume = is_volume_name(path) and path.is_file() and not is_mask_name(path)
        if is_volume and path not in masks.values():
            number = case_number(path)
            volumes.setdefault(stem(path) if number is None else number, (path, None))
    if any(case not in volumes for case in masks):
        by_name, by_uid = _dicom_volumes(folder)
        volumes = by_name | volumes
        for case in [case for case in masks if case not in volumes and is_segmentation_file(masks[case])]:
            if (uid := referenced_series(masks[case])) in by_uid:
                volumes[case] = by_uid[uid]
    missing = [path.name for case, path in masks.items() if case not in volumes]
    if missing:
        raise CaseError(f"{folder}: no CT for {', '.join(missing[:5])}; add it, or leave the CTs out")
    return [MaskAndCT(path, *volumes[case]) for case, path in masks.items()]


def _dicom_volumes(folder: Path) -> tuple[dict[int | str, tuple[Path, str]], dict[str, tuple[Path, str]]]:
    """The DICOM series by the names that `predict` gives their masks, and by their UIDs; none without pydicom."""
    from liverseg_tf.data.dicom.series import find_series, named_series

    try:
        usable = find_series(folder).usable
    except MissingDependencyError:
        return {}, {}
    by_name: dict[int | str, tuple[Path, str]] = {}
    for name, series in named_series(folder, usable):
        number = case_number(name)
        by_name[name if number is None else number] = (Path(series.folder), series.uid)
    return by_name, {series.uid: (Path(series.folder), series.uid) for series in usable if series.uid}


def _flags(mask: MaskVolume, found: MaskStatistics) -> Iterable[str]:
    box = bounding_box(mask.organ_labels)
    organ = mask.organ_labels[box or (slice(0, 0),) * 3] != BACKGROUND
    if box is None:
        yield "no_liver"
    elif mask.classes.is_liver and found.liver_volume_ml < SMALLEST_LIVER_ML:
        yield "small_liver"
    axes = [0, 1, 2]
    if mask.is_cropped:  # along its slices it ends where the liver does
        yield "ct_extent_unknown"
        axes.remove(int(mask.geometry.transform[2, 0]))
    for axis in axes:
        if box is None:
            break
        # cross-sections along each axis: in the first and the last slice, and at the picture's borders, they may be cut
        areas = np.count_nonzero(organ, axis=tuple(a for a in range(3) if a != axis))
        at_border = areas[0] * (box[axis].start == 0), areas[-1] * (box[axis].stop == mask.shape[axis])
        if mask.shape[axis] > 1 and max(at_border) > _LARGEST_RIM * areas.max():
            yield "cut_by_field_of_view"
            break
    if not organ.any(axis=(0, 1)).all():
        yield "gap_in_liver"
    if mask.geometry.is_identity_affine:
        yield "identity_affine"
    if np.count_nonzero(mask.geometry.steps_mm) > 3:
        yield "sheared_grid"


def _crops(mask: MaskVolume) -> Iterable[tuple[np.ndarray, Box]]:
    """Each lesion, the largest first: (I, J, K) bool and its box in the mask, with a margin of `_AROUND_MM`."""
    numbered, box = numbered_lesions(mask.organ_labels)
    if box is None:
        return
    from scipy import ndimage

    whole = tuple(slice(0, n) for n in mask.shape)
    for number, own in enumerate(ndimage.find_objects(numbered), start=1):
        place = within(box, own)
        wide = _grown(place, _AROUND_MM, mask.geometry.steps_mm, whole)
        yield _put(numbered[own] == number, place, wide), wide


def _grown(box: Box, by_mm: float, steps_mm: np.ndarray, most: Box) -> Box:
    """A box with all that lies within `by_mm` of it, and one voxel more, cut by the box `most`."""
    # in a sheared grid an index may go further for the same distance
    per_mm = np.linalg.norm(np.linalg.inv(steps_mm), axis=1)
    margin = [math.ceil(by_mm * n) + 1 for n in per_mm]
    return tuple(
        slice(max(b.start - m, o.start), min(b.stop + m, o.stop)) for b, m, o in zip(box, margin, most, strict=True)
    )


def _put(region: np.ndarray, place: Box, wide: Box) -> np.ndarray:
    """A region that lies at `place`, in an array for the larger box `wide`."""
    found = np.zeros([s.stop - s.start for s in wide], bool)
    found[tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip(place, wide, strict=True))] = region
    return found


def _is_beside(crop: tuple[np.ndarray, Box], mask: MaskVolume) -> bool:
    from scipy import ndimage

    lesion, box = crop
    return not (ndimage.binary_dilation(lesion, np.ones((3, 3, 3))) & (mask.organ_labels[box] == LIVER)).any()


def _measure_lesions(
    mask: MaskVolume, ct: CTVolume | np.ndarray | None, found: MaskStatistics, radiomics: bool
) -> Iterable[LesionMeasurement]:
    steps_mm = mask.geometry.steps_mm
    depths = _depths_mm(mask, steps_mm)
    rectangular = np.count_nonzero(steps_mm) == 3
    for statistic, depth, (lesion, box) in zip(found.lesions, depths, _crops(mask), strict=True):
        offset = tuple(s.start for s in box)
        hu = contrast = None
        values = None if ct is None else _hu(ct, box)
        if values is not None:
            inside = values[lesion].astype(np.float64)
            figures = (inside.mean(), inside.std(), *np.percentile(inside, _PERCENTILES))
            hu = {name: float(figure) for name, figure in zip(_hu_names(), figures, strict=True)}
            tissue = mask.organ_labels[box] == LIVER
            if tissue.any():
                near = values[tissue][distances_mm(tissue, lesion, steps_mm) <= _AROUND_MM]
                contrast = float(inside.mean() - near.mean(dtype=np.float64)) if near.size else None
        yield LesionMeasurement(
            statistic,
            lesion_axes(lesion, mask.geometry, offset),
            _sphericity(lesion, steps_mm),
            depth,
            hu,
            contrast,
            radiomics_of(lesion, values, mask.spacing_mm if rectangular else None) if radiomics else None,
            statistic.volume_ml * volume_sd(lesion, steps_mm),
        )


def _depths_mm(mask: MaskVolume, steps_mm: np.ndarray) -> list[float]:
    """For each lesion, the largest first, the least distance of its voxels to the liver's surface."""
    from scipy import ndimage

    numbered, box = numbered_lesions(mask.organ_labels)
    organ_box = bounding_box(mask.organ_labels)
    if box is None or organ_box is None:
        return []
    return [
        _depth_mm(numbered[own] == number, within(box, own), organ_box, mask, steps_mm)
        for number, own in enumerate(ndimage.find_objects(numbered), start=1)
    ]


def _depth_mm(lesion: np.ndarray, place: Box, organ_box: Box, mask: MaskVolume, steps_mm: np.ndarray) -> float:
    """The least distance of a lesion's voxels to the liver's surface, sought further and further around the lesion."""
    around_mm = _AROUND_MM
    while True:
        wide = _grown(place, around_mm, steps_mm, organ_box)
        # the outermost voxels tell only which of the others are surface, unless the liver ends with them
        inner = tuple(
            slice(int(w.start > o.start), w.stop - w.start - int(w.stop < o.stop))
            for w, o in zip(wide, organ_box, strict=True)
        )
        surface = surface_voxels(mask.organ_labels[wide] != BACKGROUND)[inner]
        if surface.any():
            least = distances_mm(_put(lesion, place, wide)[inner], surface, steps_mm).min()
            if least <= around_mm or wide == organ_box:
                return float(least)
        around_mm *= 2


def _hu(ct: CTVolume | np.ndarray, box: Box) -> np.ndarray:
    """HU of a box of voxels; reads only a few slices at a time."""
    if not isinstance(ct, CTVolume):
        return np.asarray(ct)[box]
    rows, columns, slices = box
    found = np.empty([s.stop - s.start for s in box], np.float32)
    for first in range(slices.start, slices.stop, _SLICES_AT_ONCE):
        last = min(first + _SLICES_AT_ONCE, slices.stop)
        hu = ct.slices(first, last)[:, rows, columns]
        found[..., first - slices.start : last - slices.start] = np.moveaxis(hu, 0, 2)
    return found


def _hu_names() -> list[str]:
    return ["mean", "sd", *(f"p{p}" for p in _PERCENTILES)]


def _sphericity(lesion: np.ndarray, steps_mm: np.ndarray) -> float | None:
    if np.count_nonzero(lesion) < 8:
        return None
    from skimage.measure import marching_cubes, mesh_surface_area

    corners, faces, _, _ = marching_cubes(np.pad(lesion, 1).astype(np.float32), 0.5)
    corners_mm = corners.astype(np.float64) @ steps_mm.T
    a, b, c = np.moveaxis(corners_mm[faces], 1, 0)
    volume_mm3 = abs(np.einsum("ij,ij->", a, np.cross(b, c))) / 6  # of the tetrahedra from the origin to each face
    return float((36 * math.pi * volume_mm3**2) ** (1 / 3) / mesh_surface_area(corners_mm, faces))


def measurement_tables(measured: Sequence[Measurement]) -> tuple[str, str]:
    """CSV of cases and CSV of lesions; both with headings even if there are none."""
    case_rows = []
    for one in measured:
        row = {name: value for name, value in one.to_dict().items() if name not in ("lesions", "flags")}
        case_rows.append({**row, "flags": " ".join(one.flags)})
    lesion_rows = [{"case": one.case, **lesion.to_dict()} for one in measured for lesion in one.lesions]
    return _csv(case_rows), _csv(lesion_rows)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    # masks of other classes name their columns otherwise
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["case"]
    writer = csv.DictWriter(text, names, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()
