from __future__ import annotations

import numpy as np
import pytest

from liverseg_tf.evaluation.case_scores import score_case
from liverseg_tf.evaluation.lesions import match_lesions
from liverseg_tf.evaluation.lits import challenge_detections, lits_scores

KEYS = [
    "lesion_precision",
    "lesion_recall",
    "lesion_precision_greater_zero",
    "lesion_recall_greater_zero",
    *(f"lesion_{n}" for n in ("dice", "jaccard", "voe", "rvd", "assd", "rmsd", "msd", "dice_per_case", "dice_global")),
    *(f"liver_{n}" for n in ("dice", "jaccard", "voe", "rvd", "assd", "rmsd", "msd", "dice_per_case", "dice_global")),
    "RMSE_Tumorburden",
    "MAXERROR_Tumorburden",
]


@pytest.fixture
def scores_of(mask_of):
    return lambda *pairs: lits_scores([score_case(mask_of(t), mask_of(p)).lits for t, p in pairs])


def volume(liver=True, *lesions):
    labels = np.zeros((12, 10, 8), np.uint8)
    if liver:
        labels[1:11, 1:9, 1:7] = 1
    for lesion in lesions:
        labels[lesion] = 2
    return labels


LESION = (slice(2, 4), slice(2, 4), slice(2, 4))  # 8 voxels
OTHER = (slice(7, 9), slice(2, 4), slice(2, 4))


def test_keys_are_the_challenge_s_in_its_order(scores_of, liver_pair):
    assert list(scores_of(liver_pair)) == KEYS


def test_a_perfect_prediction(scores_of):
    labels = volume(True, LESION, OTHER)
    expected = {
        key: 0.0 if key.split("_")[-1] in ("voe", "rvd", "assd", "rmsd", "msd", "Tumorburden") else 1.0 for key in KEYS
    }
    assert scores_of((labels, labels)) == pytest.approx(expected)


def test_hand_computed_pair(scores_of, liver_pair):
    scores = scores_of(liver_pair)
    # Lesions: of two reference and two predicted ones, one pair overlaps in 48 of 80 voxels.
    assert scores["lesion_precision"] == scores["lesion_recall"] == 0.5
    assert scores["lesion_precision_greater_zero"] == scores["lesion_recall_greater_zero"] == 0.5
    assert scores["lesion_dice"] == pytest.approx(2 * 48 / 128)
    assert scores["lesion_jaccard"] == pytest.approx(48 / 80)
    assert scores["lesion_voe"] == pytest.approx(1 - 48 / 80)
    assert scores["lesion_rvd"] == 0
    assert scores["lesion_msd"] == 1  # moved by one voxel of 1 mm
    assert scores["lesion_dice_per_case"] == scores["lesion_dice_global"] == pytest.approx(2 * 48 / (72 + 91))
    assert scores["liver_dice"] == scores["liver_dice_global"] == 1
    assert scores["liver_msd"] == 0
    assert scores["RMSE_Tumorburden"] == pytest.approx((91 - 72) / 3200)
    assert scores["MAXERROR_Tumorburden"] == pytest.approx((72 - 91) / 3200)  # signed, as in the challenge


def test_a_liver_that_is_too_large_has_a_negative_rvd(scores_of):
    truth, prediction = volume(), volume()
    prediction[11] = prediction[10]
    assert scores_of((truth, prediction))["liver_rvd"] == pytest.approx((480 - 528) / 528)


def test_a_reference_without_lesions_has_false_positives_only(scores_of):
    scores = scores_of((volume(), volume(True, LESION)))
    assert scores["lesion_precision"] == scores["lesion_recall"] == scores["lesion_precision_greater_zero"] == 0
    assert scores["lesion_dice_per_case"] == scores["lesion_dice_global"] == 0
    assert scores["lesion_msd"] == scores["lesion_rvd"] == 9001  # nothing detected in the whole set
    assert scores["lesion_voe"] == 1


