from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest

from liverseg_tf.evaluation.case_scores import score_case
from liverseg_tf.evaluation.statistics import statistics
from liverseg_tf.explanation.regions import find_regions

LPS = np.diag([-0.8, -0.8, 2.5, 1.0])


def test_hand_computed_row(mask_of, liver_pair):
    row = score_case(*(mask_of(m, LPS) for m in liver_pair), case=7).row
    voxel_ml = 0.8 * 0.8 * 2.5 / 1000
    assert row["case"] == 7
    assert row["identity_affine"] is False
    assert row["liver_dice"] == 1 and row["liver_hd95_mm"] == 0 and row["liver_surface_dice_1mm"] == 1
    assert row["lesion_dice"] == pytest.approx(2 * 48 / (72 + 91))
    assert row["lesion_jaccard"] == pytest.approx(48 / (72 + 91 - 48))
    assert row["lesion_volume_truth_ml"] == pytest.approx(72 * voxel_ml)
    assert row["lesion_volume_error_ml"] == pytest.approx(19 * voxel_ml)
    assert row["lesion_volume_error_percent"] == pytest.approx(100 * 19 / 72)
    assert row["tumour_burden_error"] == pytest.approx(19 / 3200)
    assert (row["lesions_truth"], row["lesions_prediction"]) == (2, 2)
    assert row["lesions_detected_overlap_above_0"] == row["lesions_detected_overlap_above_0.5"] == 1
    assert row["lesions_false_positive_overlap_above_0.5"] == 1


def test_distances_follow_the_spacing(mask_of):
    truth, prediction = np.zeros((2, 6, 6, 6), np.uint8)
    truth[1, 1, 1] = prediction[1, 1, 3] = 1
    row = score_case(mask_of(truth, LPS), mask_of(prediction, LPS)).row
    assert row["liver_msd_mm"] == row["liver_hd95_mm"] == pytest.approx(5.0)
    assert row["liver_surface_dice_3mm"] == 0


@pytest.mark.parametrize("filled", [(False, False), (True, False), (False, True)])
def test_empty_masks_give_null_distances(mask_of, filled):
    pair = []
    for full in filled:
        labels = np.zeros((5, 5, 5), np.uint8)
        labels[1:3, 1:3, 1:3] = 2 * full
        pair.append(mask_of(labels))
    row = score_case(*pair).row
    assert row["liver_dice"] == row["lesion_dice"] == (0 if any(filled) else 1)
    for name in ("liver_assd_mm", "liver_hd95_mm", "lesion_msd_mm", "lesion_surface_dice_1mm"):
        assert row[name] is None
    assert (row["liver_volume_error_percent"] is None) == (not filled[0])
    assert row["tumour_burden_error"] is None


def test_slices_and_their_scenarios(mask_of, liver_pair):
    rows = score_case(*map(mask_of, liver_pair)).slices
    assert [row["slice_from_1"] for row in rows] == list(range(1, 13))
    assert [row["scenario"] for row in rows] == (
        ["neither"] * 2 + ["liver_only"] * 2 + ["liver_with_lesion"] * 4 + ["liver_only"] * 2 + ["neither"] * 2
    )
    assert all(row["liver_dice_loss"] == row["liver_iou_loss"] == 0 for row in rows)
    assert rows[0]["lesion_dice_loss"] == 0  # neither mask has one
    # slice 5 (index 4): 16 + 4 reference voxels, 9 predicted elsewhere
    assert rows[4]["lesion_dice_loss"] == rows[4]["lesion_iou_loss"] == 1
    # slice 6: 16 + 4 reference, 16 + 9 predicted, 16 shared
    assert rows[5]["lesion_dice_loss"] == pytest.approx(1 - 32 / 45)
    assert rows[5]["lesion_iou_loss"] == pytest.approx(1 - 16 / 29)
    assert rows[8]["lesion_dice_loss"] == 1  # one predicted where there is none


