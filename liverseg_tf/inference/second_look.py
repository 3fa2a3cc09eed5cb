"""A second model's opinion of each tumour that the first one found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from liverseg_tf.data.volume import CTVolume
from liverseg_tf.evaluation.surface import class_box
from liverseg_tf.inference.pieces import Pieces
from liverseg_tf.labels import BACKGROUND, TUMOUR, ClassSet

# Mean probability of tumour within a component: docs/shipped_model.md has what other values did.
LEAST_PROBABILITY = 0.1
# One of so many slices with tumour is shown at first.
_SOME = 4
_CONFIRMED = 255  # a label that no class has


def look_again(
    labels: np.ndarray,
    volume: CTVolume,
    probabilities: Callable[[np.ndarray], np.ndarray],
    classes: ClassSet,
    slices_at_once: int = 4,
    step: int = 1,
) -> np.ndarray:
    """Keep the tumours to which a second network gives a mean probability of at least 0.1.

    Networks of different kinds, trained on different images, rarely mistake the same gallbladder, vessel or bowel loop
    for a tumour. Only slices with tumour are shown to the second network, a quarter of them first, then those
    with tumours that it has not confirmed yet. In a connected component (faces) that it does not confirm, each voxel
    gets the class that it finds most probable except tumour.

    Args:
        labels: (rows, columns, slices) uint8, changed in place.
        volume: the CT.
        probabilities: (B, rows, columns) HU -> (B, rows, columns, classes).
        classes: of both networks; without a lesion among them nothing is changed.
        slices_at_once: in a batch.
        step: show each `step`-th slice only; a slice between them gets the probabilities of the nearest one.

    Returns:
        `labels`.
    """
    box = None if classes.lesion is None else class_box(labels, TUMOUR)
    if box is None:
        return labels
    there = labels[box]
    planes_of: dict[int, list[int]] = {}  # by the slice that is shown
    for plane in range(there.shape[2]):
        if (there[..., plane] == TUMOUR).any():
            shown = min(round((box[2].start + plane) / step) * step, labels.shape[2] - 1)
            planes_of.setdefault(shown, []).append(plane)
    # only tumour's own voxels are written, so that most of this array takes no memory; its slices lie in one piece each
    percent = np.zeros(there.shape, np.uint8, order="F")
    seen: list[tuple[tuple[Any, ...], np.ndarray]] = []

    def show(indices: list[int]) -> None:
        for first in range(0, len(indices), slices_at_once):
            chunk = indices[first : first + slices_at_once]
            hu = np.concatenate([volume.slices(index, index + 1) for index in chunk])
            for index, found in zip(chunk, probabilities(hu)[:, *box[:2]], strict=True):
                for plane in planes_of[index]:
                    places: tuple[Any, ...] = (*np.nonzero(there[..., plane] == TUMOUR), plane)
                    of_voxels = found[places[:2]]
                    percent[places] = np.rint(100 * of_voxels[:, TUMOUR])
                    of_voxels[:, TUMOUR] = -1
                    seen.append((places, of_voxels.argmax(-1).astype(np.uint8)))

    # a tumour that some of its slices confirm, the others taken for 0, need not be seen in the others
    some = list(planes_of)[_SOME // 2 :: _SOME]
    show(some)
    lesions = Pieces(there, lambda slab: slab == TUMOUR)
    lesions.relabel(lesions.sums(percent) >= 100 * LEAST_PROBABILITY * lesions.voxels, _CONFIRMED)
    rest = [index for index in planes_of if index not in some]
    show([index for index in rest if any((there[..., plane] == TUMOUR).any() for plane in planes_of[index])])
    lesions = Pieces(there, lambda slab: slab == TUMOUR)
    lesions.relabel(lesions.sums(percent) < 100 * LEAST_PROBABILITY * lesions.voxels, BACKGROUND)
    for places, instead in seen:
        there[places] = np.where(there[places] == BACKGROUND, instead, there[places])
    there[there == _CONFIRMED] = TUMOUR
    return labels
