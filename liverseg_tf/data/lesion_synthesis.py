"""Synthetic liver tumours, drawn into the labelled liver of HU slices with graph operations.

The idea and its evaluation are from Hu et al., "Label-Free Liver Tumor Segmentation", CVPR 2023 (arXiv 2303.14869):
a network trained on synthetic tumours alone is almost as good as one trained on real ones. As in the paper, lesions are
deformed ellipsoids from 3 to about 60 mm, inside the liver and clear of vessels, with lower, textured HU, blurred edges
and a capsule. Unlike in the paper, there is no mass effect, and slices are drawn independently in 2-D.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from liverseg_tf.config import Config
from liverseg_tf.data.augmentation import as_batch, slices_in, smooth_noise, uniform
from liverseg_tf.errors import ConfigError
from liverseg_tf.labels import LIVER, TUMOUR

# Side of the smoothing window that separates vessels and dark regions from noise, in pixels.
_SMOOTHING = 5
_COARSE_NODES, _FINE_NODES = 28, 80
# Number of random draws per batch; each has its own seed.
_DRAWS = 23


@dataclass(frozen=True)
class LesionSynthesis(Config):
    """Draw tumours into labelled livers. Labels change only from liver to tumour.

    A lesion is an ellipse whose edge is pulled inwards by smooth noise, so no diameter exceeds `diameter_mm`.
    Each number pair is a range to draw from uniformly, unless said otherwise.

    Attributes:
        probability: share of slices that get lesions.
        max_lesions: largest number of lesions in a slice; the number is drawn from 1 to this, small numbers more often.
        diameter_mm: long axis, drawn log-uniformly. Hu et al. draw radii around 4, 8, 16 and 32 voxels, +-25 %.
        aspect: short axis over long axis.
        irregularity: largest depth of the edge's dents, as a fraction of the radius.
        edge_mm: width of the transition from liver to lesion.
        largest_liver_share: a lesion's long axis is shortened until its ellipse fits this share of the slice's liver.
        hypodense_hu: how far an ordinary lesion's HU are below the liver's mean; small values are drawn more often. In
            the portal venous phase lesions are 10 to 80 HU below the liver; Hu et al. used 65 to 145 times a texture of
            mean about 0.5.
        hyperdense_hu: how far a hyperdense lesion's HU are above the liver's mean.
        hyperdense_probability: share of slices whose lesions are hyperdense.
        similarity: the HU change of a slice's lesions is the same up to a factor of 1 plus or minus this.
        texture_hu: largest amplitude of HU variations within a lesion.
        necrosis_hu: further drop in the core of a necrotic lesion.
        necrosis_probability: share of lesions with such a core.
        necrosis_share: the core's radius over the lesion's.
        rim_hu: increase along the edge of a rim-enhancing or encapsulated lesion; it falls off over `rim_mm`.
        rim_mm: half width of that rim.
        rim_probability: share of lesions with a rim.
        calcified_hu: increase in patches of a calcified lesion, or of one treated with iodised oil.
        calcified_probability: share of lesions with such patches.
        lowest_hu: no change lowers HU below this (a simple cyst contains water).
        vessel_margin_hu: lesion centres are placed where smoothed HU are within this of the liver's mean, away from
            large vessels and existing lesions.

    Raises:
        ConfigError: for a range that is empty or out of bounds.

    Examples:
        >>> import tensorflow as tf
        >>> hu, labels = tf.fill((64, 64), 100.0), tf.ones((64, 64), tf.uint8)
        >>> hu, labels = LesionSynthesis(probability=1.0)(hu, labels, seed=(0, 1), spacing_mm=(1.5, 1.5))
        >>> int(tf.reduce_max(labels))
        2
    """

    probability: float = 0.7
    max_lesions: int = 4
    diameter_mm: tuple[float, float] = (3.0, 60.0)
    aspect: tuple[float, float] = (0.6, 1.0)
    irregularity: float = 0.45
    edge_mm: tuple[float, float] = (0.5, 3.0)
    largest_liver_share: float = 0.7
    hypodense_hu: tuple[float, float] = (10.0, 80.0)
    hyperdense_hu: tuple[float, float] = (15.0, 50.0)
    hyperdense_probability: float = 0.08
    similarity: float = 0.3
    texture_hu: float = 12.0
    necrosis_hu: tuple[float, float] = (10.0, 40.0)
    necrosis_probability: float = 0.25
    necrosis_share: tuple[float, float] = (0.4, 0.85)
    rim_hu: tuple[float, float] = (8.0, 35.0)
    rim_mm: tuple[float, float] = (0.8, 3.0)
    rim_probability: float = 0.2
    calcified_hu: tuple[float, float] = (60.0, 300.0)
    calcified_probability: float = 0.06
    lowest_hu: float = 0.0
    vessel_margin_hu: float = 15.0

    def __post_init__(self) -> None:
        for name in (f for f in self.__dataclass_fields__ if f.endswith("probability")):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"lesion synthesis: expected {name} from 0 to 1. Received: {getattr(self, name)}")
        for name in ("diameter_mm", "aspect", "edge_mm", "rim_mm", "necrosis_share"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ConfigError(f"lesion synthesis: expected {name} as (low, high) above 0. Received: {(low, high)}")
        for name in ("hypodense_hu", "hyperdense_hu", "necrosis_hu", "rim_hu", "calcified_hu"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ConfigError(f"lesion synthesis: expected {name} as (low, high) from 0. Received: {(low, high)}")
        for name in ("aspect", "necrosis_share", "irregularity", "similarity"):
            value = getattr(self, name)
            if not 0 <= (value if isinstance(value, float) else value[1]) <= 1:
                raise ConfigError(f"lesion synthesis: expected {name} from 0 to 1. Received: {value}")
        if self.max_lesions < 1 or not 0 < self.largest_liver_share <= 1:
            raise ConfigError(
                "lesion synthesis: expected max_lesions of at least 1 and largest_liver_share in (0, 1]. "
                f"Received: {self.max_lesions}, {self.largest_liver_share}"
            )

    def __call__(self, hu: Any, labels: Any, seed: Any, spacing_mm: Any = (1.0, 1.0)) -> tuple[tf.Tensor, tf.Tensor]:
        """Draw lesions into slices.

        Args:
            hu: (H, W) or (B, H, W) HU, any real dtype; H and W static or not.
            labels: the same shape, integer; lesions are drawn where it is 1 (liver). Other values are kept.
            seed: two integers, or an int tensor of shape (2,). Slices of one batch vary independently.
            spacing_mm: (row, column) pixel spacing, above 0; two numbers, or a tensor of shape (2,) or (B, 2).

        Returns:
            hu float32 and labels uint8, in the shapes of the input.
        """
        hu, labels, single = as_batch(hu, labels)
        spacing_mm = tf.reshape(tf.cast(spacing_mm, tf.float32), [-1, 2])
        liver = tf.equal(labels, LIVER)
        smooth = tf.nn.avg_pool2d(hu[..., None], _SMOOTHING, 1, "SAME")[..., 0]
        mean_hu = _typical_hu(smooth, liver)
        seeds = iter(tf.unstack(tf.random.split(tf.convert_to_tensor(seed, tf.int32), num=_DRAWS)))
        lesions = self._draw(liver, tf.abs(smooth - mean_hu) < self.vessel_margin_hu, spacing_mm, seeds)
        coarse = smooth_noise(tf.shape(hu), _COARSE_NODES, next(seeds))[..., 0]
        noise = _Noise(coarse, smooth_noise(tf.shape(hu), _FINE_NODES, next(seeds))[..., 0])

        def drawn():
            # Vessels end at a lesion; the image noise is kept.
            tissue = _Tissue(hu - tf.nn.relu(smooth - mean_hu - 8.0), liver, mean_hu, spacing_mm)
            painted = tf.while_loop(
                lambda k, *_: k < number,
                lambda k, *before: (k + 1, *self._paint(lesions.of(k), tissue, noise, *before)),
                (0, hu, tf.zeros_like(liver)),
            )
            return painted[1], tf.where(painted[2], tf.constant(TUMOUR, tf.uint8), labels)

        number = tf.math.count_nonzero(tf.reduce_any(lesions.present, 0), dtype=tf.int32)  # the most of a slice
        new_hu, new_labels = tf.cond(number > 0, drawn, lambda: (hu, labels))
        new_hu, new_labels = tf.ensure_shape(new_hu, hu.shape), tf.ensure_shape(new_labels, labels.shape)
        return (new_hu[0], new_labels[0]) if single else (new_hu, new_labels)

    def _draw(self, liver: tf.Tensor, is_tissue: tf.Tensor, spacing_mm: tf.Tensor, seeds: Iterator) -> _Lesions:
        """Draw position, size and density of lesions. Another order of draws would change what a seed gives."""
        batch, lesions = slices_in(liver), self.max_lesions

        def draw(low_high=(0.0, 1.0), columns=lesions):
            low, high = low_high
            return uniform([batch, columns], next(seeds)) * (high - low) + low

        pixels = tf.reduce_sum(tf.cast(liver, tf.float32), axis=(1, 2))[:, None]
        center_y, center_x = _centers(liver, is_tissue, draw())
        low, high = (tf.math.log(d / 2.0) for d in self.diameter_mm)
        radius = tf.exp(draw((low, high)))
        aspect = draw(self.aspect)
        row_mm, column_mm = spacing_mm[:, :1], spacing_mm[:, 1:]
        fitting = tf.sqrt(self.largest_liver_share * pixels * row_mm * column_mm / (3.14159265 * aspect))
        radius = tf.maximum(tf.minimum(radius, fitting), self.diameter_mm[0] / 2.0)
        angle, edge, dents = draw((0.0, 3.14159265)), draw(self.edge_mm), draw((0.0, self.irregularity))
        number = 1.0 + tf.floor(tf.square(draw(columns=1)) * lesions)
        present = (draw(columns=1) < self.probability) & (pixels > 0.0)
        present = present & (tf.range(lesions, dtype=tf.float32)[None] < number)
        hyperdense = draw(columns=1) < self.hyperdense_probability
        low, high = self.hypodense_hu
        drop = low + (high - low) * tf.pow(draw(columns=1), 1.5)
        change = tf.where(hyperdense, draw(self.hyperdense_hu, columns=1), -drop)
        change = change * (1.0 + self.similarity * draw((-1.0, 1.0)))
        texture = draw((0.0, self.texture_hu))
        core = tf.where(draw() < self.necrosis_probability, -draw(self.necrosis_hu), 0.0)
        core_share = draw(self.necrosis_share)
        rim = tf.where(draw() < self.rim_probability, draw(self.rim_hu), 0.0)
        rim_width = draw(self.rim_mm)
        calcified = tf.where(draw() < self.calcified_probability, draw(self.calcified_hu), 0.0)
        return _Lesions(
            present, center_y, center_x, radius, aspect, angle, edge, dents,
            change, texture, core, core_share, rim, rim_width, calcified,
        )  # fmt: skip

    def _paint(
        self, one: _Lesions, tissue: _Tissue, noise: _Noise, result: tf.Tensor, tumour: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """HU and mask with one more lesion in each slice."""
        y, x = (tf.cast(tf.range(tf.shape(result)[axis]), tf.float32) for axis in (1, 2))
        row_mm, column_mm = tissue.spacing_mm[:, :1, None], tissue.spacing_mm[:, 1:, None]
        dy, dx = (y[None, :, None] - one.center_y) * row_mm, (x[None, None, :] - one.center_x) * column_mm
        sine, cosine, r = tf.sin(one.angle), tf.cos(one.angle), one.radius
        along, across = cosine * dx + sine * dy, (cosine * dy - sine * dx) / one.aspect
        # Dents as large as the lesion: fine noise for small ones, coarse noise for large ones.
        large = tf.clip_by_value((r - 5.0) / 15.0, 0.0, 1.0)
        boundary = r * (1.0 - one.dents * (0.5 + 0.5 * (large * noise.coarse + (1.0 - large) * noise.fine)))
        depth_mm = boundary - tf.sqrt(along * along + across * across)  # above 0 inside
        within = one.present & tissue.liver
        inside = tf.where(within, tf.sigmoid(4.0 * depth_mm / one.edge), 0.0)
        density = one.change + one.texture * (0.6 * noise.fine + 0.4 * noise.coarse)
        density += one.core * tf.sigmoid(12.0 * (depth_mm / boundary - 1.0 + one.core_share + 0.15 * noise.coarse))
        density += one.calcified * tf.sigmoid(20.0 * (0.6 * noise.coarse + 0.4 * noise.fine - 0.35))
        density = tf.maximum(density, tf.minimum(self.lowest_hu - tissue.mean_hu, 0.0))
        ring = one.rim * tf.exp(-tf.square(depth_mm / one.rim_width)) * tf.cast(within, tf.float32)
        result = result + inside * (tissue.without_vessels + density - result) + ring
        return result, tumour | (within & (depth_mm > 0.0))


class _Lesions(NamedTuple):
    """Lesions of a batch: each field is (B, lesions), or, in the result of `of`, (B, 1, 1) for one of them."""

    present: tf.Tensor
    center_y: tf.Tensor
    center_x: tf.Tensor
    radius: tf.Tensor
    aspect: tf.Tensor
    angle: tf.Tensor
    edge: tf.Tensor
    dents: tf.Tensor
    change: tf.Tensor
    texture: tf.Tensor
    core: tf.Tensor
    core_share: tf.Tensor
    rim: tf.Tensor
    rim_width: tf.Tensor
    calcified: tf.Tensor

    def of(self, k: tf.Tensor) -> _Lesions:
        index = tf.reshape(k, [1, 1])
        return _Lesions(*(tf.gather(values, index, axis=1) for values in self))


class _Noise(NamedTuple):
    """(B, H, W) smooth noise."""

    coarse: tf.Tensor
    fine: tf.Tensor


class _Tissue(NamedTuple):
    """The background of the lesions: (B, H, W) HU and liver, (B, 1, 1) mean HU, (1 or B, 2) mm per pixel."""

    without_vessels: tf.Tensor
    liver: tf.Tensor
    mean_hu: tf.Tensor
    spacing_mm: tf.Tensor


def _typical_hu(smooth, liver):
    """The liver's mean HU without outliers, (B, 1, 1)."""

    def mean(chosen):
        weight = tf.cast(chosen, tf.float32)
        total = tf.reduce_sum(weight * smooth, axis=(1, 2), keepdims=True)
        return total / tf.maximum(tf.reduce_sum(weight, axis=(1, 2), keepdims=True), 1.0)

    first = mean(liver)
    return mean(liver & (tf.abs(smooth - first) < 30.0))


def _centers(liver, preferred, uniform):
    """Choose liver pixels, among the preferred ones if there are any: (B, K) uniform numbers -> rows, columns."""
    batch, columns = tf.shape(liver)[0], tf.shape(liver)[2]
    preferred = liver & preferred
    any_preferred = tf.reduce_any(preferred, axis=(1, 2), keepdims=True)
    candidates = tf.reshape(tf.where(any_preferred, preferred, liver), [batch, -1])
    below = tf.cumsum(tf.cast(candidates, tf.float32), axis=1)  # whole numbers, exact up to 2**24 pixels
    index = tf.searchsorted(below, uniform * below[:, -1:], side="right")
    index = tf.minimum(index, tf.shape(candidates)[1] - 1)
    return tf.cast(index // columns, tf.float32), tf.cast(index % columns, tf.float32)
