"""From raw HU to classes in one graph: the function that every runtime computes."""

from __future__ import annotations

import keras
import tensorflow as tf

from liverseg_tf.channels import CTChannels, RestoreSize, SquareResize
from liverseg_tf.config import ModelConfig


class SliceFunction(tf.Module):
    """Raw HU slices in, probabilities or labels of the same size out.

    HU -> channels at the slice's own resolution -> square -> network's size -> network -> softmax -> bilinear back ->
    crop -> argmax. A slice's result doesn't depend on the others in its batch.

    Args:
        model: channels in, logits out.
        config: how the model's input is prepared.
        portable: use only TFLite's builtin operations; for slices of a fixed size.
    """

    def __init__(self, model: keras.Model, config: ModelConfig, portable: bool = False):
        super().__init__()
        self.model, self.config = model, config
        self.channels = CTChannels.from_channels_config(config.channels, portable)
        self.resize = SquareResize(config.image_size)
        self.restore = RestoreSize()

    def network_input(self, hu: tf.Tensor) -> tf.Tensor:
        """(B, H, W) HU -> (B, S, S, C) float32 channels."""
        return self.resize(self.channels(hu))

    def from_logits(self, logits: tf.Tensor, rows, columns) -> tf.Tensor:
        """(B, S, S, K) logits -> (B, rows, columns, K) float32 probabilities."""
        return self.restore(tf.nn.softmax(tf.cast(logits, tf.float32)), rows_columns=(rows, columns))

    def at_network_size(self, hu: tf.Tensor) -> tf.Tensor:
        """(B, H, W) HU -> (B, K, S, S) float32 probabilities of the padded square, at the network's size."""
        logits = self.model(self.network_input(hu), training=False)
        return tf.transpose(tf.nn.softmax(tf.cast(logits, tf.float32)), [0, 3, 1, 2])

    def probabilities(self, hu: tf.Tensor) -> tf.Tensor:
        """(B, H, W) HU -> (B, H, W, K) float32 probabilities."""
        rows, columns = hu.shape[1:3]
        if rows is None or columns is None:
            rows, columns = tf.shape(hu)[1], tf.shape(hu)[2]
        return self.from_logits(self.model(self.network_input(hu), training=False), rows, columns)

    def labels(self, hu: tf.Tensor) -> tf.Tensor:
        """(B, H, W) HU -> (B, H, W) uint8 class indices."""
        return self.most_probable(self.probabilities(hu))

    @staticmethod
    def most_probable(probabilities: tf.Tensor) -> tf.Tensor:
        """(B, H, W, K) probabilities -> (B, H, W) uint8 class indices."""
        return tf.cast(tf.argmax(probabilities, -1, output_type=tf.int32), tf.uint8)
