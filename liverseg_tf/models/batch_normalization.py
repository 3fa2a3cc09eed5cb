"""Batch normalisation as one TensorFlow operation; Keras makes ten of it, most of which pass over all the values."""

from __future__ import annotations

from functools import partial

import keras


def fuse_batch_normalization(model: keras.Model) -> None:
    """Compute a network's batch normalisation in one operation, forward and backward, on TensorFlow.

    Layers, weights and saved files stay Keras's own, and the results equal Keras's but for rounding. It replaces each
    layer's `call` and not its class: a file that named a class of ours could not be opened without this library. Copies
    by `keras.models.clone_model` compute as Keras does.

    Args:
        model: its layers on (batch, rows, columns, channels) are changed in place.
    """
    if keras.backend.backend() != "tensorflow":
        return
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization) and len(layer.output.shape) == 4:
            layer.call = partial(_call, layer)


def _call(layer: keras.layers.BatchNormalization, inputs, training=None, mask=None):
    """`BatchNormalization.call`: the batch's statistics in training, the moving ones elsewhere."""
    import tensorflow as tf

    trains = bool(training) and layer.trainable
    if mask is not None or (trains and layer.synchronized):  # statistics over several devices
        return type(layer).call(layer, inputs, training=training, mask=mask)
    channels = inputs.shape[-1]
    gamma = tf.cast(layer.gamma, tf.float32) if layer.scale else tf.ones(channels)
    beta = tf.cast(layer.beta, tf.float32) if layer.center else tf.zeros(channels)
    moving = (layer.moving_mean, layer.moving_variance)
    mean, variance = [tf.zeros(0)] * 2 if trains else [tf.cast(average, tf.float32) for average in moving]
    output, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=gamma, offset=beta, mean=mean, variance=variance, epsilon=layer.epsilon, is_training=trains
    )
    if trains:
        count = tf.cast(tf.size(inputs) // channels, tf.float32)
        biased = variance * (count - 1.0) / count  # as Keras's; the operation's is Bessel's
        for average, value in zip(moving, (mean, biased), strict=True):
            average.assign(average * layer.momentum + value * (1.0 - layer.momentum))
    return output
