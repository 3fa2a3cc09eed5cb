import numpy as np
import pytest

from liverseg_tf.models.metrics import confusion_matrices, mean_dice, metrics_from_confusion, report_index_losses

TRUTH = np.array([[[0, 0, 1, 1], [0, 1, 2, 2]]])
GUESS = np.array([[[0, 1, 1, 1], [0, 0, 2, 1]]])


def test_figures_of_a_case_counted_by_hand():
    confusion = confusion_matrices(TRUTH, np.eye(3)[GUESS], 3)[0].numpy()
    assert confusion.tolist() == [[2, 1, 0], [1, 2, 0], [0, 1, 1]]
    found = metrics_from_confusion(confusion)
    assert found["accuracy"] == pytest.approx(5 / 8)
    assert found["foreground_accuracy"] == pytest.approx(3 / 5)
    assert found["liver_dice"] == pytest.approx(2 * 4 / (5 + 5))  # tumour counts as liver
    assert found["liver_iou"] == pytest.approx(4 / 6)
    assert found["tumour_dice"] == pytest.approx(2 * 1 / (2 + 1))
    assert found["tumour_iou"] == pytest.approx(1 / 2)


def test_sums_over_batches_are_exact():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 3, (5, 9, 9)), rng.normal(size=(5, 9, 9, 3))
    whole = confusion_matrices(labels, logits, 3).numpy().sum(0)
    parts = sum(confusion_matrices(labels[i : i + 2], logits[i : i + 2], 3).numpy().sum(0) for i in (0, 2, 4))
    np.testing.assert_array_equal(whole, parts)
    assert whole.sum() == labels.size


def test_what_cannot_be_told_is_nan():
    empty = metrics_from_confusion(np.diag([10, 0, 0]))
    assert empty["accuracy"] == 1
    assert np.isnan([empty["foreground_accuracy"], empty["liver_dice"], empty["tumour_dice"]]).all()
    assert metrics_from_confusion([[5, 5, 0], [0, 0, 0], [0, 0, 0]])["liver_dice"] == 0


def test_the_reports_losses_show_their_flaw_only_with_class_two():
    binary = report_index_losses(TRUTH > 0, GUESS > 0)
    assert binary["report_dice_loss"] == pytest.approx(1 - (2 * 4 + 1) / (10 + 1))
    assert binary["report_iou_loss"] == pytest.approx(1 - (4 + 1) / (6 + 1))
    perfect = report_index_losses(TRUTH, TRUTH)
    assert perfect["report_iou_loss"] < 0  # wrong: a perfect prediction's loss is not below 0


def _case(liver, found, missed, false):
    """Confusion of a patient: sound liver, tumour found, tumour missed, liver called tumour (pixels)."""
    return np.array([[1000, 0, 0], [0, liver, false], [0, missed, found]])


def test_finding_no_tumour_never_beats_finding_them_however_many_patients_are_healthy():
    """As the mean over patients would have it: there each healthy patient counts with a Dice of 1 for the liver."""
    for healthy in (1, 5, 50):
        nothing = sum([_case(900, 0, 100, 0)] * 4 + [_case(1000, 0, 0, 0)] * healthy)
        some = sum([_case(880, 70, 30, 20)] * 4 + [_case(999, 0, 0, 1)] * healthy)  # and a false pixel in each
        assert mean_dice(nothing) == pytest.approx(0.5)
        assert mean_dice(some) > 0.7
    more_false = sum([_case(880, 70, 30, 20)] * 4 + [_case(900, 0, 0, 100)] * 50)
    assert mean_dice(more_false) < mean_dice(some)


def test_a_class_that_the_reference_lacks_does_not_count():
    assert mean_dice(_case(900, 0, 0, 0)) == mean_dice(_case(900, 0, 0, 1)) == 1.0
    assert np.isnan(mean_dice(np.diag([5, 0, 0])))
