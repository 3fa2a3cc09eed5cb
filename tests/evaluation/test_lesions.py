from __future__ import annotations

import numpy as np
import pytest

from liverseg_tf.evaluation.lesions import (
    equivalent_diameter_mm,
    label_lesions,
    match_lesions,
    measure_lesions,
    size_class,
)


def line(*numbers):
    return np.array(numbers, np.int32).reshape(1, 1, -1)


def test_lesions_connect_by_faces_only():
    tumour = np.zeros((3, 3, 1), bool)
    tumour[0, 0] = tumour[1, 1] = tumour[1, 2] = True
    lesions, count = label_lesions(tumour)
    assert count == 2
    assert lesions[0, 0, 0] != lesions[1, 1, 0] == lesions[1, 2, 0]


def test_size_classes_and_diameter():
    assert [size_class(d) for d in (9.99, 10, 20, 20.01)] == ["small", "medium", "medium", "large"]
    assert equivalent_diameter_mm(np.pi / 6) == pytest.approx(10)  # a ball of 1 cm is pi / 6 ml


def test_measures_of_lesions():
    lesions = np.zeros((4, 5, 6), np.int32)
    lesions[0, 0, 0] = 1
    lesions[1:3, 1:4, 2] = 2
    lesions[1, 1, 3] = 2
    measures = measure_lesions(lesions, 0.01)
    assert measures.voxels.tolist() == [1, 7]
    assert measures.volume_ml == pytest.approx([0.01, 0.07])
    assert measures.centroid[1] == pytest.approx([(3 * 1 + 3 * 2 + 1) / 7, (2 * (1 + 2 + 3) + 1) / 7, (6 * 2 + 3) / 7])
    assert measures.boxes[1] == (slice(1, 3), slice(1, 4), slice(2, 4))
    assert measures.largest_slice.tolist() == [0, 2]


def test_a_prediction_over_two_reference_lesions_merges_them():
    match = match_lesions(line(1, 1, 0, 2, 2, 0), line(1, 1, 1, 1, 1, 0))
    assert match.truth_group.tolist() == [0, 0]
    assert match.merge_count.tolist() == [2, 2]
    assert match.detected_groups(0.5).tolist() == [0]  # 4 of 5
    assert match.detected_groups(0.8).tolist() == []  # above, not from


def test_two_predictions_in_one_reference_lesion_are_merged():
    match = match_lesions(line(1, 1, 1, 1, 1, 1), line(1, 1, 0, 2, 2, 0))
    assert match.prediction_group.tolist() == [0, 0]
    assert match.detected_groups(0.5).tolist() == [0]  # 4 of 6 together; 2 of 6 each alone
    assert match.detected_groups(0.7).tolist() == []


def test_a_prediction_joins_the_lesion_it_overlaps_most():
    # the second prediction covers most of lesion 1, so only lesion 2 is the first one's to merge
    truth = line(1, 1, 1, 1, 1, 0, 2, 2, 2)
    prediction = line(2, 2, 2, 0, 1, 1, 1, 1, 1)
    match = match_lesions(truth, prediction)
    assert match.truth_group.tolist() == [0, 1]
    assert match.prediction_group.tolist() == [1, 0]


def test_without_overlap_nothing_is_matched():
    match = match_lesions(line(1, 0, 0), line(0, 0, 1))
    assert match.prediction_group.tolist() == [-1]
    assert match.groups().size == match.detected_groups(0).size == 0


@pytest.mark.parametrize(("truth", "prediction"), [((0, 0), (0, 1)), ((0, 1), (0, 0)), ((0, 0), (0, 0))])
def test_masks_without_lesions_match_nothing(truth, prediction):
    match = match_lesions(line(*truth), line(*prediction))
    assert match.overlap.shape == (max(prediction), max(truth))
    assert match.groups().size == 0
