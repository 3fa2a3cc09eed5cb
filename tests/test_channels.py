"""Channel layers against an independent NumPy implementation of fastai's formulas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from liverseg_tf.channels import CTChannels, CTWindow, HistogramScale, RestoreSize, SquareResize, resize_labels
from liverseg_tf.config import ChannelsConfig
from liverseg_tf.errors import ConfigError
from liverseg_tf.windows import WINDOWS


def numpy_window(hu, width, level):
    low, high = level - width // 2, level + width // 2
    return (np.clip(hu, low, high) - low) / (high - low)


def numpy_histogram(hu, steps=100, tails=(0.001, 0.999)):
    ordered = np.sort(hu.astype(np.float32).ravel())
    quantiles = np.concatenate([tails[:1], (np.arange(steps) + 0.5) / steps, tails[1:]]).astype(np.float32)
    breaks = np.unique(ordered[(np.float32(len(ordered)) * quantiles).astype(int)]).astype(float)
    if len(breaks) == 1:
        return np.zeros(hu.shape)
    return np.interp(hu, breaks, np.linspace(0, 1, len(breaks)))


@pytest.fixture(scope="module")
def slice_like():
    rng = np.random.default_rng(0)
    hu = np.where(rng.random((40, 52)) < 0.4, -1024, rng.normal(60, 40, (40, 52)))
    return np.rint(hu)


@pytest.mark.parametrize("name", WINDOWS)
def test_each_window_is_fastais(name):
    hu = np.arange(-1100, 1300, dtype=np.float32)
    np.testing.assert_allclose(CTWindow(name)(hu[None])[0], numpy_window(hu, *WINDOWS[name]), atol=1e-6)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64", "uint16"])
def test_histogram_is_fastais_for_every_dtype(slice_like, dtype, portable):
    hu = slice_like.clip(0) if dtype == "uint16" else slice_like
    scaled = HistogramScale(portable)(hu[None].astype(dtype))[0]
    np.testing.assert_allclose(scaled, numpy_histogram(hu), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.integers(-3000 * 1024, 3000 * 1024).map(lambda n: n / 1024),
    )
)
def test_histogram_is_fastais_for_fractions(hu):  # exact in float32, none of them subnormal
    np.testing.assert_allclose(HistogramScale()(hu[None])[0], numpy_histogram(hu), atol=1e-4)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(np.float32, (2, 5, 4), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
    st.booleans(),
)
def test_channels_are_finite_for_any_hu(hu, portable):
    channels = CTChannels(portable=portable)(hu).numpy()
    assert np.isfinite(channels).all()
    assert channels.min() >= 0
    assert channels.max() <= 1


def test_nan_counts_as_air():
    hu = np.array([[[-1024.0, -60.5, 12.0, 80.0], [-1024.0, 30.0, 31.0, 200.0]]], np.float32)
    holed = np.where(hu == -1024, np.nan, hu).astype(np.float32)
    wide = ((4000, 0), "lungs")  # where air is not black, and 0 HU still less
    for layer in (CTChannels(wide), CTChannels(wide, portable=True), CTChannels(wide, histogram=False)):
        np.testing.assert_array_equal(layer(holed), layer(hu))
    np.testing.assert_array_equal(CTWindow((4000, 0))(holed), CTWindow((4000, 0))(hu))
    np.testing.assert_array_equal(HistogramScale()(holed), HistogramScale()(hu))


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("shift", [0, 0.25])  # by counting, by sorting
def test_histogram_steps_and_tails_come_from_the_configuration(slice_like, portable, shift):
    config = ChannelsConfig((), histogram_steps=7, histogram_tails=(0.02, 0.95))
    layer = CTChannels.from_channels_config(config, portable)
    hu = slice_like + shift
    found = layer(hu[None].astype(np.float32))[0, ..., 0]
    np.testing.assert_allclose(found, numpy_histogram(hu, 7, (0.02, 0.95)), atol=1e-5)
    assert np.abs(found - numpy_histogram(hu)).max() > 0.01
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    np.testing.assert_array_equal(again(hu[None].astype(np.float32))[0, ..., 0], found)


def test_a_constant_slice_has_an_empty_histogram_channel():
    for value in (37, 37.5, -5000.0, np.nan):
        assert not CTChannels()(np.full((1, 6, 6), value))[..., 2].numpy().any()


def test_a_slice_does_not_depend_on_its_batch(slice_like):
    other = slice_like * 0.37
    together = CTChannels()(np.stack([slice_like, other]).astype(np.float32))
    np.testing.assert_allclose(together[0], CTChannels()(slice_like[None].astype(np.float32))[0], atol=1e-6)


def test_integers_and_floats_agree_beyond_the_bins(slice_like):
    wide = slice_like.copy()
    wide[0, 0], wide[1, 1] = -20000, 30000
    np.testing.assert_allclose(
        CTChannels()(wide[None].astype(np.int16)), CTChannels()(wide[None].astype(np.float32)), atol=1e-6
    )


def test_channels_stay_float32_under_mixed_precision(slice_like):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        channels = CTChannels()((slice_like + 2048.0)[None].astype(np.float32))
    finally:
        keras.config.set_dtype_policy("float32")
    assert channels.dtype == tf.float32
    np.testing.assert_allclose(channels[0, ..., 2], numpy_histogram(slice_like + 2048), atol=1e-5)


@pytest.mark.slow
def test_channels_work_in_a_graph_of_unknown_sizes_and_under_xla(slice_like):
    layer = CTChannels()
    hu = slice_like[None].astype(np.float32)
    unknown = tf.function(layer, [tf.TensorSpec((None, None, None), tf.float32)])
    compiled = tf.function(layer, jit_compile=True)
    np.testing.assert_allclose(unknown(hu), layer(hu), atol=1e-6)
    np.testing.assert_allclose(compiled(tf.constant(hu)), layer(hu), atol=1e-6)


def test_other_windows_and_no_histogram(slice_like):
    layer = CTChannels(windows=("lungs", (256, 128)), histogram=False)
    channels = layer(slice_like[None].astype(np.int16))
    assert channels.shape == (1, 40, 52, 2)
    np.testing.assert_allclose(channels[0, ..., 1], numpy_window(slice_like, 256, 128), atol=1e-6)
    with pytest.raises(ConfigError):
        CTChannels(windows=(), histogram=False)


def test_layers_come_back_from_their_config():
    for layer in (CTWindow((200, 60)), HistogramScale(True), CTChannels(("liver", (99, 3))), SquareResize(7)):
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
        assert again.get_config() == layer.get_config()


@pytest.mark.parametrize("shape", [(64, 64), (64, 40), (30, 64)])
def test_resizing_by_a_whole_factor_is_mean_pooling_of_the_padded_square(shape):
    rng = np.random.default_rng(1)
    image = rng.random((1, *shape, 2)).astype(np.float32)
    top, left = (64 - shape[0]) // 2, (64 - shape[1]) // 2
    square = np.zeros((64, 64, 2))
    square[top : top + shape[0], left : left + shape[1]] = image[0]
    pooled = square.reshape(16, 4, 16, 4, 2).mean((1, 3))
    np.testing.assert_allclose(SquareResize(16)(image)[0], pooled, atol=1e-6)
    unknown = tf.function(SquareResize(16), [tf.TensorSpec((None, None, None, 2), tf.float32)])
    np.testing.assert_allclose(unknown(image)[0], pooled, atol=1e-6)


def area_weights(count, size):
    """(size, count) float64: the share of each new pixel that each old one covers."""
    step = count / size
    low, old = np.arange(size)[:, None] * step, np.arange(count)
    return np.clip(np.minimum(low + step, old + 1) - np.maximum(low, old), 0, None) / step


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 70), st.integers(1, 40))
def test_resizing_by_any_factor_averages_by_area(side, size):
    image = np.random.default_rng(side).random((2, side, side, 2)).astype(np.float32)
    weights = area_weights(side, size)
    expected = np.einsum("in,jm,bnmc->bijc", weights, weights, image)
    np.testing.assert_allclose(SquareResize(size)(image), expected, atol=1e-6)
    unknown = tf.function(SquareResize(size), [tf.TensorSpec((None, None, None, 2), tf.float32)])
    np.testing.assert_allclose(unknown(image), expected, atol=1e-6)
    assert unknown.get_concrete_function().structured_outputs.shape[1:] == (size, size, 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70))
def test_restoring_gives_back_the_slices_size_and_a_flat_image(rows, columns):
    small = np.full((1, 16, 16, 1), 0.25, np.float32)
    restored = RestoreSize()(small, rows_columns=(rows, columns))
    assert restored.shape == (1, rows, columns, 1)
    np.testing.assert_allclose(restored, 0.25, atol=1e-6)


def test_labels_follow_the_image_through_the_resize():
    labels = np.zeros((1, 48, 64), np.uint8)
    labels[0, 8:24, 16:40] = 1
    labels[0, 12:20, 20:28] = 2
    small = resize_labels(labels, 16).numpy()[0]
    assert small.shape == (16, 16)
    assert (small == 2).sum() == 4  # 8 x 8 voxels at factor 4
    assert (small > 0).sum() == 24
    assert small[2 + 2, 4] == 1  # padded by 8 rows above
