"""The LiTS challenge's own scores, under its own names and by its own rules.

The rules are those of the challenge's scoring program (`lits-challenge-scoring` by P. Christ and others; see Bilic and
others, "The Liver Tumor Segmentation Benchmark (LiTS)", Medical Image Analysis 2023), including its peculiarities,
because scores can be compared only if they are computed in the same way:

- RVD is (reference - prediction) / prediction, so a prediction that is too large gives a negative figure.
- A liver counts as predicted only if some voxel has the value 1. Without one, or if the reference has no liver, the
  case counts Dice 0, Jaccard 0, VOE 1, and 9001 for RVD and distances. If no lesion of the whole set is detected, the
  lesions get the same figures.
- Lesion surfaces, overlap and RVD are means over detected lesions (overlap above 0.5), not over cases.
- Testing a merged lesion's overlap, the program looks up the predicted lesion's number among reference numbers. The
  union it divides by is therefore often too small, and depends on the order in which lesions are numbered. It also
  counts one detection per group, but takes one per merged reference lesion away when a group fails.
- Tumour burden error is reference - prediction; the burden of a prediction without a voxel of 1 is 9001. The maximum is
  that of the signed error.
- If neither mask has a lesion, the case's lesion Dice is 1.

Where the challenge's program fails, these rules apply: a reference without lesions has only false positives; a data set
without any lesion, or any liver, has a global Dice of 1; the burden of a reference without liver is 0, and its error is
0 if the prediction has no liver either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from liverseg_tf.evaluation.lesions import LesionMatch
from liverseg_tf.evaluation.surface import SurfaceDistances

MISSING_DISTANCE = 9001.0
MIN_OVERLAP = 0.5


@dataclass(frozen=True)
class ObjectScores:
    """The challenge's seven figures of one object: a liver or a detected lesion; the defaults are for a missing one."""

    dice: float = 0.0
    jaccard: float = 0.0
    voe: float = 1.0
    rvd: float = MISSING_DISTANCE
    assd: float = MISSING_DISTANCE
    rmsd: float = MISSING_DISTANCE
    msd: float = MISSING_DISTANCE


OBJECT_SCORES: tuple[str, ...] = tuple(ObjectScores.__dataclass_fields__)


def object_scores(
    truth_voxels: int, prediction_voxels: int, shared_voxels: int, distances: SurfaceDistances | None
) -> ObjectScores:
    """Score one object as the challenge does.

    Args:
        truth_voxels, prediction_voxels, shared_voxels: sizes of both masks and of their intersection.
        distances: of their surfaces; None if one mask is empty, which gives the challenge's penalties.
    """
    if distances is None:
        return ObjectScores()
    dice = 2 * shared_voxels / (truth_voxels + prediction_voxels)
    jaccard = dice / (2 - dice)
    return ObjectScores(
        dice=dice,
        jaccard=jaccard,
        voe=1 - jaccard,
        rvd=(truth_voxels - prediction_voxels) / prediction_voxels,
        assd=distances.assd(),
        rmsd=distances.rmsd(),
        msd=distances.msd(),
    )


def challenge_detections(match: LesionMatch, min_overlap: float) -> tuple[np.ndarray, int]:
    """Groups of lesions that the challenge's program counts as detected, and its number of detections.

    Args:
        match: match of lesions that are numbered in the order of the file's voxels; the result depends on this order.
        min_overlap: the overlap must be above this, 0 to 1.

    Returns:
        (D,) int groups that are detected, ascending, and the program's count; the two may differ (see above).
    """
    # The program's arrays: for each predicted lesion the group it was given (trimmed ones are taken out as it goes).
    given = match.prediction_group.copy()
    groups = match.groups()
    first_lesion = [int(np.flatnonzero(given == group)[0]) for group in groups]
    detected = len(groups)
    for lesion, group in sorted(zip(first_lesion, groups, strict=True)):
        true = match.truth_group == group
        shared = match.overlap[np.ix_(match.prediction_group == group, true)].sum()
        # `given == lesion` compares a predicted lesion's number with groups, as the program does.
        if shared <= min_overlap * match.union(given == lesion, true):
            given[given == group] = -1
            detected -= int(match.merge_count[group])
    return np.unique(given[given >= 0]), detected


