"""3-D post-processing of predicted labels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import edt
import numpy as np

from liverseg_tf.config import Config
from liverseg_tf.errors import ConfigError
from liverseg_tf.evaluation.surface import class_box
from liverseg_tf.inference.pieces import ROWS_A_SLAB, Pieces
from liverseg_tf.inference.threads import usable_threads
from liverseg_tf.labels import BACKGROUND, LIVER, LIVER_CLASSES, TUMOUR, ClassSet

# Largest radius, in slice spacings, of tumour that is believed though one slice alone shows it. A ball with a radius of
# one spacing would reach the next slice; twice that, as the network may miss its thin end.
_BROAD = 2.0
# With more shifts than this a distance map is faster.
_MOST_SHIFTS = 100


@dataclass(frozen=True)
class PostProcessing(Config):
    """Post-processing of a predicted volume.

    Attributes:
        smoothing_mm: standard deviation, in mm, of the Gaussian that smooths the network's probabilities from slice to
            slice, because the network sees single slices; 0 for none. A server's labels are not smoothed:
            sending probabilities would take twelve times as many bytes.
        bridge_mm: drop parts that are joined to the rest only by bridges up to this width, if most of the part is
            tumour (stomach contents mistaken for tumour, for example); 0 for none.
        largest_liver: keep only the largest connected component of liver and tumour together; a patient has one liver.
        fill_holes: give background that liver and tumour enclose in 3-D the class that most of its surface touches;
            liver that tumour encloses becomes tumour.
        least_liver_contact: drop a connected component of tumour if less than this share of its surface borders on
            liver rather than on background; 0 for none.
        drop_single_slices: tumour in a single slice becomes liver if it is so broad that a ball of that area would
            reach beyond the next slices.
        smallest_lesion_ml: smaller connected components of tumour become liver; 0 keeps all. The default is a ball of 5
            mm diameter, the size of the smallest synthetic lesions in the shipped model's training: smaller findings
            are rarely lesions.

    Raises:
        ConfigError: for a negative number, or a share above 1.

    Examples:
        >>> PostProcessing(bridge_mm=0).smoothing_mm  # switches one rule off
        2.0
    """

    smoothing_mm: float = 2.0
    bridge_mm: float = 4.0
    largest_liver: bool = True
    fill_holes: bool = True
    least_liver_contact: float = 0.25
    drop_single_slices: bool = True
    smallest_lesion_ml: float = 0.065

    def __post_init__(self) -> None:
        for name in ("smoothing_mm", "bridge_mm", "least_liver_contact", "smallest_lesion_ml"):
            most = 1 if name == "least_liver_contact" else math.inf
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(
                    f"{name}: expected a number of at least 0{'' if most > 1 else ', at most 1'}. "
                    f"Received: {getattr(self, name)}"
                )

    def __call__(
        self,
        labels: np.ndarray,
        spacing_mm: tuple[float, float, float],
        voxel_volume_ml: float | None = None,
        classes: ClassSet = LIVER_CLASSES,
    ) -> np.ndarray:
        """Post-process labels. Smoothing is not part of it: `Predictor` smooths probabilities before it makes labels.

        Args:
            labels: (rows, columns, slices) uint8, changed in place.
            spacing_mm: distances along those axes, in mm.
            voxel_volume_ml: as `Geometry.voxel_volume_ml`; by default computed for perpendicular axes.
            classes: the classes of the labels; further structures are not changed.

        Returns:
            `labels`.
        """
        if labels.size and labels.max() >= classes.organ_indices.stop:
            organ = self(classes.organ_part(labels), spacing_mm, voxel_volume_ml)
            np.copyto(labels, organ, where=labels < classes.organ_indices.stop)
            return labels
        there = _occupied(labels)
        if there is not None and self.largest_liver:
            _keep_largest(there)
            there = _occupied(there)
        if there is None:
            return labels
        if self.bridge_mm > 0 and (there == TUMOUR).any():
            _drop_tumour_on_bridges(there, spacing_mm, self.bridge_mm)
        if self.fill_holes:
            _fill_holes(there, spacing_mm)
        if self.least_liver_contact > 0:
            lesions = Pieces(there, lambda slab: slab == TUMOUR)
            faces = lesions.faces(spacing_mm)
            least = self.least_liver_contact * (faces[:, LIVER] + faces[:, BACKGROUND])
            lesions.relabel(faces[:, LIVER] < least, BACKGROUND)
        if self.largest_liver:  # drop what was connected only through the dropped tumour
            _keep_largest(there)
        lesions = Pieces(there, lambda slab: slab == TUMOUR)
        voxel_ml = math.prod(spacing_mm) / 1000 if voxel_volume_ml is None else voxel_volume_ml
        unlikely = lesions.voxels * voxel_ml < self.smallest_lesion_ml
        if self.drop_single_slices and labels.shape[2] > 1:
            area_mm2 = lesions.voxels * (voxel_ml * 1000 / spacing_mm[2])
            unlikely |= (lesions.depth() == 1) & (area_mm2 > math.pi * (_BROAD * spacing_mm[2]) ** 2)
        lesions.relabel(unlikely, LIVER)
        return labels


DEFAULT = PostProcessing()
# For other organs: that a patient has one of them, and what its lesions look like, is known for the liver only.
OTHER_ORGANS = PostProcessing(
    bridge_mm=0, largest_liver=False, least_liver_contact=0, drop_single_slices=False, smallest_lesion_ml=0
)


class SliceSmoother:
    """Smooths each slice with its neighbours above and below, as slices arrive.

    Args:
        sigma: standard deviation of the Gaussian in slices, above 0. The Gaussian is truncated at three sigma and at
            the volume's ends.

    Attributes:
        radius: how many slices to either side are used.

    Examples:
        >>> smoother = SliceSmoother(1.0)
        >>> parts = smoother.add(np.zeros((2, 4, 4, 3), "float32")), smoother.add(np.zeros((9, 4, 4, 3), "float32"))
        >>> [len(part) for part in (*parts, smoother.rest())]
        [0, 8, 3]
    """

    def __init__(self, sigma: float):
        self._sigma, self.radius = sigma, math.ceil(3 * sigma)
        self._window: list[np.ndarray] = []  # slices that are still needed, the first `_done` of them smoothed
        self._done = 0

    def add(self, values: np.ndarray) -> np.ndarray:
        """Add slices (n, ...) float32; returns, in order, the smoothed slices whose neighbours have all arrived."""
        self._window.extend(values)
        return self._smoothed(max(len(self._window) - self.radius, self._done), values)

    def rest(self) -> np.ndarray:
        """The remaining smoothed slices."""
        return self._smoothed(len(self._window), np.empty((0, *self._window[0].shape), np.float32))

    def _smoothed(self, end: int, like: np.ndarray) -> np.ndarray:
        smoothed = np.zeros((end - self._done, *like.shape[1:]), np.float32)
        for place, total in enumerate(smoothed, start=self._done):
            first = max(place - self.radius, 0)
            distances = np.arange(first, min(place + self.radius + 1, len(self._window))) - place
            weights = np.exp(-0.5 * (distances / self._sigma) ** 2)
            for weight, values in zip((weights / weights.sum()).astype(np.float32), self._window[first:], strict=False):
                total += weight * values
        first = max(end - self.radius, 0)
        self._window, self._done = self._window[first:], end - first
        return smoothed


def _occupied(labels: np.ndarray) -> np.ndarray | None:
    """The part of the volume that holds labels, as a view."""
    for axis in (2, 0, 1):  # slices first: most are empty
        there = np.flatnonzero(labels.any(tuple({0, 1, 2} - {axis})))
        if not len(there):
            return None
        labels = labels[(slice(None),) * axis + (slice(there[0], there[-1] + 1),)]
    return labels


def _keep_largest(labels: np.ndarray) -> None:
    liver = Pieces(labels, lambda slab: slab != BACKGROUND)
    if liver.count > 1:
        liver.relabel(np.arange(liver.count) != liver.voxels.argmax(), BACKGROUND)


def _drop_tumour_on_bridges(labels: np.ndarray, spacing_mm: tuple[float, float, float], width_mm: float) -> None:
    """Cut bridges through liver and tumour together, and drop the parts that are mostly tumour.

    Voxels deeper than half the width are a part's core. With a dropped core go the voxels that are nearer to it than to
    any kept core, up to the width away.
    """
    cores = np.zeros(labels.shape, np.uint8)
    # depths are measured to the background's first voxel, half a voxel beyond the surface
    least_mm = (width_mm + min(spacing_mm)) / 2
    for rows, wider, inner in _overlapping_slabs(len(labels), least_mm / spacing_mm[0]):
        cores[rows] = _is_deeper(labels[wider] != BACKGROUND, least_mm, spacing_mm)[inner]
    parts = Pieces(cores, lambda slab: slab == 1)
    dropped = 2 * parts.count_where(labels == TUMOUR) > parts.voxels
    dropped[parts.voxels.argmax() if parts.count else []] = False
    if not dropped.any():
        return
    parts.relabel(dropped, 2)
    box = class_box(cores, 2)
    assert box is not None
    more = [math.ceil(width_mm / mm) + 1 for mm in spacing_mm]
    box = tuple(slice(max(side.start - n, 0), side.stop + n) for side, n in zip(box, more, strict=True))
    labels, cores = labels[box], cores[box]
    for rows, wider, inner in _overlapping_slabs(len(labels), width_mm / spacing_mm[0]):
        if (cores[wider] == 2).any():
            to_dropped_mm, to_kept_mm = (_depth_mm(cores[wider] != part, spacing_mm)[inner] for part in (2, 1))
            labels[rows][(to_dropped_mm <= width_mm) & (to_dropped_mm < to_kept_mm)] = BACKGROUND


def _is_deeper(mask: np.ndarray, least_mm: float, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Which voxels of a mask are farther than a distance from each voxel outside it.

    A short distance needs no distance map: the mask is shifted to all voxels of a ball, column runs of it at a time.
    """
    rows, columns, slices = (int(least_mm / mm) for mm in spacing_mm)
    if (2 * rows + 1) * (2 * slices + 1) > _MOST_SHIFTS:
        return _depth_mm(mask, spacing_mm) > least_mm
    eroded = [mask]  # along columns, by 0, 1, 2 ... voxels
    for _ in range(columns):
        eroded.append(eroded[-1].copy(order="K"))
        eroded[-1][:, 1:] &= eroded[-2][:, :-1]
        eroded[-1][:, :-1] &= eroded[-2][:, 1:]
    deep = mask.copy(order="K")
    for row, plane in itertools.product(range(-rows, rows + 1), range(-slices, slices + 1)):
        left_mm2 = least_mm**2 - (row * spacing_mm[0]) ** 2 - (plane * spacing_mm[2]) ** 2
        if left_mm2 >= 0:
            here, there = ((_shifted(row * sign), slice(None), _shifted(plane * sign)) for sign in (1, -1))
            deep[here] &= eroded[int(math.sqrt(left_mm2) / spacing_mm[1])][there]
    return deep


