from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from liverseg_tf.models.unet import build_unet
from liverseg_tf.training.optimizer import GroupedAdamW, OneCycle, decays, one_cycle, rate_factors


def test_one_cycle_rises_and_falls_by_cosines():
    values = [float(one_cycle(i, 101, 0.3, 1.0, 5.0, 0.1)) for i in range(101)]
    assert values[0] == pytest.approx(1)
    assert values[30] == pytest.approx(5)
    assert values[15] == pytest.approx(3)
    assert values[65] == pytest.approx((5 + 0.1) / 2)
    assert values[100] == pytest.approx(0.1)


def test_first_updates_have_the_sizes_of_their_factors():
    """Adam would undo scaled gradients: each first step is the rate times the factor, whatever the gradient."""
    variables = [keras.Variable(np.ones(4, np.float32), name=f"v{i}") for i in range(3)]
    optimizer = GroupedAdamW(0.01, factors=(0.01, 0.1, 1.0), decayed=(False,) * 3, epsilon=1e-12)
    optimizer.build(variables)
    optimizer.apply([keras.ops.ones(4) * g for g in (100.0, 1.0, 0.001)], variables)
    steps = [float(1 - v.numpy()[0]) for v in variables]
    np.testing.assert_allclose(steps, [0.0001, 0.001, 0.01], rtol=1e-3)


def _apply(optimizer, variable, gradient):
    optimizer.apply([gradient], [variable])


def test_without_factors_and_decay_it_is_keras_adam():
    """Over several steps in a graph, with gradients of both signs and many sizes."""
    rng = np.random.default_rng(0)
    gradients = tf.constant(rng.normal(size=(6, 50)) * 10.0 ** rng.integers(-6, 3, 50), tf.float32)
    start = rng.normal(size=50).astype(np.float32)
    ends = []
    for optimizer in (
        GroupedAdamW(0.03, factors=(1.0,), decayed=(False,), momentum=(0.8, 0.8), beta_2=0.99, epsilon=1e-5),
        keras.optimizers.Adam(0.03, beta_1=0.8, beta_2=0.99, epsilon=1e-5),
    ):
        variable = keras.Variable(start)
        optimizer.build([variable])
        step = tf.function(partial(_apply, optimizer, variable))
        for gradient in gradients:
            step(gradient)
        ends.append([v.numpy() for v in (variable, *optimizer.variables)])
    assert np.abs(ends[0][0] - start).max() > 0.1
    for ours, theirs in zip(*ends, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_decay_acts_on_kernels_alone():
    variables = [keras.Variable(np.full(2, 2.0, np.float32)) for _ in range(2)]
    optimizer = GroupedAdamW(0.1, factors=(1, 1), decayed=(True, False), decay=0.5)
    optimizer.build(variables)
    optimizer.apply([keras.ops.zeros(2)] * 2, variables)
    np.testing.assert_allclose([v.numpy()[0] for v in variables], [2 - 2 * 0.5 * 0.1, 2])


def test_momentum_goes_against_the_rate():
    optimizer = GroupedAdamW(OneCycle(11, 1.0, 0.5, 0.1), factors=(1,), decayed=(False,))
    optimizer.build([keras.Variable(np.zeros(1, np.float32))])
    seen = []
    for step in (0, 5, 10):
        optimizer.iterations.assign(step)
        seen.append((float(optimizer.learning_rate), float(optimizer.beta_1)))
    np.testing.assert_allclose(seen, [(0.1, 0.95), (1.0, 0.85), (1e-5, 0.95)], rtol=1e-4, atol=1e-7)


def test_rates_and_decay_by_layer():
    model = build_unet(32, "resnet18")
    factors = rate_factors(model, (0.01, 0.1))

    def of(layer):
        return {factors[v.path] for v in model.get_layer(layer).trainable_variables}

    assert of("conv0") == {0.01}
    assert of("stage2_unit1_conv2") == {0.01}
    assert of("stage4_unit2_conv2") == {0.1}
    assert of("decoder_stage0a_conv") == of("final_conv") == {1.0}
    names = {v.path.rsplit("/", 1)[-1]: decays(v) for v in model.trainable_variables}
    assert names == {"kernel": True, "gamma": False, "beta": False, "bias": False}
