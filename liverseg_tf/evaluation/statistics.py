"""Volumes and lesions of one mask."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from liverseg_tf.data.volume import CTVolume, Geometry, MaskVolume, check_same_voxels, grid_in_words
from liverseg_tf.errors import GeometryError
from liverseg_tf.evaluation.lesion_axes import numbered_lesions
from liverseg_tf.evaluation.lesions import measure_lesions, size_class
from liverseg_tf.evaluation.surface import Box, bounding_box
from liverseg_tf.labels import LIVER, LIVER_CLASSES, ClassSet
from liverseg_tf.wording import counted

# Thirds of the liver's bounding box along (rows, columns, slices) of the canonical view.
_THIRDS = (
    ("anterior", "mid-depth", "posterior"),
    ("right", "central", "left"),
    ("inferior", "mid-height", "superior"),
)
# Towards lower and higher indices along them.
_DIRECTIONS = (("anterior to", "posterior to"), ("right of", "left of"), ("inferior to", "superior to"))
_SLICES_AT_ONCE = 8
# Names in JSON, which has both slices counted from 1 and voxels counted from 0.
_KEYS = {
    "slice": "slice_from_1",
    "slices": "slices_from_1",
    "liver_slices": "liver_slices_from_1",
    "voxel": "voxel_from_0",
}


@dataclass(frozen=True)
class LesionStatistics:
    """One lesion: a component of tumour voxels connected by faces.

    Attributes:
        number: from 1, the largest first, as in `numbered_lesions`; the same in all results.
        volume_ml: its volume in ml.
        diameter_mm: diameter of the ball of the same volume.
        size: `small` under 10 mm, `medium`, `large` over 20 mm.
        extent_mm: size of its bounding box, front to back, side to side, bottom to top; in a sheared grid of the
            box with perpendicular edges, whose first two lie in the slices.
        slice: number from 1, counted from the feet, of the slice where it is largest.
        slices: first and last slice with the lesion, counted in the same way.
        side: `right`, `central` or `left` third of the liver's width (patient's right).
        center_mm: its centre of mass in the file's RAS+ coordinates.
        voxel: index from 0, in the file's own axes, of its voxel nearest to that centre.
        place: position in words: thirds of the liver's box, and mm from its middle.
        mean_hu: mean of the CT in it; None without a CT.
    """

    number: int
    volume_ml: float
    diameter_mm: float
    size: str
    extent_mm: tuple[float, float, float]
    slice: int
    slices: tuple[int, int]
    side: str
    center_mm: tuple[float, float, float]
    voxel: tuple[int, int, int]
    place: str
    mean_hu: float | None

    def to_dict(self) -> dict[str, Any]:
        """The lesion as a dictionary for JSON; names of indices say what they are counted from."""
        return asdict(self, dict_factory=_named_by_base)


def _named_by_base(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {_KEYS.get(name, name): value for name, value in items}


@dataclass(frozen=True)
class MaskStatistics:
    """Volumes and lesions of one mask. For another organ, "liver" and "tumour" refer to the organ and its lesions.

    Attributes:
        shape: (rows, columns, slices).
        spacing_mm: along them.
        identity_affine: True if the file says 1x1x1 mm without direction: mm and ml are then unreliable.
        liver_volume_ml: volume of the liver in ml, tumours included.
        tumour_volume_ml: volume of all tumours in ml.
        tumour_burden: tumour volume over liver volume, 0 to 1; None without liver.
        liver_slices: first and last slice with liver, from 1, counted from the feet; None without liver.
        lesion_count: number of lesions.
        lesions: the largest first.
        liver_mean_hu: mean of the CT in liver tissue, tumours left out; None without a CT or without liver tissue.
        tumour_mean_hu: mean of the CT in all tumours; None without a CT or without tumours.
        further_volumes_ml: volumes in ml of structures that are neither organ nor lesion, by name.
        classes: classes of the mask.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    identity_affine: bool
    liver_volume_ml: float
    tumour_volume_ml: float
    tumour_burden: float | None
    liver_slices: tuple[int, int] | None
    lesion_count: int
    lesions: tuple[LesionStatistics, ...]
    liver_mean_hu: float | None
    tumour_mean_hu: float | None
    further_volumes_ml: dict[str, float] = field(default_factory=dict)
    classes: ClassSet = LIVER_CLASSES

    def __repr__(self) -> str:
        burden = "" if self.tumour_burden is None else f" ({100 * self.tumour_burden:.1f} %)"
        lesions = counted(self.lesion_count, "lesion")
        largest = f", the largest {self.lesions[0].diameter_mm:.0f} mm" if self.lesions else ""
        return (
            f"MaskStatistics({self.classes.words('liver')} {self.liver_volume_ml:.0f} ml, "
            f"{self.classes.words('tumour')} {self.tumour_volume_ml:.1f} ml{burden}, "
            f"{lesions}{largest}; {grid_in_words(self.shape, self.spacing_mm)})"
        )

    def to_dict(self) -> dict[str, Any]:
        """All figures as a dictionary for JSON, with the names of the mask's classes.

        Names of indices say what they are counted from.
        """
        figures = asdict(replace(self, classes=LIVER_CLASSES), dict_factory=_named_by_base)
        further = {f"{name}_volume_ml": volume for name, volume in figures.pop("further_volumes_ml").items()}
        del figures["classes"]
        has_lesion = self.classes.lesion is not None
        named = {self.classes.named(k): v for k, v in figures.items() if has_lesion or not k.startswith("tumour_")}
        return named | further


