"""Does a map mean anything? Deletion and insertion curves, and a sanity check against a randomised network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy import stats

from liverseg_tf.channels import RestoreSize
from liverseg_tf.models.unet import is_encoder

# Above this a map looks the same whether the network has learned anything or not.
MOST_RANK_CORRELATION = 0.5
_BATCH_PIXELS = 8 * 512 * 512
_MOST_AT_ONCE = 16  # small slices become as large as the network's input


@dataclass(frozen=True, eq=False)
class DeletionInsertion:
    """What happens to a class when the places that a map marks are taken out, or alone left in.

    Attributes:
        fractions: (S,) float64 in [0, 1], share of the domain's pixels changed, from 0 to 1.
        deletion: (S,) mean probability of the class in the region, the map's highest pixels taken out first.
        insertion: (S,) the same, the map's highest pixels put back first.
        random_deletion, random_insertion: (R, S) the same for R random maps, smooth like the tested one.
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
        """(R,) areas of the random maps."""
        return np.trapezoid(self.random_deletion, self.fractions, axis=1)

    @property
    def random_insertion_areas(self) -> np.ndarray:
        """(R,) areas of the random maps."""
        return np.trapezoid(self.random_insertion, self.fractions, axis=1)

    @property
    def beats_random(self) -> bool:
        """Insertion minus deletion is larger than the random maps' median."""
        random = self.random_insertion_areas - self.random_deletion_areas
        return bool(self.insertion_area - self.deletion_area > np.median(random))

    def to_dict(self) -> dict[str, Any]:
        """Curves, areas and verdict as JSON-able values."""
        curves = {name: getattr(self, name).round(4).tolist() for name in ("fractions", "deletion", "insertion")}
        return {
            "deletion_area": self.deletion_area,
            "deletion_area_random_mean": float(self.random_deletion_areas.mean()),
            "insertion_area": self.insertion_area,
            "insertion_area_random_mean": float(self.random_insertion_areas.mean()),
            "deletion_beats_random": bool(self.deletion_area < np.median(self.random_deletion_areas)),
            "insertion_beats_random": bool(self.insertion_area > np.median(self.random_insertion_areas)),
            "beats_random": self.beats_random,
            "random_maps": len(self.random_deletion),
            **curves,
            "random_deletion_mean": self.random_deletion.mean(axis=0).round(4).tolist(),
            "random_insertion_mean": self.random_insertion.mean(axis=0).round(4).tolist(),
        }


def deletion_insertion(
    probabilities: Callable[[np.ndarray], np.ndarray],
    hu: np.ndarray,
    heatmap: np.ndarray,
    region: np.ndarray,
    domain: np.ndarray,
    label: int,
    grid: tuple[int, int],
    steps: int = 8,
    random_maps: int = 10,
    seed: int = 0,
) -> DeletionInsertion:
    """Take out and put back what a map marks (Petsiuk, Das and Saenko 2018), and what random maps mark.

    A pixel is taken out by setting it to the domain's median HU outside the region: for a tumour, to liver tissue.
    Random maps are noise on the tested map's own grid, enlarged alike, so that at every step their regions are as
    large and as coherent as the map's. All of it stays within the domain.

    Args:
        probabilities: (B, rows, columns) HU -> (B, rows, columns, classes).
        hu: (rows, columns) HU.
        heatmap: (rows, columns), higher where the map marks more.
        region: (rows, columns) bool, where the class is explained.
        domain: (rows, columns) bool, where pixels may change; the region is added to it.
        label: class index.
        grid: rows and columns of the map's own grid.
        steps: steps between nothing and everything, closer together at the start.
        random_maps: how many.
        seed: decides them.

    Examples:
        >>> hu = np.where(np.eye(16, dtype=bool), 20.0, 100.0)
        >>> bright = lambda hu: np.stack([hu > 60, hu <= 60], -1).astype(float)  # a "network"
        >>> everywhere = np.ones((16, 16), bool)
        >>> curves = deletion_insertion(bright, hu, np.eye(16), np.eye(16) > 0, everywhere, label=1, grid=(4, 4))
        >>> curves.deletion_area < curves.random_deletion_areas.min()
        np.True_
    """
    rng = np.random.default_rng(seed)
    domain = domain | region
    places = np.flatnonzero(domain)
    outside = hu[domain & ~region]
    fill = float(np.median(outside if len(outside) else hu[domain]))
    noise = tf.convert_to_tensor(rng.random((random_maps + 1, *grid, 1)), tf.float32)
    noise = RestoreSize()(noise, rows_columns=tuple(map(int, hu.shape))).numpy().reshape(random_maps + 1, -1)[:, places]
    maps = np.concatenate([heatmap.reshape(1, -1)[:, places], noise[:-1]])
    # ties, as where a map is 0, are put in the order of one more random map: an empty map is a random one
    order = np.array([np.lexsort((-noise[-1], -one)) for one in maps])
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(len(places))[None], axis=1)

    fractions = np.linspace(0, 1, steps + 1) ** 2
    counts = np.rint(fractions * len(places)).astype(int)
    flat = hu.astype(np.float32).ravel()
    inside = region.ravel()
    jobs = [(m, c, delete) for m in range(len(maps)) for c in counts[1:-1] for delete in (True, False)]

    def score(images: np.ndarray) -> np.ndarray:
        found = probabilities(images.reshape(-1, *hu.shape))
        return found[..., label].reshape(len(images), -1)[:, inside].mean(axis=1)

    def image(changed: np.ndarray) -> np.ndarray:
        picture = flat.copy()
        picture[places[changed]] = fill
        return picture

    ends = score(np.stack([flat, image(np.ones(len(places), bool))]))
    batch = max(1, min(_MOST_AT_ONCE, _BATCH_PIXELS // hu.size))
    scores = []
    for first in range(0, len(jobs), batch):
        part = jobs[first : first + batch]
        scores.append(score(np.stack([image((rank[m] < c) == delete) for m, c, delete in part])))
    inner = np.concatenate(scores).reshape(len(maps), len(counts) - 2, 2)
    ones = np.ones((len(maps), 1))
    deletion = np.hstack([ones * ends[0], inner[..., 0], ones * ends[1]])
    insertion = np.hstack([ones * ends[1], inner[..., 1], ones * ends[0]])
    return DeletionInsertion(fractions, deletion[0], insertion[0], deletion[1:], insertion[1:])


def randomized_model(model: keras.Model, seed: int = 0) -> keras.Model:
    """A copy of a network whose decoder and head are drawn anew, and whose encoder is kept (Adebayo et al. 2018).

    Args:
        model: as `build_unet` makes it.
        seed: decides the weights.
    """
    rng = np.random.default_rng(seed)
    copy = keras.models.clone_model(model)
    for source, layer in zip(model.layers, copy.layers, strict=True):
        if is_encoder(source):
            layer.set_weights(source.get_weights())
        elif isinstance(layer, keras.layers.Conv2D):
            kernel = layer.kernel.shape
            deviation = np.sqrt(2 / np.prod(kernel[:-1]))  # He et al. 2015
            layer.set_weights([rng.normal(0, deviation, kernel)] + [np.zeros(w.shape) for w in layer.get_weights()[1:]])
    return copy


def rank_correlation(first: np.ndarray, second: np.ndarray, domain: np.ndarray) -> float:
    """Spearman's rank correlation of two maps within a domain; 0 where one of them is constant.

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
    return float(stats.spearmanr(a, b).statistic)
