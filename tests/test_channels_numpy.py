"""The NumPy twins against the layers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from liverseg_tf.channels import CTChannels, RestoreSize, SquareResize
from liverseg_tf.channels_numpy import network_input, restore, restore_labels, softmax
from liverseg_tf.config import ChannelsConfig

WHOLE = st.integers(-5000, 5000)
ANY = st.one_of(WHOLE, st.integers(-3_000_000, 3_000_000).map(lambda n: n / 1024), st.just(float("nan")))
SIZES = st.tuples(st.integers(1, 21), st.integers(1, 21))


def layers_input(hu, config, size):
    return SquareResize(size)(CTChannels.from_channels_config(config)(hu[None]))[0].numpy()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    hu=st.one_of(*(hnp.arrays(np.float32, SIZES, elements=values, fill=st.nothing()) for values in (WHOLE, ANY))),
    size=st.integers(1, 12),
    windows=st.lists(st.tuples(st.integers(2, 2000), st.integers(-500, 500)), max_size=2),
    histogram=st.booleans(),
)
def test_what_the_network_sees_is_what_the_layers_give(hu, size, windows, histogram):
    config = ChannelsConfig(tuple(windows), histogram or not windows)
    found = network_input(hu, config, size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, layers_input(hu, config, size), atol=1e-6)


@pytest.mark.parametrize("shape", [(512, 512), (512, 300), (290, 512), (476, 290), (64, 64)])
@pytest.mark.parametrize("histogram", [False, True])
def test_a_part_of_the_input_is_that_part_of_the_whole(shape, histogram):
    config = ChannelsConfig(((150.0, 30.0), (200.0, 60.0)), histogram)
    hu = np.random.default_rng(0).normal(50, 100, shape).astype(np.float32)
    hu[::7, ::5] = np.nan
    whole = network_input(hu, config, 64)
    for box in ((slice(8, 40), slice(24, 56)), (slice(0, 32), slice(0, 64)), (slice(32, 64), slice(0, 32))):
        np.testing.assert_array_equal(network_input(hu, config, 64, box), whole[box])


@pytest.mark.parametrize("shape", [(512, 512), (476, 290), (130, 131)])
def test_slices_as_scanners_give_them(body_hu, shape):
    config = ChannelsConfig(("liver", (250, 129)), histogram_steps=40)
    (hu,) = body_hu((1, *shape))
    np.testing.assert_allclose(network_input(hu, config, 128), layers_input(hu, config, 128), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    logits=hnp.arrays(
        np.float32, st.integers(1, 9).map(lambda n: (n, n, 3)), elements=st.integers(-40, 40).map(lambda n: n / 4)
    ),
    size=SIZES,
)
def test_the_way_back_is_the_layers(logits, size):
    probabilities = softmax(logits)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-6)
    expected = RestoreSize()(np.moveaxis(probabilities, 0, 2)[None], rows_columns=size)[0].numpy()
    found = restore(probabilities, *size)
    np.testing.assert_allclose(np.moveaxis(found, 0, 2), expected, atol=1e-6)
    labels = restore_labels(probabilities, *size)
    np.testing.assert_array_equal(labels[differ(found)], found.argmax(0)[differ(found)])
    assert labels.dtype == np.uint8


def differ(probabilities):
    """Pixels whose two most probable classes are no draw."""
    ordered = np.sort(probabilities, axis=0)
    return ordered[-1] - ordered[-2] > 1e-6


@pytest.mark.parametrize("place", [(0, 0), (0, 15), (15, 7), (8, 8)])
def test_a_single_pixel_of_the_network_reaches_its_neighbours(place):
    probabilities = np.zeros((3, 16, 16), np.float32)
    probabilities[0] = 1
    probabilities[(slice(None), *place)] = 0, 0.2, 0.8
    for size in ((64, 64), (50, 37), (37, 50), (16, 16), (9, 16)):
        found = restore(probabilities, *size)
        labels = restore_labels(probabilities, *size)
        np.testing.assert_array_equal(labels, found.argmax(0))