def statistics(
    mask: str | Path | MaskVolume | np.ndarray,
    volume: str | Path | CTVolume | np.ndarray | None = None,
    *,
    spacing_mm: tuple[float, float, float] | None = None,
    classes: ClassSet | None = None,
) -> MaskStatistics:
    """Measure one mask: volumes, burden, and each lesion's size and place.

    Args:
        mask: a mask file, a `MaskVolume`, or labels (rows A->P, columns R->L, slices I->S) of 0, 1 and 2.
        volume: the CT on the same grid, for mean HU: a file, a `CTVolume`, or HU in the mask's canonical shape.
        spacing_mm: of an array, (row, column, slice) in mm; a file brings its own.
        classes: classes of the mask; by default those stored in it, else liver and tumour.

    Returns:
        The statistics; an empty mask has volumes of 0 and no lesions.

    Raises:
        InputFileError, GeometryError, LabelError: as `MaskVolume.load`; also for a CT on another grid, and for an
            array without `spacing_mm`.

    Examples:
        >>> labels = np.ones((10, 10, 10), np.uint8)
        >>> labels[4:6, 4:6, 4:6] = 2
        >>> found = statistics(labels, spacing_mm=(10, 10, 10))
        >>> found.liver_volume_ml, found.tumour_volume_ml, found.lesion_count
        (1000.0, 8.0, 1)
    """
    if isinstance(volume, (str, Path)):
        volume = CTVolume.load(volume)
    mask = as_mask(mask, spacing_mm, volume, classes)
    check_fits(volume, mask)
    box = bounding_box(mask.organ_labels)  # all voxels except background (0)
    voxel_ml = mask.voxel_volume_ml
    labels = mask.organ_labels[box or (slice(0, 1),) * 3]
    numbered, tumour_box = numbered_lesions(labels)
    liver_voxels, tumour_voxels = int(np.count_nonzero(labels)), int(np.count_nonzero(numbered))
    tissue_voxels = liver_voxels - tumour_voxels
    tissue_hu = lesion_hu = None
    if volume is not None and box is not None:
        tissue_hu, lesion_hu = _hu_sums(volume, box, labels, numbered, tumour_box)
    lesions = () if box is None or tumour_box is None else _lesions(numbered, tumour_box, lesion_hu, box, mask)
    return MaskStatistics(
        shape=mask.shape,
        spacing_mm=mask.spacing_mm,
        identity_affine=mask.geometry.is_identity_affine,
        liver_volume_ml=liver_voxels * voxel_ml,
        tumour_volume_ml=tumour_voxels * voxel_ml,
        tumour_burden=tumour_voxels / liver_voxels if liver_voxels else None,
        liver_slices=(box[2].start + 1, box[2].stop) if box else None,
        lesion_count=len(lesions),
        lesions=lesions,
        liver_mean_hu=tissue_hu / tissue_voxels if tissue_hu is not None and tissue_voxels else None,
        tumour_mean_hu=float(lesion_hu.sum()) / tumour_voxels if lesion_hu is not None else None,
        further_volumes_ml={
            c.name: int(np.count_nonzero(mask.labels == c.index)) * voxel_ml for c in mask.classes.further
        },
        classes=mask.classes,
    )


def as_mask(
    mask: str | Path | MaskVolume | np.ndarray,
    spacing_mm: tuple[float, float, float] | None,
    volume: CTVolume | np.ndarray | None = None,
    classes: ClassSet | None = None,
) -> MaskVolume:
    """A mask as `statistics` and `measure` take it, loaded."""
    if isinstance(mask, MaskVolume):
        return mask
    if isinstance(mask, (str, Path)):
        return MaskVolume.load(mask, classes=classes, like=volume if isinstance(volume, CTVolume) else None)
    if spacing_mm is None:
        raise GeometryError("label array: expected spacing_mm=(row, column, slice) with it, got none; give it in mm")
    labels = np.asarray(mask)
    if labels.ndim != 3:
        raise GeometryError(f"label array: expected three axes (rows, columns, slices), got shape {labels.shape}")
    return MaskVolume(labels, Geometry.from_spacing(labels.shape, spacing_mm), classes=classes or LIVER_CLASSES)


def check_fits(volume: CTVolume | np.ndarray | None, mask: MaskVolume) -> None:
    """Check that a CT lies on the mask's grid."""
    if isinstance(volume, CTVolume):
        check_same_voxels(volume.geometry, mask.geometry, (volume.name, mask.path or "mask"))
    elif volume is not None and np.shape(volume) != mask.shape:
        raise GeometryError(f"HU array: expected the mask's shape {mask.shape}, got {np.shape(volume)}")


