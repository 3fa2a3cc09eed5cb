"""A network that calls dense tissue liver and denser tissue tumour, so that pages have something to show."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from liverseg_tf.config import ModelConfig
from liverseg_tf.data.volume import CTVolume
from liverseg_tf.models.model import Model


@pytest.fixture(scope="session")
def threshold_model() -> keras.Model:
    """Sees 64x64 pixels; liver from 0.3 of the liver window (0 HU) on, tumour from 0.8 (75 HU) on."""
    image = keras.Input((64, 64, 3))
    features = keras.layers.Conv2D(2, 2, strides=2, activation="relu", name="encoder_conv")
    upsampling = keras.layers.UpSampling2D(2, name="decoder_stage0_upsampling")
    head = keras.layers.Conv2D(3, 1, name="final_conv")
    stage = keras.layers.ReLU(name="decoder_stage3b_relu")
    model = keras.Model(image, head(stage(upsampling(features(image)))), name="threshold")
    kernel = np.zeros((2, 2, 3, 2), np.float32)
    kernel[:, :, 0] = 0.25
    features.set_weights([kernel, np.array([-0.3, -0.8], np.float32)])
    weights = np.zeros((1, 1, 2, 3), np.float32)
    weights[0, 0, 0, 1], weights[0, 0, 1, 2] = 60, 600
    head.set_weights([weights, np.array([1, 0, -5], np.float32)])
    return Model(model, ModelConfig(image_size=64)).to_keras()


@pytest.fixture(scope="session")
def scan() -> tuple[CTVolume, np.ndarray]:
    """64x64x20 voxels of 4x4x8 mm: a liver of 40 HU, lesions of 100 HU on slices 5 to 7 and 14 to 15, and its mask."""
    labels = np.zeros((64, 64, 20), np.uint8)
    labels[10:50, 6:40, 2:18] = 1
    labels[20:30, 12:22, 14:16] = 2
    labels[36:44, 24:32, 5:8] = 2
    hu = np.array([-200, 40, 100], np.int16)[labels]
    hu[:4], hu[-4:], hu[:, :2], hu[:, -2:] = -1000, -1000, -1000, -1000
    return CTVolume.from_array(hu, spacing_mm=(4.0, 4.0, 8.0)), labels
