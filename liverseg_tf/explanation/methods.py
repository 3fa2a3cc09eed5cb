"""The methods that make maps, by name."""

from __future__ import annotations

from typing import Protocol

import keras
import numpy as np

from liverseg_tf.config import ModelConfig
from liverseg_tf.errors import ConfigError
from liverseg_tf.explanation.integrated_gradients import IntegratedGradients
from liverseg_tf.explanation.occlusion import Occlusion
from liverseg_tf.explanation.options import METHODS
from liverseg_tf.explanation.seg_grad_cam import SegGradCam


class Explainer(Protocol):
    """Makes maps of slices.

    Attributes:
        layer: the layer whose activations are used, or None.
    """

    @property
    def layer(self) -> str | None: ...

    def slice_map(self, hu: np.ndarray, region: np.ndarray, label: int, filled: np.ndarray) -> np.ndarray:
        """(rows, columns) HU, region, class, HU without the region -> (rows, columns) float32 map, at least 0."""


def make_explainer(model: keras.Model, config: ModelConfig, method: str, layer: str = "bottleneck") -> Explainer:
    """Make an `Explainer`.

    Args:
        model: channels in, logits out.
        config: how its input is prepared.
        method: one of `METHODS`.
        layer: as `SegGradCam` takes it; integrated gradients and occlusion look at none.

    Raises:
        ConfigError: for an unknown method or layer.

    Examples:
        >>> from liverseg_tf.models.unet import build_unet
        >>> make_explainer(build_unet(32, "resnet18"), ModelConfig(image_size=32), "hirescam", "decoder1").layer
        'decoder_stage1b_relu'
    """
    if method == "integrated-gradients":
        return IntegratedGradients(model, config)
    if method == "occlusion":
        return Occlusion(model, config)
    if method not in METHODS:
        raise ConfigError(f"explanation method: expected one of {', '.join(METHODS)}. Received: {method!r}")
    return SegGradCam(model, config, method, layer)
