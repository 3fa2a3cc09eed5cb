"""Distances between the surfaces of two masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are loaded where they are first used
from edt import edt

# One slice for each axis.
Box = tuple[slice, ...]


def bounding_box(mask: np.ndarray) -> Box | None:
    """Smallest box around all voxels that are not 0, found without an array of the mask's size.

    Args:
        mask: any number of axes, bool or labels.

    Returns:
        One slice per axis, or None for an empty mask.

    Examples:
        >>> bounding_box(np.array([[False, True], [False, True]]))
        (slice(0, 2, None), slice(1, 2, None))
    """
    box = [slice(None)] * mask.ndim
    for axis in reversed(range(mask.ndim)):  # slices first: most of them are empty, and are then skipped
        hits = np.flatnonzero(mask[tuple(box)].any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not hits.size:
            return None
        box[axis] = slice(int(hits[0]), int(hits[-1]) + 1)
    return tuple(box)


def class_box(labels: np.ndarray, label: int) -> Box | None:
    """Smallest box around one class, found plane by plane, thus without a mask of all voxels.

    Examples:
        >>> class_box(np.array([[0, 1, 2]]), 2)
        (slice(0, 1, None), slice(2, 3, None))
    """
    slowest = int(np.argmax(np.abs(labels.strides)))
    planes = np.moveaxis(labels, slowest, 0)
    hits = [np.zeros(count, bool) for count in planes.shape]
    for index, plane in enumerate(planes):
        there = bounding_box(plane == label)
        if there is not None:
            hits[0][index] = True
            for hit, part in zip(hits[1:], there, strict=True):
                hit[part] = True
    if not hits[0].any():
        return None
    box = [slice(int(hit.argmax()), len(hit) - int(hit[::-1].argmax())) for hit in hits]
    box.insert(slowest, box.pop(0))
    return tuple(box)


def within(outer: Box, inner: Box) -> Box:
    """The box `inner`, given in a crop by `outer`, in the whole array.

    Examples:
        >>> within((slice(5, 9),), (slice(1, 2),))
        (slice(6, 7, None),)
    """
    return tuple(slice(o.start + i.start, o.start + i.stop) for o, i in zip(outer, inner, strict=True))


def enclosing_box(boxes: Sequence[Box]) -> Box:
    """Smallest box around at least one box.

    Examples:
        >>> enclosing_box([(slice(0, 2),), (slice(5, 6),)])
        (slice(0, 6, None),)
    """
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def surface_voxels(mask: np.ndarray) -> np.ndarray:
    """Surface of a mask.

    A voxel belongs to the surface if it lies in the mask and one of its 18 neighbours (by face or edge) does not;
    voxels beyond the array count as outside. The LiTS challenge's scorer and medpy's `Surface` use this surface.

    Args:
        mask: (I, J, K) bool.

    Returns:
        (I, J, K) bool.
    """
    return mask & ~scipy.ndimage.binary_erosion(mask, scipy.ndimage.generate_binary_structure(3, 2))


@dataclass(frozen=True)
class SurfaceDistances:
    """Distance from every surface voxel of one mask to the nearest surface voxel of the other.

    Attributes:
        truth_mm: (N,) float64, from each voxel of the reference's surface to the prediction's surface.
        prediction_mm: (M,) float64, the other way.
    """

    truth_mm: np.ndarray
    prediction_mm: np.ndarray

    def _both(self) -> np.ndarray:
        return np.concatenate([self.truth_mm, self.prediction_mm])

    def assd(self) -> float:
        """Average symmetric surface distance in mm: the mean over the voxels of both surfaces (Heimann 2009)."""
        return float(self._both().mean())

    def rmsd(self) -> float:
        """Root mean square symmetric surface distance in mm, over the voxels of both surfaces (Heimann 2009)."""
        return float(np.sqrt(np.square(self._both()).mean()))

    def msd(self) -> float:
        """Maximum symmetric surface distance in mm: the Hausdorff distance (Heimann 2009)."""
        return float(self._both().max())

    def hd95(self) -> float:
        """95 % Hausdorff distance in mm: the larger of the two directions' 95th percentiles (Huttenlocher 1993)."""
        return float(max(np.percentile(self.truth_mm, 95), np.percentile(self.prediction_mm, 95)))

    def surface_dice(self, tolerance_mm: float) -> float:
        """Normalised surface Dice, 0 to 1: the part of both surfaces' voxels within the tolerance (Nikolov 2021).

        Each voxel counts as one; the `surface-distance` package weights surface elements by area instead, so its
        figures differ slightly.

        Args:
            tolerance_mm: the largest distance that counts as agreement.
        """
        # Half a micrometer: spacings are stored as float32, and a distance equal to the tolerance is within it.
        return float((self._both() <= tolerance_mm + 5e-4).mean())


def surface_distances(
    truth: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float] | np.ndarray
) -> SurfaceDistances | None:
    """Measure two masks' surfaces against each other.

    Uses the box around both masks, and an exact Euclidean distance transform (the `edt` package: about four times as
    fast as SciPy's, with less memory; unlike a k-d tree over surface voxels also for masks far apart). A sheared grid
    has no such transform; there a k-d tree is used.

    Args:
        truth: (I, J, K) bool.
        prediction: (I, J, K) bool.
        spacing_mm: voxel size along each axis; or (3, 3), whose columns are the steps along the axes in mm, as
            `Geometry.steps_mm` gives them.

    Returns:
        The distances, or None if one of the masks is empty.

    Examples:
        >>> a, b = np.zeros((2, 5, 5, 9), bool)
        >>> a[2, 2, 2] = b[2, 2, 6] = True
        >>> surface_distances(a, b, (1.0, 1.0, 2.5)).msd()
        10.0
    """
    boxes = [box for mask in (truth, prediction) if (box := bounding_box(mask))]
    if len(boxes) < 2:
        return None
    box = enclosing_box(boxes)
    truth_surface, prediction_surface = (surface_voxels(m[box]) for m in (truth, prediction))
    return SurfaceDistances(
        distances_mm(truth_surface, prediction_surface, spacing_mm),
        distances_mm(prediction_surface, truth_surface, spacing_mm),
    )


def distances_mm(start: np.ndarray, target: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """(N,) float64: from each voxel of `start`, in C order, to the nearest of `target`; see `surface_distances`."""
    steps_mm = np.asarray(spacing_mm, np.float64)
    if steps_mm.ndim == 2 and np.count_nonzero(steps_mm) > 3:
        places, targets = (np.argwhere(mask) @ steps_mm.T for mask in (start, target))
        return scipy.spatial.KDTree(targets).query(places)[0]
    spacing = np.diag(steps_mm) if steps_mm.ndim == 2 else steps_mm
    return edt(~target, anisotropy=tuple(map(float, spacing)), parallel=0)[start].astype(np.float64)