def test_no_lesion_in_either_mask_is_agreement(scores_of):
    scores = scores_of((volume(), volume()))
    assert scores["lesion_dice_per_case"] == scores["lesion_dice_global"] == 1
    assert scores["lesion_precision"] == scores["lesion_recall"] == 0
    assert scores["RMSE_Tumorburden"] == 0


def test_an_empty_prediction_gets_the_penalties(scores_of):
    scores = scores_of((volume(True, LESION), volume(False)))
    assert scores["liver_dice"] == scores["liver_dice_per_case"] == scores["liver_dice_global"] == 0
    assert scores["liver_voe"] == 1
    assert {scores[f"liver_{n}"] for n in ("rvd", "assd", "rmsd", "msd")} == {9001}
    assert scores["RMSE_Tumorburden"] == pytest.approx(9001 - 8 / 480)
    assert scores["MAXERROR_Tumorburden"] == pytest.approx(8 / 480 - 9001)


def test_a_prediction_of_tumour_alone_is_no_liver(scores_of):
    scores = scores_of((volume(True, LESION), volume(False, LESION)))
    assert scores["liver_dice"] == 0
    assert scores["liver_assd"] == 9001
    assert scores["lesion_dice"] == 1


def test_nothing_at_all_is_scored(scores_of):
    scores = scores_of((volume(False), volume(False)))
    assert np.isfinite(list(scores.values())).all()
    assert scores["liver_dice"] == 0 and scores["liver_msd"] == 9001
    assert scores["liver_dice_global"] == scores["lesion_dice_global"] == 1
    assert scores["RMSE_Tumorburden"] == 0


def test_a_liver_where_the_reference_has_none(scores_of):
    scores = scores_of((volume(False), volume(True, LESION)))
    assert scores["liver_dice"] == 0 and scores["liver_rvd"] == 9001
    assert scores["MAXERROR_Tumorburden"] == pytest.approx(-8 / 480)


def test_means_over_cases_and_over_detected_lesions(scores_of, liver_pair):
    labels = volume(True, LESION, OTHER)
    scores = scores_of(liver_pair, (labels, labels))
    assert scores["lesion_dice"] == pytest.approx((0.75 + 1 + 1) / 3)  # over lesions
    assert scores["lesion_dice_per_case"] == pytest.approx((2 * 48 / 163 + 1) / 2)  # over cases
    assert scores["lesion_dice_global"] == pytest.approx(2 * (48 + 16) / (163 + 32))
    assert scores["lesion_recall"] == 3 / 4


def line(text):
    return np.array([int(c) for c in text], np.int32).reshape(1, 1, -1)


def test_overlap_is_tested_with_the_program_s_own_union():
    # Prediction 2 finds lesion 1: the program looks for group 2, finds none, and divides by the lesion alone.
    match = match_lesions(line("0001110"), line("1022222"))
    groups, count = challenge_detections(match, 0.5)
    assert (groups.tolist(), count) == ([0], 1)  # 3 of 3; by the true union it is 3 of 5, also above
    match = match_lesions(line("000111000"), line("102222222"))
    assert match.detected_groups(0.5).tolist() == []  # 3 of 7
    assert challenge_detections(match, 0.5)[0].tolist() == [0]


def test_a_failed_group_takes_away_every_merged_lesion():
    # One prediction over two reference lesions counts 1 and, below the overlap, takes 2 away.
    match = match_lesions(line("1000000002"), line("1111111111"))
    assert challenge_detections(match, 0.5)[1] == -1
    assert challenge_detections(match, 0)[1] == 1


def test_a_prediction_of_tumour_alone_adds_no_liver_to_the_global_dice(scores_of):
    tumour_alone = volume(False, LESION)
    scores = scores_of((volume(True), volume(True)), (volume(True, LESION), tumour_alone))
    liver = 10 * 8 * 6
    assert scores["liver_dice_global"] == pytest.approx(2 * liver / (liver + liver + liver))
    assert scores["liver_dice_per_case"] == pytest.approx(0.5)
    assert scores["lesion_dice_global"] == 1