def _hu_sums(
    volume: CTVolume | np.ndarray, box: Box, labels: np.ndarray, numbered: np.ndarray, tumour_box: Box | None
) -> tuple[float, np.ndarray | None]:
    """Sum of HU over the tissue of a box, and over each lesion, numbered in a box within it; None without lesions.

    Reads only a few slices of HU at a time.
    """
    tissue_hu, lesion_hu = 0.0, np.zeros(int(numbered.max(initial=0)) + 1)
    depth = labels.shape[2]
    for first in range(0, depth, _SLICES_AT_ONCE):
        there = slice(first, min(first + _SLICES_AT_ONCE, depth))
        start, stop = box[2].start + there.start, box[2].start + there.stop
        if isinstance(volume, CTVolume):
            hu = np.moveaxis(volume.slices(start, stop), 0, 2)[box[:2]]
        else:
            hu = np.asarray(volume)[(*box[:2], slice(start, stop))]
        tissue_hu += float(hu[labels[..., there] == LIVER].sum(dtype=np.float64))
        if tumour_box is None:
            continue
        rows, columns, slices = tumour_box
        low, high = max(there.start, slices.start), min(there.stop, slices.stop)
        if low < high:
            own = numbered[..., low - slices.start : high - slices.start]
            values = hu[rows, columns, low - there.start : high - there.start]
            lesion_hu += np.bincount(own[own > 0], values[own > 0], len(lesion_hu))
    return tissue_hu, None if tumour_box is None else lesion_hu[1:]


def _lesions(
    numbered: np.ndarray, tumour_box: Box, hu_sums: np.ndarray | None, box: Box, mask: MaskVolume
) -> tuple[LesionStatistics, ...]:
    """Statistics of lesions that are numbered in a box within the liver's box."""
    measures = measure_lesions(numbered, mask.voxel_volume_ml)
    within_liver = np.array([s.start for s in tumour_box])
    offset = within_liver + [s.start for s in box]
    liver_shape = tuple(s.stop - s.start for s in box)
    steps_mm = mask.geometry.steps_mm
    to_file = np.linalg.inv(mask.affine) @ mask.geometry.canonical_affine
    found = []
    for lesion in range(len(measures.voxels)):
        own = measures.boxes[lesion]
        inside = numbered[own] == lesion + 1
        center = measures.centroid[lesion]
        voxels = np.argwhere(inside) + [s.start for s in own]
        nearest = voxels[np.square((voxels - center) @ steps_mm.T).sum(axis=1).argmin()] + offset
        at = int(measures.largest_slice[lesion] + offset[2] + 1)
        in_liver = center + within_liver
        front, side, height = (
            names[min(2, int(3 * (in_liver[axis] + 0.5) / liver_shape[axis]))] for axis, names in enumerate(_THIRDS)
        )
        found.append(
            LesionStatistics(
                number=lesion + 1,
                volume_ml=float(measures.volume_ml[lesion]),
                diameter_mm=float(measures.diameter_mm[lesion]),
                size=size_class(measures.diameter_mm[lesion]),
                extent_mm=_extent_mm(voxels, steps_mm),
                slice=at,
                slices=(int(own[2].start + offset[2] + 1), int(own[2].stop + offset[2])),
                side=side,
                center_mm=tuple(
                    nib.affines.apply_affine(mask.geometry.canonical_affine, center + offset).round(3).tolist()
                ),
                voxel=tuple(np.rint(nib.affines.apply_affine(to_file, nearest)).astype(int).tolist()),
                place=mask.classes.words(f"{height} {side}, {front}; {_from_middle(in_liver, liver_shape, steps_mm)}"),
                mean_hu=None if hu_sums is None else float(hu_sums[lesion] / measures.voxels[lesion]),
            )
        )
    return tuple(found)


def _from_middle(center: np.ndarray, shape: tuple[int, ...], steps_mm: np.ndarray) -> str:
    """How far a place lies from the middle of the liver's box, in words: "62 mm right of the liver's middle"."""
    row, column, height = (center - (np.array(shape) - 1) / 2) @ steps_mm.T
    parts = []
    for distance, (negative, positive) in zip((column, height, row), (_DIRECTIONS[i] for i in (1, 2, 0)), strict=True):
        if round(abs(distance)):
            parts.append(f"{abs(distance):.0f} mm {positive if distance > 0 else negative}")
    return f"{', '.join(parts)} the liver's middle" if parts else "at the liver's middle"


def _extent_mm(voxels: np.ndarray, steps_mm: np.ndarray) -> tuple[float, float, float]:
    """Edges of the box around voxels, (N, 3) indices, whose corners count."""
    places = voxels @ steps_mm.T
    return tuple((np.ptp(places, axis=0) + np.abs(steps_mm).sum(axis=1)).tolist())
