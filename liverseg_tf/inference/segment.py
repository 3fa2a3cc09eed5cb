"""Segments one volume in batches of slices; the next batch is computed while the labels of this one are stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from liverseg_tf.channels_numpy import restore, restore_labels
from liverseg_tf.data.volume import CTVolume
from liverseg_tf.evaluation.measure import SMALLEST_LIVER_ML
from liverseg_tf.inference.extent import (
    FAR_TOO_MUCH_CHANGED,
    MARGINS,
    MOST_CHANGED,
    box_around,
    coarse_slices,
    likely_extent,
    reaches_edge,
    share_changed,
    slab_weights,
)
from liverseg_tf.inference.postprocessing import SliceSmoother
from liverseg_tf.inference.runtimes import Box
from liverseg_tf.labels import BACKGROUND
from liverseg_tf.native_memory import zeros_in_small_pages

Item = TypeVar("Item")

# Largest batch of `liver_slices`, which doesn't know where the liver ends: larger ones would compute slices in vain.
_LARGEST_BATCH_AT_EDGES = 8
# Number of slices that a part of the image is tried on.
_MOST_TRIED = 5
# Number of slices' worth of the network's time that a part of the image must save, to make up for other interpreters.
_LEAST_SAVED = 4
# Number of slices whose scores are cached: 0.8 MB each at 256 x 256.
_MOST_KEPT = 64


class Scoring:
    """Computes scores of slices and turns them into labels; here scores are probabilities at the slices' own size.

    Args:
        score: (B, rows, columns) HU -> B times (...) float32; it may be an iterator, which computes them meanwhile.
    """

    def __init__(self, score: Callable[[np.ndarray], Iterable[np.ndarray]]):
        self.score = score

    def labels(self, scores: np.ndarray) -> np.ndarray:
        """One slice's labels (rows, columns) uint8."""
        return scores.argmax(-1).astype(np.uint8)

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """One slice's probabilities (classes, rows, columns) float32."""
        return np.moveaxis(scores, -1, 0)


class LabelScoring(Scoring):
    """For runtimes that return labels only."""

    def labels(self, scores: np.ndarray) -> np.ndarray:
        return scores


class NetworkScoring(Scoring):
    """Scores are probabilities at the network's size, (B, classes, S, S).

    Smoothing across slices and resizing within slices are both linear and act along different axes, so they can be
    swapped: smoothing comes first, on a quarter of the pixels of a 512 x 512 CT, and only slices that can hold
    liver are resized.

    Args:
        size: rows and columns of the slices.
        score_part: the same, with the rows and columns of the network's image that the network sees; scores are those
            of background elsewhere. None if the network sees whole slices only.
    """

    def __init__(
        self,
        score: Callable[[np.ndarray], Iterable[np.ndarray]],
        size: tuple[int, int],
        score_part: Callable[[np.ndarray, Box], Iterable[np.ndarray]] | None = None,
    ):
        super().__init__(score)
        self._size, self.score_part = size, score_part

    def labels(self, scores: np.ndarray) -> np.ndarray:
        return restore_labels(scores, *self._size)

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        return restore(scores, *self._size)

    def found(self, scores: np.ndarray) -> np.ndarray:
        """Where one slice has foreground, (S, S) bool, at the network's size."""
        return scores[1:].max(0) > scores[BACKGROUND]

    def area(self, scores: np.ndarray) -> float:
        """Foreground of one slice, in pixels of the slice's own size."""
        return np.count_nonzero(self.found(scores)) * (max(self._size) / scores.shape[-1]) ** 2


