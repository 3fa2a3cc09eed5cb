"""Fused batch normalisation against Keras's own."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from liverseg_tf.models.batch_normalization import fuse_batch_normalization


def _network(scale: bool = True, precision: str = "float32") -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 5, 3))
    norm = keras.layers.BatchNormalization(epsilon=2e-3, momentum=0.7, scale=scale, dtype=precision, name="norm")
    model = keras.Model(inputs, norm(inputs))
    for number, variable in enumerate(norm.variables):
        variable.assign(0.5 + np.random.default_rng(number).random(variable.shape))
    return model


def _train_once(model: keras.Model, x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Output, gradients of input and weights, all weights afterwards."""
    images = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(images)
        y = model(images, training=True)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 3)
    gradients = tape.gradient(loss, [images, *model.trainable_variables])
    return y.numpy(), [g.numpy() for g in gradients], model.get_weights()


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("images", [1, 4])
def test_a_step_of_training_is_keras_own(scale, images):
    x = np.random.default_rng(1).normal(3, 2, (images, 6, 5, 3)).astype(np.float32)
    plain, fused = _network(scale), _network(scale)
    fuse_batch_normalization(fused)
    assert "FusedBatchNormV3" in _operations(fused), "the test would compare Keras with itself"
    for expected, got in zip(_train_once(plain, x), _train_once(fused, x), strict=True):
        for a, b in zip(expected, got, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fused(x), plain(x), rtol=1e-5, atol=1e-5)  # with the moving averages of that step


def test_frozen_layers_keep_their_averages():
    model = _network()
    fuse_batch_normalization(model)
    model.trainable = False
    before = model.get_weights()
    x = np.random.default_rng(1).normal(3, 2, (2, 6, 5, 3)).astype(np.float32)
    np.testing.assert_array_equal(model(x, training=True), model(x, training=False))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_half_precision_averages_in_float32():
    x = np.random.default_rng(1).normal(300, 20, (2, 6, 5, 3)).astype(np.float32)
    plain, fused = _network(precision="mixed_float16"), _network(precision="mixed_float16")
    fuse_batch_normalization(fused)
    a, b = plain(x, training=True), fused(x, training=True)
    assert b.dtype == tf.float16
    np.testing.assert_allclose(b, a, rtol=5e-3, atol=5e-3)
    for expected, got in zip(plain.get_weights(), fused.get_weights(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_statistics_over_several_devices_stay_keras_own():
    model = _network()
    model.get_layer("norm").synchronized = True
    fuse_batch_normalization(model)
    assert "FusedBatchNormV3" not in _operations(model)


def test_a_saved_network_opens_with_keras_alone(tmp_path):
    model = _network()
    fuse_batch_normalization(model)
    model.save(tmp_path / "model.keras")
    x = np.random.default_rng(1).normal(3, 2, (2, 6, 5, 3)).astype(np.float32)
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.get_layer("norm")) is keras.layers.BatchNormalization
    np.testing.assert_allclose(again(x), model(x), rtol=1e-5, atol=1e-5)


def _operations(model: keras.Model) -> set[str]:
    trace = tf.function(lambda x: model(x, training=True)).get_concrete_function(
        tf.TensorSpec((2, *model.input_shape[1:]), tf.float32)
    )
    return {operation.type for operation in trace.graph.get_operations()}
