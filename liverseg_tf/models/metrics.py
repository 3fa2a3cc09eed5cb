"""Segmentation metrics from confusion matrices: exact over any number of batches."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from liverseg_tf.labels import BACKGROUND, LIVER_CLASSES, ClassSet


def confusion_matrices(labels: tf.Tensor, logits: tf.Tensor, classes: int) -> tf.Tensor:
    """Count pixels by true and predicted class, for each slice.

    Args:
        labels: (B, H, W) integer; values outside 0 to classes - 1 are ignored.
        logits: (B, H, W, classes).

    Returns:
        (B, classes, classes) int64: rows true, columns predicted.
    """
    truth = tf.one_hot(tf.cast(labels, tf.int32), classes)
    predicted = tf.one_hot(tf.argmax(logits, -1), classes)
    # A slice has far fewer pixels than float32 counts exactly (2^24).
    return tf.cast(tf.round(tf.einsum("bhwt,bhwp->btp", truth, predicted)), tf.int64)


def metrics_from_confusion(confusion: np.ndarray, classes: ClassSet = LIVER_CLASSES) -> dict[str, float]:
    """Accuracy, Dice and IoU from one confusion matrix.

    `accuracy` counts every pixel (the original's accuracy with background); `foreground_accuracy` those whose true
    class is not background (fastai's `foreground_acc`). For each other class c: Dice 2 TP / (2 TP + FP + FN) and IoU
    TP / (TP + FP + FN). The organ includes its lesion, as the LiTS challenge counts tumour as
    liver. A figure is NaN if no pixel belongs to it.

    Args:
        confusion: (K, K) counts, rows true, columns predicted.
        classes: the K classes.
    """
    confusion = np.asarray(confusion, np.float64)
    foreground = confusion[BACKGROUND + 1 :]
    result = {
        "accuracy": _ratio(np.trace(confusion), confusion.sum()),
        "foreground_accuracy": _ratio(np.trace(foreground[:, BACKGROUND + 1 :]), foreground.sum()),
    }
    for name, members in _members(classes).items():
        both = confusion[members, members].sum()
        true, predicted = confusion[members].sum(), confusion[:, members].sum()
        result[f"{name}_dice"] = _ratio(2 * both, true + predicted)
        result[f"{name}_iou"] = _ratio(both, true + predicted - both)
    return result


def mean_dice(confusion: np.ndarray, classes: ClassSet = LIVER_CLASSES) -> float:
    """Mean of the classes' Dice over all pixels: the "global Dice" by which nnU-Net selects its checkpoint.

    A class counts if it occurs in the reference, whatever is predicted. So a network that finds no tumour has the
    tumour Dice 0, and a false tumour in a healthy patient costs as much as its pixels. (In a mean over patients, a
    single false pixel turns a healthy patient's tumour Dice from undefined to 0, and finding nothing can score best.)

    Args:
        confusion: (K, K) counts over all validation slices, rows true, columns predicted.
        classes: the K classes.

    Returns:
        0 to 1; NaN if no class occurs.

    Examples:
        >>> mean_dice([[90, 0, 0], [0, 8, 0], [0, 2, 0]])  # liver 1, tumour 0
        0.5
    """
    confusion = np.asarray(confusion, np.float64)
    figures = metrics_from_confusion(confusion, classes)
    found = [figures[f"{name}_dice"] for name, members in _members(classes).items() if confusion[members].any()]
    return float(np.mean(found)) if found else float("nan")


def report_index_losses(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Dice and IoU losses of the original project's report, with their flaw: they multiply class indices.

    They are wrong, and may be negative, if class 2 is present; they are kept only for comparison with the original's
    figures.
    `report_dice_loss` = 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), `report_iou_loss` likewise.

    Args:
        labels, predicted: class indices, same shape.
    """
    t, p = np.asarray(labels, np.float64), np.asarray(predicted, np.float64)
    both, total = (t * p).sum(), t.sum() + p.sum()
    return {
        "report_dice_loss": float(1 - (2 * both + 1) / (total + 1)),
        "report_iou_loss": float(1 - (both + 1) / (total - both + 1)),
    }


def _members(classes: ClassSet) -> dict[str, slice]:
    """Each class but the background -> its indices; the organ includes its lesion."""
    stops = {1: classes.organ_indices.stop}
    return {name: slice(i, stops.get(i, i + 1)) for i, name in enumerate(classes.names) if i != BACKGROUND}


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
