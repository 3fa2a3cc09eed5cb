"""Intervals hold as often as promised, and scale only by what tells."""

import numpy as np
import pytest

from liverseg_tf.calibration.conformal import LesionProbability, VolumeInterval, first_fifth
from liverseg_tf.errors import ConfigError


def test_coverage_over_many_sites_is_what_was_promised():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(150):
        truth = rng.lognormal(3, 1, 30)
        noise = rng.choice([0.1, 0.6], 30)
        predicted = truth * np.exp(-0.3 + noise * rng.standard_normal(30))
        found = VolumeInterval.fit(predicted[:29], truth[:29], {"noise": noise[:29]})
        low, high = found.interval_ml(predicted[29], {"noise": noise[29]})
        inside.append(low <= truth[29] <= high)
    assert 0.85 <= np.mean(inside) <= 0.95


def test_a_bias_is_corrected_and_a_feature_that_tells_makes_sure_cases_narrow():
    rng = np.random.default_rng(1)
    truth, noise = rng.lognormal(3, 1, 80), rng.choice([0.02, 0.5], 80)
    found = VolumeInterval.fit(truth * np.exp(-0.5 + noise * rng.standard_normal(80)), truth, {"noise": noise})
    assert found.feature_names == ("noise",)
    low, high = found.interval_ml(100.0, {"noise": 0.02})
    assert low < 100 * np.exp(0.5) < high
    wide = found.interval_ml(100.0, {"noise": 0.5})
    assert wide[1] / wide[0] > 2 * high / low


def test_a_feature_that_tells_nothing_is_mostly_left_out_and_a_constant_always():
    rng = np.random.default_rng(2)
    chosen = 0
    for _ in range(20):
        truth = rng.lognormal(3, 1, 40)
        noise = {"nothing": rng.standard_normal(40), "constant": np.ones(40)}
        names = VolumeInterval.fit(truth * np.exp(0.2 * rng.standard_normal(40)), truth, noise).feature_names
        assert "constant" not in names
        chosen += bool(names)
    assert chosen <= 8


def test_volumes_of_zero_are_no_trouble():
    truth = np.r_[np.zeros(5), np.random.default_rng(2).lognormal(3, 1, 35)]
    found = VolumeInterval.fit(truth * np.exp(0.2 * np.random.default_rng(3).standard_normal(40)), truth, {})
    low, high = found.interval_ml(0.0, {})
    assert low == 0 and 0 <= high < 1


def test_a_higher_coverage_is_wider():
    rng = np.random.default_rng(3)
    truth = rng.lognormal(3, 1, 40)
    predicted = truth * np.exp(0.2 * rng.standard_normal(40))
    ends = [VolumeInterval.fit(predicted, truth, {}, coverage).interval_ml(10.0, {}) for coverage in (0.6, 0.95)]
    assert ends[1][0] < ends[0][0] < 10 < ends[0][1] < ends[1][1]


def test_probabilities_follow_the_truth():
    rng = np.random.default_rng(4)
    size = rng.normal(0, 2, 2000)
    chance = 1 / (1 + np.exp(-(0.5 + size)))
    found = LesionProbability.fit({"size": size}, rng.random(2000) < chance)
    for value in (-3.0, 0.0, 2.0):
        assert found({"size": value}) == pytest.approx(1 / (1 + np.exp(-(0.5 + value))), abs=0.06)


def test_few_lesions_give_no_certainty():
    found = LesionProbability.fit({"size": np.arange(12.0)}, np.arange(12) > 5)
    assert 0.02 < found({"size": 0.0}) < 0.3 and 0.7 < found({"size": 11.0}) < 0.98


def test_order_is_scored_by_the_first_fifth():
    errors = np.array([5.0, 1, 1, 1, 1, 1, 0, 0, 0, 0])
    assert first_fifth(np.arange(10), errors) == 0.6 and first_fifth(np.arange(10)[::-1], errors) == 0
    assert first_fifth(np.arange(10), np.zeros(10)) == 0.2


@pytest.mark.parametrize("change", [{"centers": ()}, {"weights": (1.0,)}, {"residuals": (float("nan"),)}])
def test_broken_figures_are_refused(change):
    fields = {"feature_names": (), "feature_means": (), "feature_sds": (), "weights": (), "centers": (0.1,)}
    with pytest.raises(ConfigError):
        VolumeInterval(**{**fields, "residuals": (0.2,), **change})
