"""3-D clean-up of predicted labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse

from liverseg_tf.config import Config
from liverseg_tf.labels import BACKGROUND, LIVER, TUMOUR

_ROWS_A_SLAB = 16


@dataclass(frozen=True)
class PostProcessing(Config):
    """What is done to a predicted volume.

    Attributes:
        smoothing_mm: standard deviation, in mm, of the Gaussian that smooths the network's probabilities from slice to
            slice, since it sees each slice by itself; 0 for none. A server's labels are taken as they come:
            probabilities would be twelve times as many bytes.
        largest_liver: keep the largest connected piece of liver and tumour together; a patient has one liver.
        fill_holes: make background that liver encloses in 3-D liver.
        smallest_lesion_ml: smaller connected pieces of tumour become liver; 0 keeps all. By default a ball of 5 mm, as
            small as the synthetic lesions that the shipped model learned from: smaller findings are rarely one.
    """

    smoothing_mm: float = 2.0
    largest_liver: bool = True
    fill_holes: bool = True
    smallest_lesion_ml: float = 0.065

    def __call__(
        self, labels: np.ndarray, spacing_mm: tuple[float, float, float], voxel_volume_ml: float | None = None
    ) -> np.ndarray:
        """Clean labels up; smoothing comes before, where the labels are made.

        Args:
            labels: (rows, columns, slices) uint8, changed in place.
            spacing_mm: distances along those axes, in mm.
            voxel_volume_ml: of the grid, as `Geometry.voxel_volume_ml`; by default that of perpendicular axes.

        Returns:
            `labels`.
        """
        boxes = [box for box in ndimage.find_objects(labels) if box]
        if not boxes:
            return labels
        labels_there = labels[
            tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))
        ]
        if self.largest_liver:
            liver = _Pieces(labels_there, lambda slab: slab != BACKGROUND)
            liver.relabel(np.arange(liver.count) != liver.voxels.argmax(), BACKGROUND)
        if self.fill_holes:
            background = _Pieces(labels_there, lambda slab: slab == BACKGROUND)
            background.relabel(~background.is_outer, LIVER)
        if self.smallest_lesion_ml > 0:
            lesions = _Pieces(labels_there, lambda slab: slab == TUMOUR)
            voxel_ml = math.prod(spacing_mm) / 1000 if voxel_volume_ml is None else voxel_volume_ml
            lesions.relabel(lesions.voxels * voxel_ml < self.smallest_lesion_ml, LIVER)
        return labels


class SliceSmoother:
    """Smooths slices by those above and below, as they come.

    Args:
        sigma: of the Gaussian, in slices, above 0. It is cut at three sigma, and at the volume's ends.

    Examples:
        >>> smoother = SliceSmoother(1.0)
        >>> parts = smoother.add(np.zeros((2, 4, 4, 3), "float32")), smoother.add(np.zeros((9, 4, 4, 3), "float32"))
        >>> [len(part) for part in (*parts, smoother.rest())]
        [0, 8, 3]
    """

    def __init__(self, sigma: float):
        self._sigma, self._radius = sigma, math.ceil(3 * sigma)
        self._window: np.ndarray | None = None  # slices that are still needed, the first `_done` of them smoothed
        self._done = 0

    def add(self, values: np.ndarray) -> np.ndarray:
        """Take further slices (n, ...) float32; gives those, in order, whose neighbours are all there."""
        self._window = values if self._window is None else np.concatenate([self._window, values])
        return self._smoothed(max(len(self._window) - self._radius, self._done))

    def rest(self) -> np.ndarray:
        """The last slices."""
        return self._smoothed(len(self._window))

    def _smoothed(self, end: int) -> np.ndarray:
        distances = np.arange(self._done, end)[:, None] - np.arange(len(self._window))
        weights = np.exp(-0.5 * (distances / self._sigma) ** 2) * (np.abs(distances) <= self._radius)
        weights /= weights.sum(1, keepdims=True)
        smoothed = np.tensordot(weights.astype(np.float32), self._window, 1)
        first = max(end - self._radius, 0)
        self._window, self._done = self._window[first:], end - first
        return smoothed


class _Pieces:
    """The connected pieces of a class; neighbours share a face.

    They are numbered slab by slab and joined across the slabs' faces: numbers take four bytes a voxel, and a CT from
    head to foot has a quarter of a billion voxels. A slab is numbered anew when its pieces are relabelled.

    Args:
        labels: (rows, columns, slices) uint8.
        of_class: gives the bool mask of a slab (rows, columns, slices) of labels.

    Attributes:
        count: how many pieces there are; they are counted from 0, in the order of their first voxels.
        voxels: (count,) int, voxels of each.
        is_outer: (count,) bool, true for pieces that reach the array's border.
    """

    def __init__(self, labels: np.ndarray, of_class: Callable[[np.ndarray], np.ndarray]):
        self._labels, self._of_class = labels, of_class
        starts, voxels, outer, joined, below = [0], [], [], [], None
        for slab in self._slabs():
            numbers, count = ndimage.label(of_class(slab))
            voxels.append(np.bincount(numbers.ravel(), minlength=count + 1)[1:])
            faces = [numbers[:, [0, -1]], numbers[:, :, [0, -1]]]
            if below is None:
                faces.append(numbers[0])
            else:
                touching = (below > 0) & (numbers[0] > 0)
                pairs = np.unique(below[touching].astype(np.int64) * (count + 1) + numbers[0][touching])
                joined.append(np.stack(np.divmod(pairs, count + 1)) + [[starts[-2] - 1], [starts[-1] - 1]])
            outer.append(starts[-1] + _numbers_in(faces))
            starts.append(starts[-1] + count)
            below = numbers[-1].copy()
        outer.append(starts[-2] + _numbers_in([below]))
        first, second = np.concatenate(joined, axis=1) if joined else np.empty((2, 0), int)
        graph = sparse.coo_array((np.ones(len(first), bool), (first, second)), (starts[-1],) * 2)
        self.count, piece = sparse.csgraph.connected_components(graph, directed=False)
        self._pieces_of_slabs = np.split(piece, starts[1:-1])
        self.voxels = np.bincount(piece, np.concatenate(voxels), minlength=self.count).astype(np.int64)
        self.is_outer = np.zeros(self.count, bool)
        self.is_outer[piece[np.concatenate(outer)]] = True

    def relabel(self, chosen: np.ndarray, label: int) -> None:
        """Give the voxels of the chosen pieces, (count,) bool, another label."""
        for slab, pieces in zip(self._slabs(), self._pieces_of_slabs, strict=True):
            chosen_there = np.concatenate([[False], chosen[pieces]])
            if chosen_there.any():
                numbers, _ = ndimage.label(self._of_class(slab))
                slab[chosen_there[numbers]] = label

    def _slabs(self) -> list[np.ndarray]:
        """Views of the labels, a few rows each: rows lie furthest apart in memory."""
        return [self._labels[first : first + _ROWS_A_SLAB] for first in range(0, len(self._labels), _ROWS_A_SLAB)]


def _numbers_in(faces: list[np.ndarray]) -> np.ndarray:
    """Pieces, from 0 within their slab, that the faces show."""
    numbers = np.unique(np.concatenate([face.ravel() for face in faces]))
    return numbers[numbers > 0] - 1
