"""Lesions of a mask as objects, and matching of the lesions of two masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # its parts are loaded where they are first used

from liverseg_tf.evaluation.surface import Box

SIZES: tuple[str, ...] = ("small", "medium", "large")


def label_lesions(tumour: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the connected components of a mask from 1, in the array's own order.

    Voxels connect by faces (6 neighbours), as in the LiTS challenge's scorer.

    Args:
        tumour: (I, J, K) bool.

    Returns:
        (I, J, K) int32 with 0 for background, and the number of components.

    Examples:
        >>> label_lesions(np.array([[[True, False, True]]]))[1]
        2
    """
    components = np.empty(tumour.shape, np.int32)
    return components, scipy.ndimage.label(tumour, output=components)


def equivalent_diameter_mm(volume_ml: np.ndarray | float) -> np.ndarray | float:
    """Diameter of the ball with a given volume.

    Examples:
        >>> round(float(equivalent_diameter_mm(4.18879)), 3)
        20.0
    """
    return np.cbrt(6000 * np.asarray(volume_ml) / np.pi)


def size_class(diameter_mm: float) -> str:
    """`small` under 10 mm, `large` over 20 mm, else `medium`."""
    return "small" if diameter_mm < 10 else "large" if diameter_mm > 20 else "medium"


@dataclass(frozen=True)
class LesionMatch:
    """Matched reference and predicted lesions, after merging.

    Lesions are counted from 0 here. A group is one or several reference lesions with one or several predicted lesions;
    its number is that of its first reference lesion. A predicted lesion belongs to one group or, as -1, to none.

    Attributes:
        truth_group: (G,) int, the group of each reference lesion.
        prediction_group: (P,) int, the group of each predicted lesion, or -1.
        merge_count: (G,) int, number of reference lesions merged in the step that merged this one; 1 if not merged.
        overlap: (P, G) int, number of voxels shared by each predicted and each reference lesion.
        truth_voxels: (G,) int, voxels of each reference lesion.
        prediction_voxels: (P,) int, voxels of each predicted lesion.
    """

    truth_group: np.ndarray
    prediction_group: np.ndarray
    merge_count: np.ndarray
    overlap: np.ndarray
    truth_voxels: np.ndarray
    prediction_voxels: np.ndarray

    def union(self, prediction_selected: np.ndarray, truth_selected: np.ndarray) -> int:
        """Voxels in any of the selected predicted lesions (P,) bool or reference lesions (G,) bool."""
        shared = self.overlap[np.ix_(prediction_selected, truth_selected)].sum()
        return int(self.prediction_voxels[prediction_selected].sum() + self.truth_voxels[truth_selected].sum() - shared)

    def groups(self) -> np.ndarray:
        """Groups that have a predicted lesion, ascending."""
        return np.unique(self.prediction_group[self.prediction_group >= 0])

    def detected_groups(self, min_overlap: float) -> np.ndarray:
        """Groups whose intersection over union is above `min_overlap` (0 to 1), ascending."""
        kept = []
        for group in self.groups():
            predicted, true = self.prediction_group == group, self.truth_group == group
            shared = self.overlap[np.ix_(predicted, true)].sum()
            if shared > min_overlap * self.union(predicted, true):
                kept.append(group)
        return np.array(kept, int)


def match_lesions(truth_lesions: np.ndarray, prediction_lesions: np.ndarray) -> LesionMatch:
    """Match two masks' lesions with merging, as the LiTS challenge does (Bilic 2023, appendix).

    First, reference lesions that one predicted lesion spans are merged, each by the predicted lesion that overlaps it
    most. Then each predicted lesion that touches the reference joins the (merged) reference lesion that it overlaps
    most, and those with the same one are merged. Ties go to the lower number; the numbering follows the array's order.

    Args:
        truth_lesions: (I, J, K) int, 1 to G for lesions and 0 for background.
        prediction_lesions: (I, J, K) int, 1 to P.

    Returns:
        The match; it does not depend on a threshold.

    Examples:
        >>> truth, prediction = np.array([[[1, 1, 0, 2]]]), np.array([[[1, 1, 1, 1]]])
        >>> match_lesions(truth, prediction).truth_group  # one predicted lesion spans both
        array([0, 0])
    """
    truth_voxels = np.bincount(truth_lesions[truth_lesions > 0])[1:]
    prediction_voxels = np.bincount(prediction_lesions[prediction_lesions > 0])[1:]
    overlap = np.zeros((len(prediction_voxels), len(truth_voxels)), np.int64)
    shared = (truth_lesions > 0) & (prediction_lesions > 0)
    np.add.at(overlap, (prediction_lesions[shared] - 1, truth_lesions[shared] - 1), 1)

    truth_group = np.arange(len(truth_voxels))
    merge_count = np.ones(len(truth_voxels), int)
    touching = np.flatnonzero(overlap.any(axis=1))
    merged = overlap[touching]  # columns of merged lesions are summed into the first and cleared
    for row in range(len(touching)):
        spanned = np.flatnonzero(merged[row])
        merge = spanned[merged[:, spanned].argmax(axis=0) == row]
        merge_count[merge] = len(merge)
        if len(merge) > 1:
            merged[:, merge[0]] = merged[:, merge].sum(axis=1)
            merged[:, merge[1:]] = 0
            truth_group[np.isin(truth_group, merge)] = merge[0]

    prediction_group = np.full(len(prediction_voxels), -1)
    if len(touching):
        prediction_group[touching] = merged.argmax(axis=1)
    return LesionMatch(truth_group, prediction_group, merge_count, overlap, truth_voxels, prediction_voxels)


@dataclass(frozen=True)
class LesionMeasures:
    """Size and position of each numbered lesion, one element per lesion.

    Attributes:
        voxels: (N,) int.
        volume_ml: (N,) float64.
        diameter_mm: (N,) float64, of the ball of the same volume.
        centroid: (N, 3) float64, voxel indices.
        boxes: N tuples of three slices, the lesion's bounding box in voxel indices.
        largest_slice: (N,) int, index along the last axis where the lesion has most voxels (the first of them).
    """

    voxels: np.ndarray
    volume_ml: np.ndarray
    diameter_mm: np.ndarray
    centroid: np.ndarray
    boxes: list[Box]
    largest_slice: np.ndarray


def measure_lesions(lesions: np.ndarray, voxel_volume_ml: float) -> LesionMeasures:
    """Measure numbered lesions.

    Args:
        lesions: (I, J, K) int, 1 to N for lesions, each at least one voxel, and 0 for background.
        voxel_volume_ml: of the grid, as `Geometry.voxel_volume_ml`.

    Examples:
        >>> measure_lesions(np.array([[[0, 1, 1]]]), 0.003).volume_ml
        array([0.006])
    """
    places = np.nonzero(lesions)
    number = lesions[places] - 1
    voxels = np.bincount(number)
    volume_ml = voxels * voxel_volume_ml
    diameter_mm = np.asarray(equivalent_diameter_mm(volume_ml))
    centroid = np.stack([np.bincount(number, weights=place) for place in places], axis=1) / voxels[:, None]
    slices = lesions.shape[2]
    area = np.bincount(number * slices + places[2], minlength=len(voxels) * slices).reshape(len(voxels), slices)
    return LesionMeasures(
        voxels,
        volume_ml,
        diameter_mm,
        centroid,
        scipy.ndimage.find_objects(lesions),
        area.argmax(axis=1),
    )
