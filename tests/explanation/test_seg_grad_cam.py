"""Maps of a network whose reasons are known."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from liverseg_tf.config import ModelConfig
from liverseg_tf.errors import ConfigError, ModelError
from liverseg_tf.explanation.layers import resolve_layer
from liverseg_tf.explanation.options import CAM_METHODS
from liverseg_tf.explanation.seg_grad_cam import SegGradCam
from liverseg_tf.models.unet import build_unet


@pytest.mark.parametrize("method", CAM_METHODS)
def test_every_method_marks_what_the_network_goes_by(method, dark_is_tumour, lesions):
    volume, labels = lesions
    hu, tumour = volume.slices(3, 4), labels[None, ..., 3] == 2
    cam = SegGradCam(dark_is_tumour, method=method)
    small = cam(hu, tumour, label=2)
    assert small.shape == (1, 8, 8) and small.dtype == np.float32
    heat = cam.enlarge(small, 64, 64)[0]
    # Score-CAM weighs channels by what they alone would say, so those that are not used take part
    factor = 1.2 if method == "scorecam" else 3
    assert heat[tumour[0]].mean() > factor * heat[~tumour[0]].mean()


def test_hirescam_keeps_the_place_that_grad_cams_mean_loses():
    """Two places are as bright; the score goes by one of them alone."""
    image = keras.Input((32, 32, 3))
    bright = keras.layers.Conv2D(1, 4, strides=4, name="encoder")(image)
    places = np.zeros((1, 8, 8, 1), np.float32)
    places[0, 1, 1] = 1
    used = keras.layers.Multiply()([bright, keras.ops.convert_to_tensor(places)])
    model = keras.Model(image, keras.layers.Conv2D(3, 1)(keras.layers.UpSampling2D(4)(used)))
    model.layers[1].set_weights([np.full((4, 4, 3, 1), 1 / 48, np.float32), np.zeros(1, np.float32)])
    model.layers[-1].set_weights([np.ones((1, 1, 1, 3), np.float32), np.zeros(3, np.float32)])
    hu = np.full((1, 32, 32), -500, np.float32)
    hu[:, 4:8, 4:8] = hu[:, 20:24, 20:24] = 200
    shares = {}
    for method in ("gradcam", "hirescam"):
        (heat,) = SegGradCam(model, ModelConfig(image_size=32), method, "encoder")(hu, np.ones((1, 32, 32)), 2)
        shares[method] = heat[1, 1] / heat.sum()
    assert shares["hirescam"] > 0.99 and shares["gradcam"] < 0.6


def test_the_score_is_summed_over_the_region_alone(dark_is_tumour, lesions):
    volume, labels = lesions
    cam = SegGradCam(dark_is_tumour)
    hu = volume.slices(3, 4)
    once = np.zeros((1, 64, 64), bool)
    once[0, 16:24, 8:16] = True
    twice = once.copy()
    twice[0, 40:48, 40:48] = True
    assert cam(hu, twice, 2) == pytest.approx(2 * cam(hu, once, 2), rel=1e-4)
    assert not cam(hu, np.zeros_like(once), 2).any()


def test_a_slices_map_does_not_depend_on_its_batch(dark_is_tumour, lesions):
    volume, labels = lesions
    cam = SegGradCam(dark_is_tumour)
    hu, region = volume.slices(1, 7), np.moveaxis(labels[..., 1:7] >= 1, 2, 0)
    together = cam(np.concatenate([hu, hu]), np.concatenate([region, region]), 2)  # more than one batch inside
    alone = np.concatenate([cam(hu[i : i + 1], region[i : i + 1], 2) for i in range(6)])
    near = pytest.approx(alone, rel=1e-4, abs=1e-5)  # kernels are chosen by the size of the batch
    assert together[:6] == near and together[6:] == near


def test_a_class_that_nothing_raises_has_an_empty_map(dark_is_tumour, lesions):
    volume, _ = lesions
    assert not SegGradCam(dark_is_tumour)(volume.slices(3, 4), np.ones((1, 64, 64)), label=1).any()


def test_bottleneck_and_decoder_stages_of_the_u_net():
    model = build_unet(32, "resnet18")
    assert resolve_layer(model, "bottleneck") == "relu1"
    sizes = [model.get_layer(resolve_layer(model, f"decoder{i}")).output.shape[1] for i in range(5)]
    assert sizes == [2, 4, 8, 16, 32]
    assert resolve_layer(model, "final_conv") == "final_conv"
    with pytest.raises(ConfigError, match="decoder4"):
        resolve_layer(model, "decoder5")


def test_unknown_method_and_missing_configuration_are_errors(dark_is_tumour):
    with pytest.raises(ConfigError, match="gradcam, gradcam"):
        SegGradCam(dark_is_tumour, method="magic")
    with pytest.raises(ModelError, match="no configuration"):
        SegGradCam(build_unet(32, "resnet18"))
    assert SegGradCam(build_unet(32, "resnet18"), ModelConfig(image_size=32)).layer == "relu1"
