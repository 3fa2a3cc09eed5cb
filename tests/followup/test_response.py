"""RECIST 1.1's arithmetic at its limits."""

import pytest

from liverseg_tf.followup.response import choose_targets, respond


def last(sums, others=None, new=None, doubts=None):
    none = [0] * len(sums)
    return respond(sums, others or none, new or none, doubts or [None] * len(sums))[-1]


@pytest.mark.parametrize(
    ("sums", "category"),
    [
        ([100.0, 70.0], "PR"),
        ([100.0, 70.1], "SD"),
        ([100.0, 119.9], "SD"),
        ([100.0, 120.0], "PD"),
        ([20.0, 24.9], "SD"),  # 24 %, but under 5 mm
        ([100.0, 50.0, 59.9], "PR"),
        ([100.0, 50.0, 60.0], "PD"),  # from the nadir, though 40 % below the first scan
        ([100.0, 0.0], "CR"),
        ([100.0, 0.0, 6.0], "PD"),
    ],
)
def test_thresholds(sums, category):
    assert last(sums).category == category


def test_lesions_that_are_no_targets_count_too():
    assert last([100.0, 0.0], others=[2, 1]).category == "PR"
    assert last([None, None], others=[2, 1]).category == "non-CR/non-PD"
    assert last([None, None], others=[2, 0]).category == "CR"
    assert last([None, None]).category == "no disease"
    assert last([100.0, 40.0], new=[0, 1]).category == "PD"
    assert last([100.0, 40.0], doubts=[None, "cut"]).category == "NE"


def test_targets_are_the_two_largest_of_ten_millimetres():
    assert choose_targets([9.9, 10.0, 30.0, 20.0], 1.0) == (2, 3)
    assert choose_targets([9.9, 10.0], 5.0) == (1,)
    assert choose_targets([15.0, 16.0], 8.0) == (1,)  # twice the slices' step
