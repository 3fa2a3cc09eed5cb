"""The methods that make maps, by name."""

from __future__ import annotations

from typing import Protocol

import keras
import numpy as np

from liverseg_tf.errors import ConfigError
from liverseg_tf.explanation.integrated_gradients import IntegratedGradients
from liverseg_tf.explanation.occlusion import Occlusion
from liverseg_tf.explanation.options import METHODS
from liverseg_tf.explanation.seg_grad_cam import SegGradCam
from liverseg_tf.models.model import Model


class Explainer(Protocol):
    """Makes maps of slices.

    Attributes:
        layer: the layer whose activations are used, or None.
    """

    @property
    def layer(self) -> str | None: ...

    def slice_map(self, hu: np.ndarray, region: np.ndarray, label: int, filled: np.ndarray) -> np.ndarray:
        """(rows, columns) HU, region, class, HU without the region -> (rows, columns) float32 map, at least 0."""


def make_explainer(model: Model | keras.Model, method: str, layer: str = "bottleneck") -> Explainer:
    """Make an `Explainer`.

    Args:
        model: a `Model`, or a Keras model that brings its configuration.
        method: one of `METHODS`.
        layer: as `SegGradCam` takes it; ignored by integrated gradients and occlusion.

    Raises:
        ConfigError: for an unknown method or layer.

    Examples:
        >>> from liverseg_tf.config import ModelConfig
        >>> from liverseg_tf.models.unet import build_unet
        >>> model = Model(build_unet(32, "resnet18"), ModelConfig(image_size=32))
        >>> make_explainer(model, "hirescam", "decoder1").layer
        'decoder_stage1b_relu'
    """
    if method == "integrated-gradients":
        return IntegratedGradients(model)
    if method == "occlusion":
        return Occlusion(model)
    if method not in METHODS:
        raise ConfigError(f"explanation method: expected one of {', '.join(METHODS)}. Received: {method!r}")
    return SegGradCam(model, method=method, layer=layer)
