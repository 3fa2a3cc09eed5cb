"""Connected components of a class in a volume of labels, in little memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import scipy  # its parts are loaded where they are first used

from liverseg_tf.labels import TUMOUR

ROWS_A_SLAB = 16
# Slabs of long scans have fewer rows: numbering takes thirteen bytes a voxel.
_VOXELS_A_SLAB = 1 << 20


class Pieces:
    """The connected components of a class; neighbours share a face.

    They are numbered slab by slab and joined across slabs to save memory: numbers take four bytes a voxel, and a
    whole-body CT has a quarter of a billion voxels. A slab is numbered again when its components are relabelled.

    Args:
        labels: (rows, columns, slices) uint8.
        of_class: returns the bool mask of a slab (rows, columns, slices) of labels.

    Attributes:
        count: number of components; they are numbered from 0, in the order of their first voxels.
        voxels: (count,) int, number of voxels of each.
        is_outer: (count,) bool, true for components that reach the array's border.
    """

    def __init__(self, labels: np.ndarray, of_class: Callable[[np.ndarray], np.ndarray]):
        self._labels, self._of_class = labels, of_class
        self._rows = min(ROWS_A_SLAB, max(1, _VOXELS_A_SLAB // max(1, math.prod(labels.shape[1:]))))
        starts, voxels, outer, joined = [0], [], [], []
        below: np.ndarray | None = None
        for slab in self._slabs():
            numbers, count = scipy.ndimage.label(of_class(slab))
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
        if below is not None:
            outer.append(starts[-2] + _numbers_in([below]))
        first, second = np.concatenate(joined, axis=1) if joined else np.empty((2, 0), int)
        self.count, piece = _connected(starts[-1], first, second)
        self._pieces_of_slabs = np.split(piece, starts[1:-1])
        self.voxels = np.bincount(piece, np.concatenate(voxels), minlength=self.count).astype(np.int64)
        self.is_outer = np.zeros(self.count, bool)
        self.is_outer[piece[np.concatenate(outer)]] = True

    def relabel(self, chosen: np.ndarray, label: int | np.ndarray) -> None:
        """Relabel the chosen components, (count,) bool, with one label, or each with its own of (count,) labels."""
        labels = np.broadcast_to(np.asarray(label, np.uint8), self.count)
        for first, numbers in self._numbered(chosen):
            there = numbers > 0
            self._labels[first : first + len(numbers)][there] = labels[numbers[there] - 1]

    def count_where(self, mask: np.ndarray) -> np.ndarray:
        """(count,) int, voxels of each component where a mask of the labels' shape is true."""
        return self.sums(mask).astype(np.int64)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(count,) float64, sum over each component of values of the labels' shape."""
        result = np.zeros(self.count)
        for first, numbers in self._numbered():
            there = numbers > 0
            weights = values[first : first + len(numbers)][there]
            result += np.bincount(numbers[there], weights, minlength=self.count + 1)[1:]
        return result

    def faces(self, spacing_mm: tuple[float, float, float], chosen: np.ndarray | None = None) -> np.ndarray:
        """(count, 3) float, mm^2 of each component's surface that borders on background, liver and tumour.

        Faces at the volume's border don't count. Rows of components that were not chosen are 0.
        """
        result = np.zeros((self.count, 3))
        for first, numbers in self._numbered(chosen):
            places = np.nonzero(numbers)
            pieces = numbers[places] - 1
            places = (places[0] + first, *places[1:])
            for axis, step in ((axis, step) for axis in range(3) for step in (-1, 1)):
                beside = places[axis] + step
                inside = (beside >= 0) & (beside < self._labels.shape[axis])
                at = tuple((beside if a == axis else places[a])[inside] for a in range(3))
                kinds = pieces[inside] * 3 + np.minimum(self._labels[at], TUMOUR)
                area_mm2 = math.prod(spacing_mm) / spacing_mm[axis]
                result += np.bincount(kinds, minlength=self.count * 3).reshape(-1, 3) * area_mm2
        return result

    def depth(self) -> np.ndarray:
        """(count,) int, number of slices that each component spans."""
        first_slice, last_slice = np.full(self.count, self._labels.shape[2]), np.full(self.count, -1)
        for _, numbers in self._numbered():
            places = np.nonzero(numbers)
            pieces = numbers[places] - 1
            np.minimum.at(first_slice, pieces, places[2])
            np.maximum.at(last_slice, pieces, places[2])
        return last_slice - first_slice + 1

    def _numbered(self, chosen: np.ndarray | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Slabs with chosen components: the first row, and each voxel's component number from 1, 0 elsewhere."""
        for index, (slab, pieces) in enumerate(zip(self._slabs(), self._pieces_of_slabs, strict=True)):
            numbers_of = pieces + 1 if chosen is None else np.where(chosen[pieces], pieces + 1, 0)
            if numbers_of.any():
                numbers, _ = scipy.ndimage.label(self._of_class(slab))
                yield index * self._rows, np.concatenate([[0], numbers_of])[numbers]

    def _slabs(self) -> list[np.ndarray]:
        """Views of the labels, a few rows each."""
        return [self._labels[first : first + self._rows] for first in range(0, len(self._labels), self._rows)]


def _connected(count: int, first: np.ndarray, second: np.ndarray) -> tuple[int, np.ndarray]:
    """How many pieces `count` parts make where those of each pair are joined, and each part's piece, from 0.

    Pieces are in the order of their first parts. As `scipy.sparse.csgraph.connected_components`, which takes longer to
    import than most volumes take here.
    """
    piece = np.arange(count)
    while len(first):
        lower = np.minimum(piece[first], piece[second])
        np.minimum.at(piece, piece[first], lower)
        np.minimum.at(piece, piece[second], lower)
        while (piece != (next_piece := piece[piece])).any():
            piece = next_piece
        apart = piece[first] != piece[second]
        first, second = first[apart], second[apart]
    kept, piece = np.unique(piece, return_inverse=True)
    return len(kept), piece


def _numbers_in(faces: list[np.ndarray]) -> np.ndarray:
    """Components, numbered from 0 within their slab, that occur in the faces."""
    numbers = np.unique(np.concatenate([face.ravel() for face in faces]))
    return numbers[numbers > 0] - 1