@dataclass(frozen=True)
class LitsCase:
    """Contribution of one case to the challenge's scores. Voxel counts are ints; burdens are fractions of the liver.

    Attributes:
        liver: scores of the liver (tumour included).
        liver_predicted: whether the prediction has a voxel of value 1.
        detected_lesions: scores of each detected lesion.
        detections: per overlap (0 and 0.5), the program's count of detections.
        lesions: numbers of reference and predicted lesions.
        liver_voxels, lesion_voxels: (reference, prediction, shared).
    """

    liver: ObjectScores
    liver_predicted: bool
    detected_lesions: tuple[ObjectScores, ...]
    detections: dict[float, int]
    lesions: tuple[int, int]
    liver_voxels: tuple[int, int, int]
    lesion_voxels: tuple[int, int, int]

    def lesion_dice(self) -> float:
        truth, prediction, shared = self.lesion_voxels
        return 2 * shared / (truth + prediction) if truth + prediction else 1.0

    def burden_error(self) -> float:
        """Reference burden minus predicted burden."""
        truth_liver, prediction_liver, _ = self.liver_voxels
        truth = self.lesion_voxels[0] / truth_liver if truth_liver else 0.0
        if self.liver_predicted:
            return truth - self.lesion_voxels[1] / prediction_liver
        return truth - MISSING_DISTANCE if truth_liver or prediction_liver else 0.0


def lits_terms(case: LitsCase) -> dict[str, tuple[float, float]]:
    """Numerator and denominator of one case for each score: every score is a ratio of sums over cases.

    Returns:
        The keys of the challenge's `scores.txt`, in its order, except `MAXERROR_Tumorburden`. For
        `RMSE_Tumorburden` the ratio is the mean square.
    """
    detection = {}
    for overlap in (MIN_OVERLAP, 0):
        suffix = "" if overlap else "_greater_zero"
        detection[f"lesion_precision{suffix}"] = case.detections[overlap], case.lesions[1]
        detection[f"lesion_recall{suffix}"] = case.detections[overlap], case.lesions[0]
    lesions, liver = case.detected_lesions, case.liver if case.liver_predicted else ObjectScores()
    # Without a predicted liver the program adds the reference's voxels only.
    liver_voxels = case.liver_voxels if case.liver_predicted else (case.liver_voxels[0], 0, 0)
    return {
        **detection,
        **{f"lesion_{name}": (sum(getattr(o, name) for o in lesions), len(lesions)) for name in OBJECT_SCORES},
        "lesion_dice_per_case": (case.lesion_dice(), 1),
        "lesion_dice_global": (2 * case.lesion_voxels[2], case.lesion_voxels[0] + case.lesion_voxels[1]),
        **{f"liver_{name}": (getattr(liver, name), 1) for name in OBJECT_SCORES},
        "liver_dice_per_case": (liver.dice, 1),
        "liver_dice_global": (2 * liver_voxels[2], liver_voxels[0] + liver_voxels[1]),
        "RMSE_Tumorburden": (case.burden_error() ** 2, 1),
    }


# Value of a score whose denominator is 0 over all cases.
_EMPTY = {
    **{f"lesion_{name}": default for name, default in asdict(ObjectScores()).items()},
    "lesion_dice_global": 1.0,
    "liver_dice_global": 1.0,
}


def lits_scores(cases: Sequence[LitsCase]) -> dict[str, float]:
    """The challenge's scores of a set of cases, with the keys and in the order of its `scores.txt`.

    Args:
        cases: at least one.

    Returns:
        Unrounded figures; distances in mm.
    """
    terms = [lits_terms(case) for case in cases]
    scores = {}
    for name in terms[0]:
        numerator, denominator = np.sum([term[name] for term in terms], axis=0)
        scores[name] = float(numerator / denominator) if denominator else _EMPTY.get(name, 0.0)
    scores["RMSE_Tumorburden"] = float(np.sqrt(scores["RMSE_Tumorburden"]))
    scores["MAXERROR_Tumorburden"] = float(max(case.burden_error() for case in cases))
    return scores