def _depth_mm(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Distance in mm of each voxel of a mask to the nearest voxel outside it."""
    return edt.edt(np.ascontiguousarray(mask), anisotropy=spacing_mm, parallel=usable_threads())


def _shifted(by: int) -> slice:
    return slice(max(by, 0), min(by, 0) or None)


def _fill_holes(labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> None:
    background = Pieces(labels, lambda slab: slab == BACKGROUND)
    holes = ~background.is_outer
    if holes.any():
        faces = background.faces(spacing_mm, holes)
        background.relabel(holes, np.where(faces[:, TUMOUR] > faces[:, LIVER], TUMOUR, LIVER))
    if (labels == TUMOUR).any():
        liver = Pieces(labels, lambda slab: slab == LIVER)
        enclosed = ~liver.is_outer
        enclosed[liver.voxels.argmax() if liver.count else []] = False
        if enclosed.any():
            liver.relabel(enclosed & (liver.faces(spacing_mm, enclosed)[:, BACKGROUND] == 0), TUMOUR)


def _overlapping_slabs(count: int, overlap: float) -> Iterator[tuple[slice, slice, slice]]:
    """For each slab: its rows, those with `overlap` more on each side, and the former's position in the latter."""
    more = math.ceil(overlap) + 1
    step = max(4 * ROWS_A_SLAB, more)
    for first in range(0, count, step):
        last, start = min(first + step, count), max(first - more, 0)
        yield slice(first, last), slice(start, min(last + more, count)), slice(first - start, last - start)
