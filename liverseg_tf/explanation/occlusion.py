"""Occlusion of a segmentation network: how far the score falls when a patch is covered."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from liverseg_tf.channels import RestoreSize, SquareResize
from liverseg_tf.config import ModelConfig
from liverseg_tf.explanation.region_score import region_score
from liverseg_tf.hounsfield import BODY_HU
from liverseg_tf.inference.slice_function import SliceFunction
from liverseg_tf.models.model import Model

_GRID = 16  # patches along each side of the slice
_BATCH = 8


class Occlusion:
    """Which patches of a slice the class depends on: each is covered with the same slice without the finding.

    Occlusion (Zeiler and Fergus 2014, arXiv 1311.2901) on a grid of 16 x 16 patches; patches that hold nothing of the
    body are left out. A patch's heat is the fall of the region's score (`region_score`). It needs no gradients, and
    runs the network once a patch: about 100 times a slice.

    Args:
        model: a `Model`, or a Keras model, channels in, logits out, as `build_unet` makes it.
        config: how a Keras model's input is prepared; by default the model's own.

    Raises:
        ModelError: if neither the model nor the caller says how its input is prepared.

    Examples:
        >>> from liverseg_tf.models.unet import build_unet
        >>> explainer = Occlusion(build_unet(32, "resnet18"), ModelConfig(image_size=32, backbone="resnet18"))
        >>> hu, region = np.zeros((40, 40), np.float32), np.ones((40, 40), bool)
        >>> explainer.slice_map(hu, region, label=2, filled=hu + 50).shape
        (40, 40)
    """

    layer = None

    def __init__(self, model: Model | keras.Model, config: ModelConfig | None = None):
        taken = Model.of(model, config)
        self.model, self.config = taken.network, taken.config
        self.slice_function = SliceFunction(self.model, self.config)
        self._resize, self._restore = SquareResize(self.config.image_size), RestoreSize()
        self._score = tf.function(self._scores, reduce_retracing=True, autograph=False)

    def slice_map(self, hu: np.ndarray, region: np.ndarray, label: int, filled: np.ndarray) -> np.ndarray:
        """Map of one slice.

        Args:
            hu: (rows, columns) HU.
            region: the same shape, bool: where the class is explained.
            label: class index.
            filled: the same shape: what covers a patch, as `without_region` gives it.

        Returns:
            (rows, columns) float32, at least 0: how far the score falls.
        """
        patches = body_patches(hu)
        pictures = [hu, *(np.where(patch, filled, hu) for patch in patches.values())]
        weights = self._resize(tf.constant(region[None, ..., None], tf.float32))[..., 0]
        scores = np.concatenate(
            [
                self._score(tf.constant(np.stack(pictures[i : i + _BATCH]), tf.float32), weights, tf.constant(label))
                for i in range(0, len(pictures), _BATCH)
            ]
        )
        heat = np.zeros((1, _GRID, _GRID, 1), np.float32)
        for place, fall in zip(patches, scores[0] - scores[1:], strict=True):
            heat[0, *place, 0] = max(float(fall), 0.0)
        return self._restore(tf.constant(heat), rows_columns=tuple(map(int, hu.shape))).numpy()[0, ..., 0]

    def _scores(self, hu: tf.Tensor, weights: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        logits = self.model(self.slice_function.network_input(hu), training=False)
        return region_score(logits, weights, label)


def body_patches(hu: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Row and column on the grid -> (rows, columns) bool, where there is anything of the body."""
    square = max(hu.shape)  # slices are padded to a square equally on both sides
    row, column = ((np.arange(side) + (square - side) // 2) * _GRID // square for side in hu.shape)
    grid = {(i, j): (row == i)[:, None] & (column == j) for i in range(_GRID) for j in range(_GRID)}
    return {place: patch for place, patch in grid.items() if (patch & (hu > BODY_HU)).any()}