def test_detection_by_size(mask_of):
    truth, prediction = np.zeros((2, 60, 40, 40), np.uint8)
    truth[2:58, 2:38, 2:38] = prediction[2:58, 2:38, 2:38] = 1
    truth[4:24, 4:24, 4:24] = prediction[4:24, 4:24, 4:24] = 2  # 8 ml: 24.8 mm, found
    truth[28:38, 4:14, 4:14] = prediction[28:38, 4:10, 4:6] = 2  # 1 ml: 12.4 mm, 12 % found
    truth[42:46, 4:8, 4:8] = 2  # 64 mm3: small, missed
    prediction[50:54, 4:8, 4:8] = 2  # small, false
    counts = score_case(mask_of(truth), mask_of(prediction)).counts
    assert counts["overlap_above_0"] == {"all": (2, 1, 1), "small": (0, 1, 1), "medium": (1, 0, 0), "large": (1, 0, 0)}
    # the part of the medium lesion that was predicted is itself small, 6.1 mm
    assert counts["overlap_above_0.5"] == {
        "all": (1, 2, 2),
        "small": (0, 1, 2),
        "medium": (0, 1, 0),
        "large": (1, 0, 0),
    }


def test_lesion_rows_say_where_and_whether_found(mask_of, liver_pair):
    rows = score_case(*(mask_of(m, LPS) for m in liver_pair)).lesions
    found = {(row["mask"], row["lesion"]): row["matched_overlap_above_0.5"] for row in rows}
    assert found == {("truth", 1): True, ("truth", 2): False, ("prediction", 1): True, ("prediction", 2): False}
    first = rows[0]
    assert first["center_mm"] == pytest.approx([-0.8 * 7.5, -0.8 * 7.5, 2.5 * 5.5])
    assert first["slice_from_1"] == 5
    assert first["volume_ml"] == pytest.approx(64 * 1.6 / 1000)


def test_own_figures_do_not_depend_on_how_the_file_is_stored(mask_of, liver_pair):
    images = [nib.Nifti1Image(m, LPS) for m in liver_pair]
    expected = score_case(*(mask_of(i.get_fdata(), i.affine) for i in images))
    for axes, flips in itertools.product([(0, 1, 2), (2, 0, 1), (1, 0, 2)], [(1, 1, 1), (-1, 1, -1)]):
        turned = [i.as_reoriented(np.array([axes, flips]).T) for i in images]
        scores = score_case(*(mask_of(t.get_fdata(), t.affine) for t in turned))
        for name, value in expected.row.items():
            assert scores.row[name] == pytest.approx(value), name
        assert scores.slices == expected.slices
        assert scores.counts == expected.counts


def test_detected_lesions_are_scored_only_where_the_program_counts_any(mask_of):
    truth, prediction = np.zeros((2, 12, 8, 8), np.uint8)
    truth[1:3, 1:3, 1:3] = prediction[1:3, 1:3, 1:3] = 2  # found
    truth[6, 1, 1] = truth[6, 1, 5] = 2  # two, merged by a prediction that is far too large
    prediction[6:9, :4, :7] = 2
    case = score_case(mask_of(truth), mask_of(prediction)).lits
    assert case.detections[0.5] == 0  # two groups, less one for each of the merged lesions
    assert case.detected_lesions == ()
    alone = score_case(mask_of(np.where(prediction == 2, truth, 0)[:4]), mask_of(prediction[:4])).lits
    assert alone.detections[0.5] == len(alone.detected_lesions) == 1


def test_lesions_are_numbered_in_the_order_of_the_files_voxels(mask_of):
    labels = np.zeros((10, 10, 4), np.uint8)
    labels[1, 8, 1] = labels[8, 1, 1] = 2  # x decides, which are the columns of the canonical view
    rows = score_case(mask_of(labels, LPS), mask_of(labels, LPS)).lesions
    assert [(row["lesion"], row["center_mm"][0]) for row in rows[:2]] == [(1, -0.8), (2, -6.4)]


def test_a_lesion_has_one_number_everywhere(mask_of):
    labels = np.zeros((10, 10, 6), np.uint8)
    labels[1, 8, 1] = labels[8, 1, 1] = 2  # of one size: the file's order is not the canonical view's
    labels[4:6, 4:6, 3:5] = 2
    mask = mask_of(labels, LPS)
    number_of = {tuple(one.center_mm): one.number for one in statistics(mask).lesions}
    rows = score_case(mask, mask).lesions
    assert [row["number"] for row in rows] == [number_of[tuple(row["center_mm"])] for row in rows]
    assert [row["number"] for row in rows[:3]] != sorted(row["number"] for row in rows[:3])
    for region in find_regions(mask.labels, mask.geometry):
        center = mask.geometry.canonical_affine @ [
            *(np.argwhere(region.mask).mean(axis=0) + [0, 0, region.first_slice]),
            1,
        ]
        assert number_of[tuple(center[:3].round(3))] == region.lesion and region.name == f"lesion-{region.lesion}"
