"""Seg-Grad-CAM and related class activation maps of a segmentation network, from tf-keras-vis if it has them."""

from __future__ import annotations

import contextlib
import io

import keras
import numpy as np
import tensorflow as tf

from liverseg_tf.channels import RestoreSize, SquareResize
from liverseg_tf.config import ModelConfig
from liverseg_tf.errors import ConfigError
from liverseg_tf.explanation.layers import resolve_layer
from liverseg_tf.explanation.options import CAM_METHODS
from liverseg_tf.inference.slice_function import SliceFunction
from liverseg_tf.models.model import Model

# Score-CAM runs the network once for each channel; only the channels with the largest variance are used
# (Faster-Score-CAM).
_SCORECAM_CHANNELS = 64
_WINDOW = 7  # of Seg-XRes-CAM, in places of the layer
_BATCH = 8


class SegGradCam:
    """Class activation maps for a class within a region (Vinogradova, Dibrov and Myers 2020, arXiv 2002.11434).

    The score is the sum of the class's logits over the region. A map shows how much each position of a layer raises it.

    Args:
        model: a `Model`, or a Keras model, channels in, logits out, as `build_unet` makes it.
        config: how a Keras model's input is prepared; by default the model's own.
        method: "gradcam" (Selvaraju 2017), "gradcam++" (Chattopadhay 2018), "layercam" (Jiang 2021), "scorecam"
            (Wang 2020), which needs no gradients and runs the network 64 times a slice; "hirescam" (Draelos and Carin
            2020, arXiv 2011.08891), gradient times activation element by element, where Grad-CAM averages the gradient
            and loses the position; or "segxrescam" (Hasany, Petitjean and Meriaudeau 2023), the same with the
            gradient's mean in a window of 7 x 7.
        layer: "bottleneck", "decoder0" (coarse) to "decoder4" (fine), or the name of a layer of the network.

    Raises:
        ConfigError: for an unknown method or layer.

    Examples:
        >>> from liverseg_tf.models.unet import build_unet
        >>> cam = SegGradCam(build_unet(32, "resnet18"), ModelConfig(image_size=32, backbone="resnet18"))
        >>> cam(np.zeros((1, 40, 40), np.float32), np.ones((1, 40, 40)), label=2).shape
        (1, 1, 1)
    """

    def __init__(
        self,
        model: Model | keras.Model,
        config: ModelConfig | None = None,
        method: str = "gradcam",
        layer: str = "bottleneck",
    ):
        taken = Model.of(model, config)
        network, config = taken.network, taken.config
        if method not in CAM_METHODS:
            raise ConfigError(f"explanation method: expected one of {', '.join(CAM_METHODS)}. Received: {method!r}")
        self.model, self.config, self.method = network, config, method
        self.layer = resolve_layer(network, layer)
        self.slice_function = SliceFunction(network, config)
        self._resize, self._restore = SquareResize(config.image_size), RestoreSize()
        if method in ("hirescam", "segxrescam"):
            self._activations = keras.Model(network.inputs, [network.get_layer(self.layer).output, network.outputs[0]])
        else:
            self._visualizer = self._make_visualizer()

    def __call__(self, hu: np.ndarray, region: np.ndarray, label: int) -> np.ndarray:
        """Maps of slices, at the layer's own resolution.

        Args:
            hu: (B, rows, columns) real numbers, HU.
            region: the same shape, bool or weights in [0, 1].
            label: class index.

        Returns:
            (B, h, w) float32, at least 0, comparable between slices; all 0 if nothing raises the score.
        """
        maps = []
        for first in range(0, len(hu), _BATCH):
            part = slice(first, first + _BATCH)
            channels = self.slice_function.network_input(tf.convert_to_tensor(hu[part], tf.float32))
            weights = self._resize(tf.convert_to_tensor(region[part], tf.float32)[..., None])
            maps.append(self._maps(channels, weights, label))
        return np.maximum(np.nan_to_num(np.concatenate(maps)), 0).astype(np.float32)

    def enlarge(self, maps: np.ndarray, rows: int, columns: int) -> np.ndarray:
        """(B, h, w) maps -> (B, rows, columns) float32, resized like probabilities."""
        return self._restore(tf.convert_to_tensor(maps, tf.float32)[..., None], rows_columns=(rows, columns)).numpy()[
            ..., 0
        ]

    def slice_map(self, hu: np.ndarray, region: np.ndarray, label: int, filled: np.ndarray | None = None) -> np.ndarray:
        """(rows, columns) HU, region, class -> (rows, columns) float32 map, at least 0; `filled` is not needed."""
        return self.enlarge(self(hu[None], region[None], label), *hu.shape)[0]

    def _make_visualizer(self):
        if self.method == "scorecam":
            from tf_keras_vis.scorecam import Scorecam

            self._mean = _RegionMean(self.config.image_size)
            model = keras.Model(self.model.inputs, self._mean(self.model.outputs[0]))
            return Scorecam(model)
        if self.method == "gradcam++":
            from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus as Visualizer
        elif self.method == "layercam":
            from tf_keras_vis.layercam import Layercam as Visualizer
        else:
            from tf_keras_vis.gradcam import Gradcam as Visualizer
        return Visualizer(self.model)

    def _maps(self, channels: tf.Tensor, weights: tf.Tensor, label: int) -> np.ndarray:
        options = {
            "penultimate_layer": self.layer,
            "seek_penultimate_conv_layer": False,
            "expand_cam": False,
            "normalize_cam": False,
        }
        if self.method in ("hirescam", "segxrescam"):
            return self._element_by_element(channels, weights, label)
        if self.method == "scorecam":
            return np.concatenate(
                [self._score_cam(c, w, label, options) for c, w in zip(channels, weights, strict=True)]
            )

        def score(logits):
            total = tf.reduce_sum(logits[..., label] * weights[..., 0], axis=(1, 2))
            # Grad-CAM++ takes the score's exponential, which overflows; only the gradient matters.
            return total - tf.stop_gradient(total) if self.method == "gradcam++" else total

        return np.asarray(self._visualizer(score, channels, **options))

    def _element_by_element(self, channels: tf.Tensor, weights: tf.Tensor, label: int) -> np.ndarray:
        with tf.GradientTape() as tape:
            activations, logits = self._activations(channels, training=False)
            score = tf.reduce_sum(logits[..., label] * weights[..., 0])
        gradient = tape.gradient(score, activations)
        if self.method == "segxrescam":
            gradient = tf.nn.avg_pool2d(gradient, _WINDOW, 1, "SAME")
        return tf.reduce_sum(tf.cast(activations * gradient, tf.float32), -1).numpy()

    def _score_cam(self, channels: tf.Tensor, weights: tf.Tensor, label: int, options: dict) -> np.ndarray:
        self._mean.weights_map.assign(weights[None])
        most = self.model.get_layer(self.layer).output.shape[-1]
        with contextlib.redirect_stdout(io.StringIO()):  # Keras's predict prints a bar
            maps = self._visualizer(
                lambda shares: shares[:, label], channels[None], max_N=min(_SCORECAM_CHANNELS, most), **options
            )
        return np.asarray(maps)


class _RegionMean(keras.layers.Layer):
    """Mean logits of each class over a region that is set between calls: (1, S, S, K) -> (1, K)."""

    def __init__(self, size: int):
        super().__init__(name="region_mean", trainable=False)
        self.weights_map = self.add_weight(shape=(1, size, size, 1), initializer="ones", trainable=False)

    def call(self, logits: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(logits * self.weights_map, (1, 2)) / tf.maximum(tf.reduce_sum(self.weights_map), 1e-6)