class Segmenter:
    """Segments one volume.

    Args:
        volume: the CT.
        scoring: how its slices are scored.
        batch: number of slices in a batch.
        smoother: makes a `SliceSmoother`; None for no smoothing.
        step: score each `step`-th slice only, and the last, averaged with their neighbours if slices are thin; the
            others' scores are interpolated linearly. With 1 all slices are scored as they are.
    """

    def __init__(
        self,
        volume: CTVolume,
        scoring: Scoring,
        batch: int,
        smoother: Callable[[], SliceSmoother] | None = None,
        step: int = 1,
    ):
        self._volume, self._scoring, self._batch, self._smoother = volume, scoring, batch, smoother
        self._step, self._weights = step, slab_weights(volume.spacing_mm[2]) if step > 1 else np.ones(1, np.float32)
        self._known: dict[int, np.ndarray] = {}
        self._score = scoring.score

    def all_slices(
        self, progress: Callable[[int], None], each: Callable[[int, np.ndarray], None] | None = None
    ) -> np.ndarray:
        """Labels of all slices, (rows, columns, slices) uint8.

        Args:
            progress: called with the number of slices done.
            each: called with a slice's index and its scores, before they are smoothed.
        """
        labels = _no_labels(self._volume)
        for index, scores in self._smoothed(range(self._volume.shape[2]), progress, each):
            _put(labels, index, self._scoring.labels(scores))
        return labels

    def liver_slices(self, progress: Callable[[int], None]) -> np.ndarray:
        """Labels of the slices that can hold the liver; of all slices if their extent is uncertain.

        One slice every 20 mm locates the liver. From there, slices are segmented downwards and upwards until a smoothed
        slice has no finding: nothing beyond it can be connected to the liver. So `PostProcessing`, which keeps the
        largest component, gives the same mask as on all slices. If less than 200 ml are found, a larger component
        may lie between the slices of the first pass, and all slices are segmented.

        The network sees only a part of these slices, around what the first pass found, if that is 200 ml or more, if
        the network then finds the same in slices of the first pass, and if no finding reaches the part's edge.

        Args:
            progress: called with the number of slices done.
        """
        scoring, count = self._scoring, self._volume.shape[2]
        assert isinstance(scoring, NetworkScoring)
        coarse, areas = coarse_slices(count, self._volume.spacing_mm[2], self._step), []
        whole, self._batch = self._batch, min(self._batch, _LARGEST_BATCH_AT_EDGES)
        for index, scores in self._scores(coarse):
            areas.append(scoring.area(scores))
            if areas[-1]:
                self._known[index] = scores
        extent, box = likely_extent(areas), None
        lowest, highest = (coarse[extent[0]], coarse[extent[1]]) if extent else (0, count - 1)
        self._known = {index: scores for index, scores in self._known.items() if lowest <= index <= highest}
        if sum(areas) * coarse.step * self._volume.voxel_volume_ml >= SMALLEST_LIVER_ML:
            box = self._part(scoring)
        if extent is None:
            self._batch = whole
        if extent is not None or box is not None:
            labels, voxels = self._liver_between(lowest, highest, box, progress)
            if voxels * self._volume.voxel_volume_ml >= SMALLEST_LIVER_ML:
                progress(count)
                return labels
            # a larger liver may have been missed
            self._batch = whole
            self._see(None)
        return self.all_slices(progress)

    def _part(self, scoring: NetworkScoring) -> Box | None:
        """Rows and columns around the liver of the first pass that the network needs to see; None for all."""
        if scoring.score_part is None:
            return None
        located, places = self._known, list(self._known)
        tried = [places[round(at)] for at in np.linspace(0, len(places) - 1, min(len(places), _MOST_TRIED))]
        hu, whole = (np.stack(list(map(of, tried))) for of in (self._slab, lambda index: located[index].argmax(0)))
        masks = np.stack([scoring.found(scores) for scores in located.values()])
        for margin in MARGINS:
            box = box_around(masks, margin)
            share = math.prod((side.stop - side.start) / masks.shape[-1] for side in box)
            rest = (max(places) - min(places)) / self._step - len(places)
            if (1 - share) * rest < _LEAST_SAVED + share * len(tried):
                return None
            changed = share_changed(whole, np.stack([scores.argmax(0) for scores in scoring.score_part(hu, box)]))
            if changed <= MOST_CHANGED:
                return box
            if changed > FAR_TOO_MUCH_CHANGED:
                break
        return None

    def _see(self, box: Box | None) -> None:
        """The network sees these rows and columns of its image from now on; for None all, and scores are dropped."""
        scoring = self._scoring
        if box is None:
            self._score, self._known = scoring.score, {}
        elif isinstance(scoring, NetworkScoring) and (part := scoring.score_part) is not None:
            self._score = lambda hu: part(hu, box)

    def _liver_between(
        self, lowest: int, highest: int, box: Box | None, progress: Callable[[int], None]
    ) -> tuple[np.ndarray, int]:
        """Labels of the slices that can hold the liver, (rows, columns, slices) uint8, and the number of its voxels.

        Args:
            lowest, highest: slices with liver.
            box: rows and columns of the network's image that it sees; None for all. It sees all once a finding reaches
                the edge.
            progress: called with the number of slices done.
        """
        scoring, count = self._scoring, self._volume.shape[2]
        assert isinstance(scoring, NetworkScoring)
        if box is not None:
            self._see(box)
        empty, radius = -1, self._smoother().radius if self._smoother else 0
        for index, scores in self._smoothed(range(lowest, -1, -1), lambda _: None, again=True):
            # the first slices are smoothed without the slices above them
            if lowest - index > radius and not scoring.found(scores).any():
                empty = index
                break
        labels, voxels = _no_labels(self._volume), 0
        # from a scored slice on, so that the same slices are scored as without this selection
        first = max(empty - radius, 0) // self._step * self._step
        for index, scores in self._smoothed(range(first, count), progress):
            found = scoring.found(scores)
            if box is not None and reaches_edge(found, box):
                self._see(None)
                return self._liver_between(lowest, highest, None, progress)
            if index > empty:
                voxels += _put(labels, index, scoring.labels(scores))
            if index > highest and not found.any():
                break
        return labels, voxels

    def _smoothed(
        self,
        indices: range,
        progress: Callable[[int], None],
        each: Callable[[int, np.ndarray], None] | None = None,
        again: bool = False,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Indices and smoothed scores of slices, in order; with `again` some are kept for a second time."""
        smoother, places = self._smoother() if self._smoother else None, iter(indices)
        for index, scores in self._interpolated(indices, again):
            if each:
                each(index, scores)
            for smoothed in smoother.add(scores[None]) if smoother else scores[None]:
                yield next(places), smoothed
            progress(index + 1)
        if smoother:
            yield from zip(places, smoother.rest(), strict=True)

    def _interpolated(self, indices: range, again: bool) -> Iterator[tuple[int, np.ndarray]]:
        """Indices and scores of slices, in order, upwards or downwards."""
        ends = (indices[0], indices[-1])
        scored = [index for index in indices if index % self._step == 0 or index in ends]
        before: tuple[int, np.ndarray] | None = None
        for index, scores in self._scores(scored):
            if again and len(self._known) < _MOST_KEPT:
                self._known[index] = scores
            if before is not None:
                (low, below), (high, above) = sorted((before, (index, scores)), key=lambda pair: pair[0])
                for between in range(before[0] + indices.step, index, indices.step):
                    share = np.float32((between - low) / (high - low))
                    yield between, (1 - share) * below + share * above
            yield index, scores
            before = index, scores

    def _scores(self, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Indices and scores of slices, in order; the next batch is computed while this one is used."""

        def batches():
            for first in range(0, len(indices), self._batch):
                chunk = indices[first : first + self._batch]
                unknown = [index for index in chunk if index not in self._known]
                found = self._score(np.stack(list(map(self._slab, unknown)))) if unknown else ()
                yield chunk, unknown, iter(found)

        for chunk, unknown, found in read_ahead(batches()):
            for index in chunk:
                yield index, next(found) if index in unknown else self._known.pop(index)

    def _slab(self, index: int) -> np.ndarray:
        """(rows, columns) float32 HU of a slice, averaged with its neighbours."""
        beside, count = len(self._weights) // 2, self._volume.shape[2]
        first, last = max(index - beside, 0), min(index + beside, count - 1)
        hu = self._volume.slices(first, last + 1)
        if len(hu) == 1:
            return hu[0]
        weights = self._weights[first - index + beside : last - index + beside + 1]
        return np.tensordot(weights / weights.sum(), hu, 1)


def read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Iterate over `items` in another thread, one item ahead of the consumer.

    Examples:
        >>> list(read_ahead(range(3)))
        [0, 1, 2]
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, "liverseg-ahead") as pool:
        coming: Any = pool.submit(next, iterator, end)
        while True:
            found = [coming.result()]
            if found[0] is end:
                return
            coming = pool.submit(next, iterator, end)
            yield found.pop()  # it may be large, so no reference to it is kept here


def _no_labels(volume: CTVolume) -> np.ndarray:
    """Background, a view of an array in the file's own order: it is written without a copy, and of an axial file rows
    without findings take no physical memory."""
    return volume.geometry.to_canonical(zeros_in_small_pages(volume.geometry.shape))


def _put(labels: np.ndarray, index: int, found: np.ndarray) -> int:
    """Store the rows of a slice that are not all background; returns the number of foreground pixels."""
    if voxels := int(np.count_nonzero(found)):
        rows = np.flatnonzero(found.any(1))
        there = slice(rows[0], rows[-1] + 1)
        labels[there, :, index] = found[there]
    return voxels
