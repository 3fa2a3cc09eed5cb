"""The learning rate finder."""

import dataclasses

import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.errors import ConfigError
from liverseg_tf.training.find_learning_rate import LearningRateCurve
from tests.training.runs import RECIPE


def test_a_loss_that_still_falls_is_told():
    assert LearningRateCurve([1e-3, 1e-2, 1e-1], [1.0, 0.8, 0.5], 1e-2).still_falling
    assert not LearningRateCurve([1e-3, 1e-2, 1e-1], [1.0, 0.5, 0.8], 1e-2).still_falling


@pytest.mark.slow
def test_learning_rate_finder_leaves_the_model_as_it_was(cases, small_model):
    before, flags = small_model.get_weights(), [layer.trainable for layer in small_model.layers]
    recipe = dataclasses.replace(RECIPE, batch_size=2)
    curve = ls.find_learning_rate(cases, recipe, model=small_model, steps=30, lowest=1e-5, highest=3.0)
    assert len(curve.rates) == len(curve.losses)
    assert 1e-5 <= curve.suggestion < 3.0
    assert curve.losses[curve.rates.index(curve.suggestion)] < curve.losses[0]
    for a, b in zip(before, small_model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert flags == [layer.trainable for layer in small_model.layers]
    with pytest.raises(ConfigError, match="range test"):
        ls.find_learning_rate(cases, recipe, lowest=1, highest=0.1)
