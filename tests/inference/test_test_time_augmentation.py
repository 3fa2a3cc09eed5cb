"""Slices moved, and what a network finds in them moved back."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import liverseg_tf as ls
from liverseg_tf.errors import ConfigError
from liverseg_tf.inference.test_time_augmentation import TestTimeAugmentation

SPACING = (0.8, 1.1, 3.0)


def bright_is_class_1(hu):
    return np.stack([hu <= 60, hu > 60], -1).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(70, 90), st.integers(60, 90)),  # so large that no variation moves the disk out of it
    center=st.tuples(st.floats(0.4, 0.6), st.floats(0.4, 0.6)),
)
def test_a_disk_is_found_where_it_was(seed, size, center):
    y, x = np.indices(size)
    disk = ((y - center[0] * size[0]) * SPACING[0]) ** 2 + ((x - center[1] * size[1]) * SPACING[1]) ** 2 < 9**2
    hu = np.where(disk, 120.0, 0.0).astype(np.float32)[None]
    found = list(TestTimeAugmentation(count=4, shift_mm=4, seed=seed).probabilities(bright_is_class_1, hu, SPACING))
    np.testing.assert_array_equal(found[0], bright_is_class_1(hu))
    edge = ndimage.binary_dilation(disk, iterations=2) & ~ndimage.binary_erosion(disk, iterations=2)
    for one in found:
        np.testing.assert_allclose(one.sum(-1), 1, atol=1e-5)
        np.testing.assert_array_equal((one[0, ..., 1] > 0.5)[~edge], disk[~edge])


@pytest.mark.slow
def test_the_predictor_averages_the_variations(small_model):
    rng = np.random.default_rng(0)
    hu = np.kron(rng.normal(0, 400, (10, 9, 3)), np.ones((4, 4, 1))).astype(np.int16)
    none = TestTimeAugmentation(count=3, shift_mm=0, rotation_degrees=0, scale=0, hu_shift=0, hu_scale=0)
    plain, unmoved, moved = (
        ls.Predictor(small_model, postprocessing=None, variations=v).predict(hu, spacing_mm=SPACING, probabilities=True)
        for v in (None, none, 5)
    )
    assert len(np.unique(plain.canonical_labels)) > 1
    assert np.mean(unmoved.canonical_labels != plain.canonical_labels) < 0.001
    assert not np.array_equal(moved.probabilities["tumour"], plain.probabilities["tumour"])
    agree = np.mean(moved.canonical_labels == plain.canonical_labels)
    assert 0.5 < agree < 1


def test_another_process_varies_too(tmp_path, small_model):
    ls.save_model(small_model, ls.Model.of(small_model).config, tmp_path / "model.keras")
    there = pickle.loads(pickle.dumps(ls.Predictor(tmp_path / "model.keras", variations=4)))
    assert there.variations == TestTimeAugmentation(count=4)


def test_wrong_amounts_are_errors():
    with pytest.raises(ConfigError, match="at least 3"):
        TestTimeAugmentation(count=2)
    for name in ("shift_mm", "rotation_degrees", "scale", "hu_shift", "hu_scale"):
        with pytest.raises(ConfigError, match="at least 0"):
            TestTimeAugmentation(**{name: -0.5})
    with pytest.raises(ConfigError, match=r"scale below 0\.5"):
        TestTimeAugmentation(scale=0.5)
    assert TestTimeAugmentation(scale=0.49, shift_mm=0).scale == 0.49
