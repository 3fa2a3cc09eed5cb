from __future__ import annotations

import numpy as np
import pytest

from liverseg_tf.evaluation.bootstrap import bootstrap_ratios


def test_interval_of_a_mean_is_that_of_scipy():
    from scipy.stats import bootstrap

    values = np.random.default_rng(1).normal(0.7, 0.1, 40)
    ours = bootstrap_ratios(values[:, None], np.ones((40, 1)), [str(i) for i in range(40)], resamples=20_000)[0]
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2))
    assert ours == pytest.approx(list(theirs.confidence_interval), abs=2e-3)


def test_cases_of_one_patient_are_drawn_together():
    values = np.array([[0.0], [1.0], [0.0], [1.0]])
    ones = np.ones_like(values)
    together = bootstrap_ratios(values, ones, ["a", "a", "b", "b"])[0]
    assert together.tolist() == [0.5, 0.5]  # each patient's mean is the same
    apart = bootstrap_ratios(values, ones, ["a", "b", "c", "d"])[0]
    assert apart[0] < 0.5 < apart[1]


def test_figures_of_fewer_than_two_patients_have_no_interval():
    numerators = np.array([[0.5, 0.5], [0.0, 0.7], [0.0, 0.9]])
    denominators = np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    bounds = bootstrap_ratios(numerators, denominators, ["a", "b", "c"])
    assert np.isnan(bounds[0]).all()
    assert np.isfinite(bounds[1]).all()


def test_same_seed_same_interval():
    values = np.random.default_rng(0).random((8, 2))
    first, again, other = (
        bootstrap_ratios(values, np.ones_like(values), list("abcdefgh"), resamples=200, seed=s) for s in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
