"""A second model's opinion of each tumour that the first one found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from liverseg_tf.data.volume import CTVolume
from liverseg_tf.evaluation.surface import class_box
from liverseg_tf.inference.pieces import Pieces
from liverseg_tf.labels import TUMOUR, ClassSet

# Mean probability of tumour within a component: docs/shipped_model.md has what other values did.
LEAST_PROBABILITY = 0.1


def look_again(
    labels: np.ndarray,
    volume: CTVolume,
    probabilities: Callable[[np.ndarray], np.ndarray],
    classes: ClassSet,
    slices_at_once: int = 4,
) -> np.ndarray:
    """Keep the tumours to which a second network gives a mean probability of at least 0.1.

    Networks of different kinds, trained on different images, rarely mistake the same gallbladder, vessel or bowel loop
    for a tumour. Only slices with tumour are shown to the second network. In a connected component (faces) that it
    does not confirm, each voxel gets the class that it finds most probable except tumour.

    Args:
        labels: (rows, columns, slices) uint8, changed in place.
        volume: the CT.
        probabilities: (B, rows, columns) HU -> (B, rows, columns, classes).
        classes: of both networks; without a lesion among them nothing is changed.
        slices_at_once: in a batch.

    Returns:
        `labels`.
    """
    box = None if classes.lesion is None else class_box(labels, TUMOUR)
    if box is None:
        return labels
    there = labels[box]
    tumour_slices = box[2].start + np.flatnonzero((there == TUMOUR).any((0, 1)))
    percent, instead = np.zeros(there.shape, np.uint8), np.zeros(there.shape, np.uint8)
    for first in range(0, len(tumour_slices), slices_at_once):
        chunk = tumour_slices[first : first + slices_at_once]
        found = probabilities(np.concatenate([volume.slices(index, index + 1) for index in chunk]))
        for index, one in zip(chunk - box[2].start, found[:, *box[:2]], strict=True):
            percent[..., index] = np.rint(100 * one[..., TUMOUR])
            instead[..., index] = np.where(np.arange(one.shape[-1]) == TUMOUR, -1.0, one).argmax(-1)
    lesions = Pieces(there, lambda slab: slab == TUMOUR)
    doubtful = lesions.sums(percent) < 100 * LEAST_PROBABILITY * lesions.voxels
    before = there.copy()
    lesions.relabel(doubtful, 0)
    np.copyto(there, instead, where=(before == TUMOUR) & (there != TUMOUR))
    return labels
