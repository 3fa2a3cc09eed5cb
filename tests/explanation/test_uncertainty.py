"""Uncertainty by test-time variation."""

from __future__ import annotations

import keras
import nibabel as nib
import numpy as np
import pytest

from liverseg_tf.data.volume import CTVolume
from liverseg_tf.explanation.uncertainty import expected_calibration_error, measure_uncertainty
from liverseg_tf.inference.predictor import Predictor
from liverseg_tf.inference.test_time_augmentation import TestTimeAugmentation
from liverseg_tf.models.model import Model


@pytest.fixture(scope="module")
def volume(lesions):
    """Bright lesions in dark tissue: what is moved in from outside the picture is air, and dark too."""
    return CTVolume.from_array((115 - lesions[0].hu).astype(np.int16), lesions[0].spacing_mm)


@pytest.fixture(scope="module")
def bright_is_tumour(dark_is_tumour):
    model = keras.models.clone_model(dark_is_tumour)
    model.set_weights(dark_is_tumour.get_weights())
    kernel, bias = model.get_layer("encoder_conv").get_weights()
    kernel[..., 0], bias[0] = -kernel[..., 0], -0.6
    model.get_layer("encoder_conv").set_weights([kernel, bias])
    return Model(model, Model.of(dark_is_tumour).config).to_keras()


@pytest.fixture(scope="module")
def uncertain(bright_is_tumour, volume):
    return measure_uncertainty(volume, bright_is_tumour)


def test_edges_are_less_sure_than_what_lies_within(uncertain):
    entropy = uncertain.entropy[..., 3].astype(float)
    lesion = np.zeros((64, 64), bool)
    lesion[16:32, 8:24] = True
    inner = np.zeros_like(lesion)
    inner[20:28, 12:20] = True
    rim = lesion & ~inner
    assert entropy[rim].mean() > entropy[inner].mean() + 10
    assert entropy[rim].mean() > entropy[50:60, 50:60].mean() + 10


def test_the_first_variation_is_the_unchanged_volume(uncertain, bright_is_tumour, volume):
    labels = Predictor(bright_is_tumour, postprocessing=None).predict(volume).canonical_labels
    assert uncertain.tumour_volumes_ml[0] == pytest.approx((labels == 2).sum() * 0.02)
    assert len(uncertain.tumour_volumes_ml) == 8 and uncertain.tumour_volumes_ml.std() > 0


def test_variations_are_moved_back_to_where_they_were(bright_is_tumour, volume):
    far = TestTimeAugmentation(count=3, shift_mm=20, rotation_degrees=0, scale=0, hu_shift=0, hu_scale=0)
    found = measure_uncertainty(volume, bright_is_tumour, far)
    # 20 mm are 10 pixels: were they not moved back, the lesions' centres would be uncertain
    assert found.entropy[20:28, 12:20, 3].mean() < 40
    assert found.tumour_volumes_ml.min() > 0.4 * found.tumour_volumes_ml[0]


def test_no_variation_is_no_doubt_about_volumes(bright_is_tumour, volume):
    none = TestTimeAugmentation(count=3, shift_mm=0, rotation_degrees=0, scale=0, hu_shift=0, hu_scale=0)
    found = measure_uncertainty(volume, bright_is_tumour, none)
    low, high = found.tumour_range_ml
    assert high - low == pytest.approx(0, abs=0.2)


def test_same_seed_same_result_and_the_range_is_that_of_the_volumes(uncertain, bright_is_tumour, volume):
    again = measure_uncertainty(volume, bright_is_tumour)
    assert np.array_equal(again.entropy, uncertain.entropy) and again.to_dict() == uncertain.to_dict()
    assert uncertain.tumour_range_ml == (min(uncertain.tumour_volumes_ml), max(uncertain.tumour_volumes_ml))
    assert uncertain.liver_range_ml == (min(uncertain.liver_volumes_ml), max(uncertain.liver_volumes_ml))


def test_nothing_is_called_an_interval_without_a_calibration(uncertain):
    assert not [key for key in uncertain.to_dict() if "interval" in key or "coverage" in key]
    assert not [name for name in dir(uncertain) if "interval" in name]


def test_entropy_is_saved_in_the_inputs_grid(uncertain, tmp_path):
    uncertain.save(tmp_path / "entropy.nii.gz")
    image = nib.load(tmp_path / "entropy.nii.gz")
    assert np.allclose(image.affine, uncertain.volume.affine)
    values = np.asarray(image.dataobj)
    assert values.min() >= 0 and values.max() <= 1 + 1e-6 and values.max() > 0.3


def test_calibration_error_of_a_calibrated_and_an_overconfident_network():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 20000)
    truth = (rng.random(20000) > sure).astype(int)
    assert expected_calibration_error(np.stack([sure, 1 - sure], 1), truth) < 0.02
    overconfident = np.stack([np.full(20000, 0.99), np.full(20000, 0.01)], 1)
    assert expected_calibration_error(overconfident, truth) == pytest.approx(0.24, abs=0.02)
