"""A network whose reasons are known: it calls dark places tumour."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from liverseg_tf.config import ModelConfig
from liverseg_tf.data.volume import CTVolume
from liverseg_tf.models.model import Model

SIZE = 64


@pytest.fixture(scope="session")
def dark_is_tumour() -> keras.Model:
    """Bottleneck channel 0 is how dark 8x8 pixels are in the liver window; seven others see texture, unused."""
    image = keras.Input((SIZE, SIZE, 3))
    darkness = keras.layers.Conv2D(8, 8, strides=8, activation="relu", name="encoder_conv")
    upsampling = keras.layers.UpSampling2D(8, name="decoder_stage0_upsampling")
    head = keras.layers.Conv2D(3, 1, name="final_conv")
    model = keras.Model(image, head(upsampling(darkness(image))), name="dark_is_tumour")
    kernel = np.random.default_rng(0).normal(0, 0.15, (8, 8, 3, 8)).astype(np.float32)
    kernel -= kernel.mean(axis=(0, 1), keepdims=True)
    kernel[..., 0] = 0
    kernel[..., 0, 0] = -1 / 64
    darkness.set_weights([kernel, np.eye(8, dtype=np.float32)[0]])
    used = np.zeros((1, 1, 8, 3), np.float32)
    used[..., 0, 2] = 60
    head.set_weights([used, np.array([-30, 0, -12], np.float32)])
    return Model(model, ModelConfig(image_size=SIZE)).to_keras()


@pytest.fixture(scope="session")
def lesions() -> tuple[CTVolume, np.ndarray]:
    """A volume of liver tissue with two dark lesions, 64x64x8, and its mask; a file's axes in another order."""
    labels = np.zeros((64, 64, 8), np.uint8)
    labels[4:60, 4:60, 1:7] = 1
    labels[16:32, 8:24, 2:5] = 2  # lesion 1
    labels[40:48, 40:48, 5] = 2  # lesion 2
    hu = np.where(labels == 2, 10, 105).astype(np.int16)
    hu += np.random.default_rng(0).integers(-3, 4, hu.shape, np.int16)
    return CTVolume.from_array(hu, spacing_mm=(2.0, 2.0, 5.0)), labels
