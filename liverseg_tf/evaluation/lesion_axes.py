"""Diameters of lesions, with their end points: what a radiologist draws, computed from the mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # its parts are loaded where they are first used: not every mask has lesions

from liverseg_tf.data.volume import Geometry
from liverseg_tf.evaluation.lesions import label_lesions
from liverseg_tf.evaluation.surface import Box, class_box
from liverseg_tf.labels import TUMOUR

# Variance of a count of pixels for each pixel's length of outline (Matheron 1971).
_WITHIN_SLICES = 0.0728
# Standard deviations of volumes on so many slices.
_FEW_SLICES = {1: 1.0, 2: 0.14}

Line = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class LesionAxes:
    """Diameters of one lesion.

    Attributes:
        long_axis_mm: longest diameter in an axial slice, of all slices (RECIST 1.1).
        short_axis_mm: longest diameter perpendicular to it in the same slice.
        slice: index from 0 of that slice, counted from the feet.
        long_axis_ends_mm, short_axis_ends_mm: both end points in RAS+ coordinates.
        largest_diameter_mm: longest distance between two points of the lesion, in any direction.
        largest_diameter_ends_mm: its end points.
    """

    long_axis_mm: float
    short_axis_mm: float
    slice: int
    long_axis_ends_mm: Line
    short_axis_ends_mm: Line
    largest_diameter_mm: float
    largest_diameter_ends_mm: Line


def numbered_lesions(labels: np.ndarray) -> tuple[np.ndarray, Box | None]:
    """Number a mask's lesions from 1, the largest first: the numbers of `statistics`, of every table and DICOM object.

    Args:
        labels: (rows, columns, slices) of 0, 1 and 2.

    Returns:
        (I, J, K) int32, 0 outside lesions, of the smallest box that holds them all; and the box, None without lesions.

    Example:
        >>> numbered_lesions(np.array([[[2, 0, 2, 2]]]))[0]
        array([[[2, 0, 1, 1]]], dtype=int32)
    """
    box = class_box(labels, TUMOUR)
    if box is None:
        return np.zeros((0, 0, 0), np.int32), None
    found, count = label_lesions(labels[box] == TUMOUR)
    order = np.argsort(-np.bincount(found.ravel(), minlength=count + 1)[1:], kind="stable")
    rank = np.zeros(count + 1, np.int32)
    rank[order + 1] = np.arange(1, count + 1)
    return np.take(rank, found, out=found, mode="clip"), box  # every number has a rank: in place, without a copy


def volume_sd(lesion: np.ndarray, steps_mm: np.ndarray) -> float:
    """Standard deviation of a lesion's volume that is due to voxels alone, as a fraction of the volume.

    If the scan had begun half a slice higher, the same lesion would have another number of voxels. How much that
    changes its volume is estimated from its areas and outlines in the slices across the coarsest axis (Gundersen 1999,
    "The efficiency of systematic sampling in stereology - reconsidered"). One or two slices don't show a lesion's
    shape: there it is a fixed value, from ellipsoids put at random on such slices. Errors of readers or models are not
    included.

    Args:
        lesion: (rows, columns, slices) bool, at least one voxel.
        steps_mm: (3, 3) along the axes, in mm.

    Examples:
        >>> near = np.linalg.norm(np.indices((23, 23, 23)) - 11, axis=0)
        >>> round(volume_sd(near < 10, np.eye(3)), 3)
        0.002
        >>> round(volume_sd(near[..., 1::5] < 10, np.diag([1, 1, 5])), 3)
        0.026
    """
    coarsest = int(np.linalg.norm(steps_mm, axis=0).argmax())
    slices = np.moveaxis(lesion, coarsest, 2)
    slices = slices[..., slices.any(axis=(0, 1))]
    areas = np.count_nonzero(slices, axis=(0, 1)).astype(np.float64)
    padded = np.pad(slices, ((1, 1), (1, 1), (0, 0)))
    # an outline's length is pi / 4 of its voxels' edges, over all directions
    outlines = np.pi / 4 * sum(float(np.count_nonzero(np.diff(padded, axis=axis))) for axis in (0, 1))
    within = _WITHIN_SLICES * outlines
    at, next_to, two_apart = (float(areas[k:] @ areas[: len(areas) - k]) for k in range(3))
    across = max(3 * (at - within) - 4 * next_to + two_apart, 0.0) / 240
    return max(float(np.sqrt(across + within) / areas.sum()), _FEW_SLICES.get(len(areas), 0.0))


def lesion_axes(lesion: np.ndarray, geometry: Geometry, offset: tuple[int, int, int] = (0, 0, 0)) -> LesionAxes:
    """Measure one lesion's diameters.

    A voxel reaches from its centre to the middles of its faces, so a single voxel is as long as its spacing. The short
    axis is the widest chord of the slice's convex hull at a right angle to the long axis.

    Args:
        lesion: (rows A->P, columns R->L, slices I->S) bool, at least one voxel.
        geometry: of the whole mask; sheared grids are measured as they lie.
        offset: index of the array's first voxel in the mask, in the canonical view.

    Example:
        >>> geometry = Geometry.from_spacing((9, 9, 9), (1.0, 2.0, 3.0))
        >>> axes = lesion_axes(np.ones((1, 4, 1), bool), geometry)
        >>> axes.long_axis_mm, axes.short_axis_mm
        (8.0, 1.0)
    """
    steps = geometry.steps_mm
    length, ends, hull, index = -np.inf, np.empty((0, 2)), np.empty((0, 2)), 0
    for at in np.flatnonzero(lesion.any(axis=(0, 1))):
        points = _faces(np.argwhere(lesion[..., at]))
        flat = points @ steps[:2, :2].T
        outline = points[scipy.spatial.ConvexHull(flat).vertices]
        distance, pair = _farthest(outline, steps[:2, :2])
        if distance > length + 1e-9:
            length, ends, hull, index = distance, pair, outline, int(at)
    width, chord = _widest_across(hull, ends, steps[:2, :2])
    whole = _faces(np.argwhere(lesion & ~scipy.ndimage.binary_erosion(lesion)))
    mm = whole @ steps.T
    largest, largest_ends = _farthest(whole[scipy.spatial.ConvexHull(mm).vertices], steps)

    def place(points: np.ndarray) -> Line:
        if points.shape[1] == 2:
            points = np.column_stack([points, np.full(len(points), index)])
        affine = geometry.canonical_affine
        ends_mm = (points + offset) @ affine[:3, :3].T + affine[:3, 3]
        first, second = ends_mm.round(3).tolist()
        return tuple(first), tuple(second)

    return LesionAxes(
        long_axis_mm=length,
        short_axis_mm=width,
        slice=index + offset[2],
        long_axis_ends_mm=place(ends),
        short_axis_ends_mm=place(chord),
        largest_diameter_mm=largest,
        largest_diameter_ends_mm=place(largest_ends),
    )


def _faces(voxels: np.ndarray) -> np.ndarray:
    """Middles of all faces (edges in 2-D) of voxels (N, D), in index units."""
    half = np.eye(voxels.shape[1]) / 2
    return (voxels[:, None] + np.concatenate([half, -half])).reshape(-1, voxels.shape[1])


def _farthest(points: np.ndarray, steps: np.ndarray) -> tuple[float, np.ndarray]:
    """Largest distance in mm between points in index units, and the two points."""
    mm = points @ steps.T
    distances = scipy.spatial.distance.pdist(mm)
    pair = np.stack(np.triu_indices(len(points), 1))[:, distances.argmax()]
    return float(distances.max()), points[pair]


def _widest_across(hull: np.ndarray, ends: np.ndarray, steps: np.ndarray) -> tuple[float, np.ndarray]:
    """Longest chord of a convex polygon (N, 2) perpendicular to a line: it begins at one of the corners."""
    mm = hull @ steps.T
    along = np.diff(ends @ steps.T, axis=0)[0]
    along /= np.linalg.norm(along)
    across = np.array([-along[1], along[0]])
    at, height = mm @ along, mm @ across
    next_at, next_height = np.roll(at, -1), np.roll(height, -1)
    best, chord = -1.0, (0.0, 0.0, 0.0)
    for place in at:
        crosses = (np.minimum(at, next_at) <= place + 1e-9) & (np.maximum(at, next_at) >= place - 1e-9)
        run = next_at[crosses] - at[crosses]
        share = np.where(np.abs(run) > 1e-9, (place - at[crosses]) / np.where(np.abs(run) > 1e-9, run, 1), 0.0)
        heights = np.concatenate(
            [height[crosses] + share.clip(0, 1) * (next_height - height)[crosses], height[np.abs(at - place) < 1e-9]]
        )
        if heights.max() - heights.min() > best:
            best, chord = float(heights.max() - heights.min()), (place, heights.min(), heights.max())
    place, low, high = chord
    found = np.array([place * along + low * across, place * along + high * across])
    return best, found @ np.linalg.inv(steps).T
