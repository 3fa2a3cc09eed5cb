"""The score that maps explain: one number for a class in a region."""

from __future__ import annotations

import tensorflow as tf


def region_score(logits: tf.Tensor, weights: tf.Tensor, label: tf.Tensor | int) -> tf.Tensor:
    """Sum of a class's log-odds against all other classes over a region.

    Args:
        logits: (B, S, S, classes).
        weights: (B or 1, S, S) float32, the region: 1 within, 0 outside.
        label: class index.

    Returns:
        (B,) float32.

    Examples:
        >>> logits = tf.reshape(tf.math.log([0.25, 0.75]), [1, 1, 1, 2])
        >>> round(float(region_score(logits, tf.ones([1, 1, 1]), 1)[0]), 3)  # the logarithm of 3 to 1
        1.099
    """
    logits = tf.cast(logits, tf.float32)
    own = tf.one_hot(label, logits.shape[-1])
    others = tf.reduce_logsumexp(logits - 1e9 * own, -1)
    return tf.reduce_sum((tf.reduce_sum(logits * own, -1) - others) * weights, (1, 2))
