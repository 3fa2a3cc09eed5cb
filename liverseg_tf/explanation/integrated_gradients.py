"""Integrated gradients of a segmentation network, with the slice without the finding as the baseline."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from scipy import ndimage

from liverseg_tf.channels import RestoreSize, SquareResize
from liverseg_tf.config import ModelConfig
from liverseg_tf.explanation.region_score import region_score
from liverseg_tf.inference.slice_function import SliceFunction
from liverseg_tf.models.model import Model

# Gradients of single pixels are noise: heat is smoothed by a 64th of the picture
_SMOOTHING = 1 / 64


class IntegratedGradients:
    """Contributions of pixels to the difference between a slice and the same slice without the finding.

    Integrated gradients (Sundararajan, Taly and Yan 2017, arXiv 1703.01365) along the straight line between both, in
    the network's input channels. The score is the sum, over the region, of the class's log-odds against all others.

    Args:
        model: a `Model`, or a Keras model, channels in, logits out, as `build_unet` makes it.
        config: how a Keras model's input is prepared; by default the model's own.
        steps: points on the line.

    Raises:
        ModelError: if neither the model nor the caller says how its input is prepared.

    Examples:
        >>> from liverseg_tf.models.unet import build_unet
        >>> explainer = IntegratedGradients(build_unet(32, "resnet18"), ModelConfig(image_size=32, backbone="resnet18"))
        >>> hu, region = np.zeros((40, 40), np.float32), np.ones((40, 40), bool)
        >>> explainer.slice_map(hu, region, label=2, filled=hu + 50).shape
        (40, 40)
    """

    layer = None

    def __init__(self, model: Model | keras.Model, config: ModelConfig | None = None, steps: int = 5):
        taken = Model.of(model, config)
        network, config = taken.network, taken.config
        self.model, self.config, self.steps = network, config, steps
        self.slice_function = SliceFunction(network, config)
        self._resize, self._restore = SquareResize(config.image_size), RestoreSize()
        self._gradient = tf.function(self._score_gradient, reduce_retracing=True, autograph=False)

    def slice_map(self, hu: np.ndarray, region: np.ndarray, label: int, filled: np.ndarray) -> np.ndarray:
        """Map of one slice.

        Args:
            hu: (rows, columns) HU.
            region: the same shape, bool: where the class is explained.
            label: class index.
            filled: the same shape: the baseline, from `without_region`.

        Returns:
            (rows, columns) float32, at least 0: contributions that raise the score.
        """
        pair = np.stack([filled, hu]).astype(np.float32)
        start, end = self.slice_function.network_input(tf.convert_to_tensor(pair))
        weights = self._resize(tf.convert_to_tensor(region[None, ..., None], tf.float32))[..., 0]
        total = sum(
            self._gradient((start + (end - start) * ((i + 0.5) / self.steps))[None], weights, tf.constant(label))
            for i in range(self.steps)
        )
        signed = tf.reduce_sum(total / self.steps * (end - start), -1).numpy()
        smooth = ndimage.gaussian_filter(signed, _SMOOTHING * self.config.image_size, axes=(1, 2))
        heat = tf.convert_to_tensor(np.maximum(np.nan_to_num(smooth), 0)[..., None], tf.float32)
        return self._restore(heat, rows_columns=tuple(map(int, hu.shape))).numpy()[0, ..., 0]

    def _score_gradient(self, channels: tf.Tensor, weights: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(channels)
            score = region_score(self.model(channels, training=False), weights, label)
        return tape.gradient(score, channels)
