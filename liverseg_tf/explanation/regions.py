"""Finds the region to explain: a lesion, the liver, or the surroundings of a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
from scipy import ndimage

from liverseg_tf.data.volume import Geometry
from liverseg_tf.errors import ConfigError, GeometryError
from liverseg_tf.evaluation.lesion_axes import numbered_lesions
from liverseg_tf.evaluation.surface import bounding_box
from liverseg_tf.labels import LIVER, LIVER_CLASSES, ClassSet


@dataclass(frozen=True, eq=False)
class Region:
    """The voxels to explain.

    Attributes:
        name: as in file names: `lesion-1`, `tumour`, `liver`, `point`.
        label: class index whose logits are summed.
        first_slice: the slice, from inferior, that `mask` begins with.
        mask: (rows, columns, slices) bool, only the slices that hold the region.
        lesion: its number, as `statistics` has it; None for what isn't one lesion.
        class_name: the class's name.
    """

    name: str
    label: int
    first_slice: int
    mask: np.ndarray = field(repr=False)
    lesion: int | None = None
    class_name: str = ""

    @property
    def slices(self) -> range:
        """Indices of the slices, from inferior."""
        return range(self.first_slice, self.first_slice + self.mask.shape[2])

    @property
    def largest_slice(self) -> int:
        """Index of the slice, from inferior, where the region has most voxels."""
        return self.first_slice + int(np.count_nonzero(self.mask, axis=(0, 1)).argmax())


def find_regions(
    labels: np.ndarray,
    geometry: Geometry,
    target: str = "tumour",
    lesion: int | None = None,
    point: Sequence[float] | None = None,
    radius_mm: float = 10.0,
    classes: ClassSet = LIVER_CLASSES,
) -> list[Region]:
    """Find the regions to explain.

    Args:
        labels: (rows, columns, slices) integer, of `classes`: the mask whose regions are meant.
        geometry: grid of the file that the mask lies on.
        target: the lesion's name, as "tumour", gives one region for each lesion, "all-" before it one for all of them
            together, the organ's, as "liver", the organ with its lesions, a further structure's that one.
        lesion: only this lesion, counted from 1, the largest first.
        point: voxel (x, y, z) of the file, counted from 0, whose surroundings are meant, whatever `labels` says there;
            the class is that of `target`.
        radius_mm: how far around the point.
        classes: what the labels are.

    Returns:
        Regions, the largest lesion first; none if the mask has none.

    Raises:
        ConfigError: for an unknown target, a lesion that is not there, or a radius that is not positive.
        GeometryError: for a point outside the volume.

    Examples:
        >>> labels = np.zeros((8, 8, 8), np.uint8)
        >>> labels[2:4, 2:4, 5] = 2
        >>> find_regions(labels, Geometry((8, 8, 8), np.eye(4)))[0].slices
        range(5, 6)
    """
    check_request(geometry, target, lesion, point, radius_mm, classes)
    name = target.removeprefix("all-") if target not in classes.names else target
    label = classes.names.index(name)
    if point is not None:
        return [_cut("point", label, _ball(point, radius_mm, geometry), name)]
    if name != classes.lesion or target != name:
        held = bounding_box(labels)
        if held is None:
            return []
        among = labels[..., held[2]]
        own = np.isin(among, classes.organ_indices) if label == LIVER else among == label
        return [_cut(name, label, own, name, held[2].start)] if own.any() else []
    numbered, box = numbered_lesions(classes.organ_part(labels))
    boxes = ndimage.find_objects(numbered) if box else []
    count = len(boxes)
    if lesion is None and not count:
        return []
    if box is None or (lesion is not None and lesion > count):
        there = f"expected a lesion from 1 to {count}, the mask's last" if count else "the mask has no lesion"
        raise ConfigError(f"explanation: {there}. Received: {lesion}")

    def region(number: int) -> Region:
        slices = boxes[number - 1][2]
        # column by column: those without the lesion take no memory
        mask = np.zeros((*labels.shape[:2], slices.stop - slices.start), bool, order="F")
        mask[box[:2]] = numbered[..., slices] == number
        return Region(f"lesion-{number}", label, box[2].start + slices.start, mask, number, name)

    if lesion is None:
        return [region(number) for number in range(1, count + 1)]
    return [region(lesion)]


def check_request(
    geometry: Geometry,
    target: str,
    lesion: int | None,
    point: Sequence[float] | None,
    radius_mm: float,
    classes: ClassSet = LIVER_CLASSES,
) -> None:
    """Check the request as far as possible without a mask.

    Raises:
        ConfigError, GeometryError: as `find_regions`.
    """
    if target not in (targets := targets_of(classes)):
        raise ConfigError(
            f"explanation target: expected {', '.join(targets[:-1])} or {targets[-1]}. Received: {target!r}"
        )
    if point is not None and lesion is not None:
        raise ConfigError("explanation: give a lesion or a point, not both")
    if lesion is not None and classes.lesion is None:
        raise ConfigError(f"explanation: {classes.organ} has no class of lesions; name a target. Received: {lesion}")
    if lesion is not None and target != classes.lesion:
        raise ConfigError(
            f"explanation: lesion {lesion} is a {classes.lesion}; leave the target at {classes.lesion}. "
            f"Received: {target!r}"
        )
    if lesion is not None and lesion < 1:
        raise ConfigError(f"explanation: expected a lesion counted from 1. Received: {lesion}")
    if point is None:
        return
    voxel = np.asarray(point, np.float64)
    if voxel.shape != (3,) or not ((voxel >= 0) & (voxel <= np.array(geometry.shape) - 1)).all():
        raise GeometryError(
            f"point: expected a voxel (x, y, z) from 0,0,0 to {','.join(str(n - 1) for n in geometry.shape)}, "
            f"got {','.join(f'{v:g}' for v in np.ravel(voxel))}"
        )
    if not radius_mm > 0:
        raise ConfigError(f"radius: expected more than 0 mm. Received: {radius_mm}")


def targets_of(classes: ClassSet) -> list[str]:
    """Possible targets; the first is the default."""
    lesions = [] if classes.lesion is None else [classes.lesion, f"all-{classes.lesion}"]
    return [*lesions, classes.organ, *(c.name for c in classes.further)]


def _cut(name: str, label: int, mask: np.ndarray, class_name: str, first_slice: int = 0) -> Region:
    """The region of a mask whose first slice is `first_slice` of the volume."""
    held = np.flatnonzero(mask.any(axis=(0, 1)))
    cut = np.ascontiguousarray(mask[..., held[0] : held[-1] + 1])
    return Region(name, label, first_slice + int(held[0]), cut, None, class_name)


def _ball(point: Sequence[float], radius_mm: float, geometry: Geometry) -> np.ndarray:
    to_canonical = np.linalg.inv(geometry.canonical_affine) @ geometry.affine
    center = np.rint(nib.affines.apply_affine(to_canonical, np.asarray(point, np.float64))).astype(int)
    away = np.ogrid[tuple(slice(-c, n - c) for n, c in zip(geometry.canonical_shape, center, strict=True))]
    return sum(sum(s * a for s, a in zip(row, away, strict=True)) ** 2 for row in geometry.steps_mm) <= radius_mm**2
