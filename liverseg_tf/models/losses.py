"""Losses on integer labels and logits; Keras's own are used where they exist."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from liverseg_tf.errors import ConfigError

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
LOSSES = ("cross_entropy", "dice", "focal", "tversky")


def build_loss(
    name: str = "cross_entropy+dice",
    classes: int = 3,
    class_weights: Sequence[float] | None = None,
    ignore_label: int | None = None,
) -> Loss:
    """Build a loss, or a sum of several.

    Args:
        name: names of `LOSSES` joined by `+`, each with an optional factor, as `"cross_entropy+0.5*dice"`.
        classes: number of classes, background included.
        class_weights: weight of each class in cross entropy and focal loss; Dice and Tversky ignore them.
        ignore_label: label of pixels that are ignored, such as 255; None to count all pixels.

    Returns:
        A function of (labels (B, H, W) integer, logits (B, H, W, classes) float) that gives a float32 scalar.

    Raises:
        ConfigError: for an unknown name, or a wrong number of class weights.

    Examples:
        >>> loss = build_loss("cross_entropy", classes=2)
        >>> float(loss(tf.zeros((1, 2, 2), tf.uint8), tf.constant([[[[9.0, -9.0]] * 2] * 2]))) < 1e-6
        True
    """
    if class_weights is not None and (len(class_weights) != classes or min(class_weights) < 0):
        raise ConfigError(f"class weights: expected {classes} numbers of at least 0. Received: {class_weights}")
    terms = []
    for term in name.split("+"):
        factor, _, kind = term.strip().rpartition("*")
        try:
            weight = float(factor) if factor else 1.0
        except ValueError:
            raise ConfigError(f"loss {name!r}: expected a number before '*'. Received: {factor!r}") from None
        if kind not in LOSSES:
            raise ConfigError(f"loss {name!r}: expected {', '.join(LOSSES)}, joined by '+'. Received: {kind!r}")
        terms.append((weight, _TERMS[kind](classes, class_weights)))

    def loss(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        labels, logits = tf.cast(labels, tf.int32), tf.cast(logits, tf.float32)
        counted = tf.ones(tf.shape(labels)) if ignore_label is None else tf.cast(labels != ignore_label, tf.float32)
        truth = tf.one_hot(labels, classes)
        return tf.add_n([weight * term(truth, logits, counted) for weight, term in terms])

    return loss


def _over_replicas(*sums: tf.Tensor) -> Sequence[tf.Tensor]:
    """Sums over all replicas of a `tf.distribute` strategy, so that a batch has the same loss on any number of them."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return sums
    return context.all_reduce(tf.distribute.ReduceOp.SUM, list(sums))


def soft_dice_loss(truth: tf.Tensor, logits: tf.Tensor, counted: tf.Tensor) -> tf.Tensor:
    """1 - soft Dice, averaged over all classes except the background.

    For each class: 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), sums over all replicas. A class that
    the batch does not contain adds no loss if none of it is predicted (Milletari et al., 2016, arXiv 1606.04797,
    smoothed).

    Args:
        truth: (B, H, W, K) one-hot float32.
        logits: (B, H, W, K) float32.
        counted: (B, H, W) float32, 0 for ignored pixels, else 1.
    """
    counted = counted[..., None]
    probabilities, truth = tf.nn.softmax(logits)[..., 1:] * counted, truth[..., 1:] * counted
    both = tf.reduce_sum(probabilities * truth, axis=(0, 1, 2))
    either = tf.reduce_sum(probabilities, axis=(0, 1, 2)) + tf.reduce_sum(truth, axis=(0, 1, 2))
    both, either = _over_replicas(both, either)
    return tf.reduce_mean(1.0 - (2.0 * both + 1.0) / (either + 1.0))


def _cross_entropy(classes, class_weights):
    weights = tf.constant([1.0] * classes if class_weights is None else list(class_weights), tf.float32)

    def term(truth, logits, counted):
        counted = counted * tf.linalg.matvec(truth, weights)
        values = tf.nn.softmax_cross_entropy_with_logits(truth, logits)
        return tf.math.divide_no_nan(*_over_replicas(tf.reduce_sum(values * counted), tf.reduce_sum(counted)))

    return term


def _dice(classes, class_weights):
    return soft_dice_loss


def _focal(classes, class_weights):
    focal = keras.losses.CategoricalFocalCrossentropy(
        alpha=list(class_weights) if class_weights is not None else 0.25, from_logits=True, reduction=None
    )

    def term(truth, logits, counted):
        values = focal(truth, logits)
        return tf.math.divide_no_nan(*_over_replicas(tf.reduce_sum(values * counted), tf.reduce_sum(counted)))

    return term


def _tversky(classes, class_weights):
    """Tversky loss (Salehi et al. 2017, arXiv 1706.05721): false negatives cost more than false positives.

    `keras.losses.Tversky` is not used: its alpha weights false negatives, but its documentation says false positives.
    """

    def term(truth, logits, counted):  # over each replica's part of the batch
        truth, found = (x[..., 1:] * counted[..., None] for x in (truth, tf.nn.softmax(logits)))
        shared, extra, missed = (
            tf.reduce_sum(x, (0, 1, 2)) for x in (truth * found, (1 - truth) * found, truth * (1 - found))
        )
        return tf.reduce_mean(1 - shared / (shared + 0.3 * extra + 0.7 * missed + keras.config.epsilon()))

    return term


_TERMS = {"cross_entropy": _cross_entropy, "dice": _dice, "focal": _focal, "tversky": _tversky}
