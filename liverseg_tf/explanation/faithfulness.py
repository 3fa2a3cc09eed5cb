"""Tests of maps: deletion and insertion curves, and a sanity check with randomised networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy import ndimage

from liverseg_tf.channels import RestoreSize
from liverseg_tf.explanation.layers import decoder_layers
from liverseg_tf.explanation.options import RANDOM_MAPS
from liverseg_tf.hounsfield import BODY_HU
from liverseg_tf.labels import LIVER

LEAST_BEATEN = 0.95  # share of the random maps, on either curve
LEAST_IN_LIVER = 0.5  # share of the heat
# Above this a map is nearly the same for a trained and a randomised network.
MOST_RANK_CORRELATION = 0.5
# Denser at the start: a lesion is about a hundredth of the body
FRACTIONS = (0.0, 0.02, 0.1, 0.4, 1.0)
_WEIGHTS = np.convolve(np.diff(FRACTIONS), (0.5, 0.5))  # of each fraction in a curve's area
_RANDOM_GRID = 16  # blobs of random maps are a sixteenth of the slice wide
_BATCH_PIXELS = 4 * 512 * 512
_MOST_AT_ONCE = 16  # small slices are enlarged to the network's input


def body_of(hu: np.ndarray) -> np.ndarray:
    """The patient on a slice, without air (inside or outside) and without the couch: (rows, columns) HU -> bool.

    Examples:
        >>> hu = np.full((8, 8), -1000.0)
        >>> hu[1:5, 1:5] = 40
        >>> hu[7] = 40  # a couch
        >>> int(body_of(hu).sum())
        16
    """
    dense = hu > BODY_HU
    pieces, count = ndimage.label(dense)
    if count < 2:
        return dense
    return pieces == np.bincount(pieces.ravel())[1:].argmax() + 1


def without_region(hu: np.ndarray, labels: np.ndarray, region: np.ndarray, label: int) -> np.ndarray:
    """A slice without the finding; deletion takes its pixels from here.

    For a tumour, liver, tumours and region get the liver's median HU; for the liver, the median HU of the surrounding
    body. The rest of the body is blurred, so that its outline is kept; air is kept.

    Args:
        hu: (rows, columns) HU.
        labels: the same shape, classes.
        region: the same shape, bool, the explained region.
        label: its class.

    Returns:
        (rows, columns) float32 HU.
    """
    hu = hu.astype(np.float32)
    body, organ = body_of(hu) | region, (labels >= LIVER) | region
    around = body & ~organ
    sound = (labels == LIVER) & ~region if label != LIVER else around
    if not sound.any():
        sound = around if around.any() else body
    blurred, weight = (ndimage.gaussian_filter(a, max(hu.shape) / 64) for a in (np.where(around, hu, 0), around * 1.0))
    filled = np.where(around, blurred / np.maximum(weight, 1e-6), hu)
    filled[organ] = np.median(hu[sound])
    return filled.astype(np.float32)


@dataclass(frozen=True, eq=False)
class DeletionInsertion:
    """Change of a class's probability when the pixels that a map marks are removed, or only they are kept.

    Attributes:
        fractions: (S,) float64 in [0, 1], share of the body's pixels changed, from 0 to 1.
        deletion: (S,) mean probability of the class in the region, the map's highest pixels removed first.
        insertion: (S,) the same, the map's highest pixels restored first.
        random_deletion, random_insertion: (R, S) the same for R smooth random maps over the body. NaN where the
            comparison was settled without that step.
    """

    fractions: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    random_deletion: np.ndarray
    random_insertion: np.ndarray

    @property
    def deletion_area(self) -> float:
        """Area under the deletion curve; lower is better."""
        return float(np.trapezoid(self.deletion, self.fractions))

    @property
    def insertion_area(self) -> float:
        """Area under the insertion curve; higher is better."""
        return float(np.trapezoid(self.insertion, self.fractions))

    @property
    def random_deletion_areas(self) -> np.ndarray:
        """(R,) areas of the random maps; lower bounds where steps were left out."""
        return np.trapezoid(np.nan_to_num(self.random_deletion, nan=0.0), self.fractions, axis=1)

    @property
    def random_insertion_areas(self) -> np.ndarray:
        """(R,) areas of the random maps; upper bounds where steps were left out."""
        return np.trapezoid(np.nan_to_num(self.random_insertion, nan=1.0), self.fractions, axis=1)

    @property
    def deletion_beats(self) -> float:
        """Share of the random maps whose deletion area is larger."""
        return float(np.mean(self.random_deletion_areas > self.deletion_area))

    @property
    def insertion_beats(self) -> float:
        """Share of the random maps whose insertion area is smaller."""
        return float(np.mean(self.random_insertion_areas < self.insertion_area))

    @property
    def beats_random(self) -> bool:
        """Whether at least 20 random maps were tried, and 95 % of them are beaten on both curves."""
        enough = len(self.random_deletion) >= RANDOM_MAPS
        return enough and min(self.deletion_beats, self.insertion_beats) >= LEAST_BEATEN

    def to_dict(self) -> dict[str, Any]:
        """Curves, areas and shares as JSON-able values."""
        curves = {name: getattr(self, name).round(4).tolist() for name in ("fractions", "deletion", "insertion")}
        return {
            "random_maps": len(self.random_deletion),
            "deletion_beats_share": self.deletion_beats,
            "insertion_beats_share": self.insertion_beats,
            "deletion_area": self.deletion_area,
            "insertion_area": self.insertion_area,
            "deletion_areas_random": _areas(self.random_deletion, self.fractions),
            "insertion_areas_random": _areas(self.random_insertion, self.fractions),
            **curves,
        }


def _areas(curves: np.ndarray, fractions: np.ndarray) -> list[float | None]:
    """JSON-able areas; None for a curve with gaps."""
    areas = np.trapezoid(curves, fractions, axis=1)
    return [None if np.isnan(area) else round(float(area), 4) for area in areas]


class SliceTest:
    """Deletion and insertion on one slice (Petsiuk, Das and Saenko 2018), for any number of maps.

    Random maps are smooth noise over the whole body. They are run once; each map costs six more network runs.

    Args:
        probabilities: (B, rows, columns) HU -> (B, rows, columns, classes).
        hu: (rows, columns) HU.
        filled: the same shape: the replacement of deleted pixels, from `without_region`.
        label: class index.
        watched: (rows, columns) bool, the union of all regions to be tested.
        random_maps: how many.
        seed: decides them.
        whole_curves: False leaves out the steps of random maps after which it is certain which area is larger, because
            probabilities lie between 0 and 1: the shares beaten are the same, for about a third of the network runs.

    Examples:
        >>> hu = np.where(np.eye(16, dtype=bool), 20.0, 100.0)
        >>> bright = lambda hu: np.stack([hu > 60, hu <= 60], -1).astype(float)  # a "network"
        >>> test = SliceTest(bright, hu, np.full((16, 16), 100.0), label=1, watched=np.eye(16) > 0)
        >>> test.curves(np.eye(16), np.eye(16) > 0).beats_random
        True
    """

    def __init__(
        self,
        probabilities: Callable[[np.ndarray], np.ndarray],
        hu: np.ndarray,
        filled: np.ndarray,
        label: int,
        watched: np.ndarray,
        random_maps: int = RANDOM_MAPS,
        seed: int = 0,
        whole_curves: bool = True,
    ):
        self._probabilities, self._label, self._watched = probabilities, label, watched
        self._hu, self._filled = hu.astype(np.float32), filled.astype(np.float32)
        self._places = np.flatnonzero(body_of(hu) | watched)
        self._counts = np.rint(np.array(FRACTIONS) * len(self._places)).astype(int)
        rng = np.random.default_rng(seed)
        grids = rng.random((random_maps + 1, 1, _RANDOM_GRID, _RANDOM_GRID, 1)).astype(np.float32)
        # one by one: all at once would take tens of megabytes
        *random, self._ties = (self._enlarged(grid) for grid in grids)
        everything = np.ones(len(self._places), bool)
        self._ends = self._scores([np.zeros_like(everything), everything])
        self._random_ranks = self._ranks(random)
        self._random = np.full((random_maps, 2, len(FRACTIONS) - 2, int(watched.sum())), np.nan, np.float32)
        if whole_curves:
            self._run(np.ones(self._random.shape[:3], bool))

    def curves(self, heatmap: np.ndarray, region: np.ndarray) -> DeletionInsertion:
        """Test one map.

        Args:
            heatmap: (rows, columns), higher where the map marks more. Ties, such as zeros, are ordered by one more
                random map, so an empty map counts as a random one.
            region: (rows, columns) bool, within `watched`.
        """
        own = self._steps([heatmap.ravel()[self._places]])
        inside = region[self._watched]
        for step in np.argsort(-_WEIGHTS[1:-1]):  # the one that decides most first
            undecided = ~self._compared(own, inside) & np.isnan(self._random[:, :, step]).any(axis=-1)
            wanted = np.zeros(self._random.shape[:3], bool)
            wanted[:, :, step] = undecided
            self._run(wanted)
        return self._curves(own, self._random, inside)

    def _curves(self, own: np.ndarray, random: np.ndarray, inside: np.ndarray) -> DeletionInsertion:
        kept = np.concatenate([own, random])[..., inside].mean(axis=-1)
        start, end = self._ends[:, inside].mean(axis=-1)
        ones = np.ones((len(kept), 1))
        deletion = np.hstack([ones * start, kept[:, 0], ones * end])
        insertion = np.hstack([ones * end, kept[:, 1], ones * start])
        return DeletionInsertion(np.array(FRACTIONS), deletion[0], insertion[0], deletion[1:], insertion[1:])

    def _compared(self, own: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """(random maps, deletion and insertion) bool: whether the steps that are known decide which area is larger."""
        low, high = (self._curves(own, np.nan_to_num(self._random, nan=value), inside) for value in (0.0, 1.0))
        deletion = (low.random_deletion_areas > low.deletion_area) | (high.random_deletion_areas <= low.deletion_area)
        insertion = (high.random_insertion_areas < low.insertion_area) | (
            low.random_insertion_areas >= low.insertion_area
        )
        return np.stack([deletion, insertion], axis=1)

    def counterfactual(self, region: np.ndarray) -> tuple[float, float]:
        """Fill a region alone: how does the class's probability fall, and where?

        Args:
            region: (rows, columns) bool, within `watched`.

        Returns:
            Mean probability of the class in the region, once it is filled; and the share of all falls of that
            probability over the slice that lies in the region (1 where nothing falls).
        """
        filled = np.where(region, self._filled, self._hu)
        after = self._probabilities(filled[None])[0, ..., self._label].astype(np.float64)
        fall = np.maximum(self._before - after, 0)
        total = fall.sum()
        return float(after[region].mean()), float(fall[region].sum() / total) if total else 1.0

    @cached_property
    def _before(self) -> np.ndarray:
        """(rows, columns) probability of the class on the slice as it is."""
        return self._probabilities(self._hu[None])[0, ..., self._label].astype(np.float64)

    def _run(self, wanted: np.ndarray) -> None:
        """Run the steps of random maps that are wanted: (random maps, deletion and insertion, steps) bool."""
        which = np.argwhere(wanted)
        if len(which):
            changed = [self._changed(self._random_ranks[one], kind, step) for one, kind, step in which]
            self._random[wanted] = self._scores(changed)

    def _steps(self, maps: Sequence[np.ndarray]) -> np.ndarray:
        """M maps (places,) -> (M, deletion and insertion, steps, watched pixels) probabilities."""
        inner = range(len(FRACTIONS) - 2)
        changed = [self._changed(one, kind, step) for one in self._ranks(maps) for kind in (0, 1) for step in inner]
        return self._scores(changed).reshape(len(maps), 2, len(inner), -1)

    def _enlarged(self, grid: np.ndarray) -> np.ndarray:
        """(1, rows, columns, 1) float32 of any size -> (places,), enlarged to the slice."""
        rows_columns = tuple(map(int, self._hu.shape))
        return RestoreSize()(tf.convert_to_tensor(grid), rows_columns=rows_columns).numpy().ravel()[self._places]

    def _ranks(self, maps: Sequence[np.ndarray]) -> np.ndarray:
        """M maps (places,) -> (M, places) int32: each place's rank, 0 for the highest."""
        rank = np.empty((len(maps), len(self._places)), np.int32)
        for own, one in zip(rank, maps, strict=True):
            own[np.lexsort((-self._ties, -one))] = np.arange(len(own), dtype=np.int32)
        return rank

    def _changed(self, rank: np.ndarray, kind: int, step: int) -> np.ndarray:
        """(places,) bool: what is deleted at a step of deletion (0) or insertion (1)."""
        return (rank < self._counts[1 + step]) == (kind == 0)

    def _scores(self, changed: list[np.ndarray]) -> np.ndarray:
        """Watched pixels' probabilities for each set of deleted places."""
        batch = max(1, min(_MOST_AT_ONCE, _BATCH_PIXELS // self._hu.size))
        found = []
        for first in range(0, len(changed), batch):
            pictures = np.repeat(self._hu[None], len(changed[first : first + batch]), axis=0)
            for picture, deleted in zip(pictures, changed[first : first + batch], strict=True):
                places = self._places[deleted]
                picture.flat[places] = self._filled.flat[places]
            found.append(self._probabilities(pictures)[..., self._label][:, self._watched].astype(np.float32))
        return np.concatenate(found)


def randomized_model(model: keras.Model, seed: int = 0, into: keras.Model | None = None) -> keras.Model:
    """A copy of a network with re-initialised decoder and head, and the same encoder (Adebayo et al. 2018).

    The decoder consists of the layers after the first upsampling, whatever their names.

    Args:
        model: as `build_unet` makes it.
        seed: of the new weights.
        into: re-initialise this network instead of a new copy, to reuse its traced functions: an earlier copy,
            or `model` itself if its weights are no longer needed.
    """
    rng = np.random.default_rng(seed)
    copy = keras.models.clone_model(model) if into is None else into
    anew = decoder_layers(model)
    for source, layer in zip(model.layers, copy.layers, strict=True):
        if source.name in anew:  # kernels as He et al. 2015; biases and normalisation parameters are reset
            drawn = [
                rng.normal(0, np.sqrt(2 / np.prod(w.shape[:-1])), w.shape) if w.ndim > 1 else w
                for w in (_first_weights(layer) if layer is source else layer.get_weights())
            ]
            layer.set_weights(drawn)
        elif into is None:
            layer.set_weights(source.get_weights())
    return copy


def _first_weights(layer: keras.layers.Layer) -> list[np.ndarray]:
    """Weights of a layer as they were before any training."""
    if not layer.weights:
        return []
    fresh = type(layer).from_config(layer.get_config())
    fresh.build_from_config(layer.get_build_config())
    return fresh.get_weights()


def share_within(heatmap: np.ndarray, domain: np.ndarray) -> float:
    """Share of a map's sum that lies within a domain; 0 where there is no heat.

    Args:
        heatmap: (rows, columns), at least 0.
        domain: the same shape, bool.

    Examples:
        >>> share_within(np.array([1.0, 3.0]), np.array([False, True]))
        0.75
    """
    total = float(heatmap.sum(dtype=np.float64))
    return float(heatmap[domain].sum(dtype=np.float64)) / total if total else 0.0


def rank_correlation(first: np.ndarray, second: np.ndarray, domain: np.ndarray) -> float:
    """Spearman's rank correlation of two maps within a domain; 0 if one of them is constant.

    Args:
        first, second: (rows, columns).
        domain: the same shape, bool.

    Examples:
        >>> round(rank_correlation(np.eye(4), np.eye(4), np.ones((4, 4), bool)), 3)
        1.0
    """
    a, b = first[domain], second[domain]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """(N,) ranks from 1; equal values share the mean of theirs. Importing `scipy.stats` would take a second."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]
