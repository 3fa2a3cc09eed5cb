"""The U-Net. The only file that imports segmentation_models."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import keras

from liverseg_tf.config import BACKBONES
from liverseg_tf.errors import ConfigError, ModelError, first_line
from liverseg_tf.models import efficientnet_lite, tiny
from liverseg_tf.models.batch_normalization import fuse_batch_normalization
from liverseg_tf.models.efficientnet_lite import EFFICIENTNET_LITE, load_imagenet

# Keras's 0.99 needs hundreds of steps before validation means anything; this is PyTorch's and fastai's default.
BATCH_NORM_MOMENTUM = 0.9
# Encoders beside segmentation-models' own: input shape -> encoder, and the layers to skip from, coarse to fine.
_OWN_ENCODERS: dict[str, Callable] = {
    **{name: partial(efficientnet_lite.build_encoder, name) for name in EFFICIENTNET_LITE},
    tiny.TINY: tiny.build_encoder,
}
_DECODER_FILTERS = (256, 128, 64, 32, 16)
_DECODER_PREFIXES = ("decoder_", "center_", "final_conv", "linear", "logits")


def build_unet(
    image_size: int = 128,
    backbone: str = "resnet34",
    classes: int = 3,
    channels: int = 3,
    encoder_weights: str | Path = "none",
    precision: str = "float32",
) -> keras.Model:
    """Build a U-Net: segmentation-models' decoder on one of its encoders or of ours.

    Args:
        image_size: rows and columns of the input, in pixels; a multiple of 32.
        backbone: one of `liverseg_tf.config.BACKBONES`.
        classes: number of classes, background included.
        channels: channels of the input.
        encoder_weights: `"imagenet"` (downloaded; needs three channels), `"none"` (random), or a file of weights
            that this encoder saved (`.weights.h5`), or a model file of this library whose encoder fits.
        precision: Keras dtype policy of the layers, as `"float32"` or `"mixed_float16"`.

    Returns:
        A Keras model: (batch, image_size, image_size, channels) float32 in [0, 1] -> the same rows and columns with
        `classes` float32 logits.

    Raises:
        ConfigError: for an unknown backbone or an impossible size.
        ModelError: if the encoder's weights can't be had.

    Examples:
        >>> build_unet(image_size=64, backbone="resnet18").output_shape
        (None, 64, 64, 3)
    """
    if backbone not in BACKBONES:
        raise ConfigError(f"unknown backbone {backbone!r}: expected one of {', '.join(BACKBONES)}")
    if image_size < 32 or image_size % 32:
        raise ConfigError(f"image size: expected a multiple of 32 pixels, at least 32. Received: {image_size}")
    if str(encoder_weights) == "imagenet" and channels != 3:
        raise ConfigError(f"ImageNet weights need three channels. Received: {channels}; use encoder weights 'none'")
    if str(encoder_weights) == "imagenet" and backbone == tiny.TINY:
        raise ConfigError("there are no ImageNet weights for the backbone 'tiny': use encoder weights 'none'")
    sm = _segmentation_models()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        base = sm.Unet(
            backbone,
            input_shape=(image_size, image_size, channels),
            classes=classes,
            activation="linear",
            encoder_weights=_fetchable(backbone, encoder_weights),
            decoder_filters=tiny.DECODER_FILTERS if backbone == tiny.TINY else _DECODER_FILTERS,
        )
    except Exception as error:
        if str(encoder_weights) != "imagenet":
            raise
        raise ModelError(
            f"the ImageNet weights of {backbone} could not be downloaded ({first_line(error)}): connect this machine "
            "to the internet once, or give encoder weights as a file, or train from random ones: encoder_weights='none'"
        ) from error
    finally:
        keras.config.set_dtype_policy(before)
    # float16 logits lose too much in the softmax
    logits = keras.layers.Activation("linear", dtype="float32", name="logits")(base.output)
    model = keras.Model(base.input, logits, name=f"unet_{backbone}")
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = BATCH_NORM_MOMENTUM
    fuse_batch_normalization(model)
    if str(encoder_weights) == "imagenet" and backbone in EFFICIENTNET_LITE:
        load_imagenet(model, backbone)
    elif str(encoder_weights) == "imagenet":
        _rescale_input_normalization(model)
    elif str(encoder_weights) != "none":
        _load_encoder(model, Path(encoder_weights))
    return model


def is_encoder(layer: keras.layers.Layer) -> bool:
    """Tell whether a layer of `build_unet`'s model belongs to the encoder."""
    return not layer.name.startswith(_DECODER_PREFIXES)


def _segmentation_models():
    # Under Keras 3 the package works only this way, and only if it is said before the first import.
    os.environ["SM_FRAMEWORK"] = "tf.keras"
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a line on import
        import segmentation_models
    from segmentation_models.backbones.backbones_factory import Backbones

    def registered(backbone):
        def build(input_shape, **_):
            encoder, Backbones._default_feature_layers[backbone] = _OWN_ENCODERS[backbone](input_shape)
            return encoder

        return build

    for backbone in _OWN_ENCODERS:  # so that its decoder goes on them as on its own encoders
        Backbones._models_update[backbone] = [registered(backbone), None]
    return segmentation_models


def _fetchable(backbone: str, encoder_weights) -> str | None:
    """What segmentation-models is asked to download."""
    return "imagenet" if str(encoder_weights) == "imagenet" and backbone not in _OWN_ENCODERS else None


def _rescale_input_normalization(model: keras.Model) -> None:
    """Make an encoder trained on 0..255 take channels in [0, 1], by its first BatchNorm's statistics."""
    try:
        layer = model.get_layer("bn_data")
    except ValueError:
        return
    statistics = {v.name: v for v in layer.non_trainable_variables}
    mean, variance = statistics["moving_mean"], statistics["moving_variance"]
    mean.assign(mean / 255.0)
    variance.assign((variance + layer.epsilon) / 255.0**2 - layer.epsilon)


def _load_encoder(model: keras.Model, path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"{path}: expected a file of encoder weights, or 'imagenet' or 'none'; there is no such file")
    encoder = keras.Model(model.input, [layer for layer in model.layers if is_encoder(layer)][-1].output)
    if path.name.endswith(".weights.h5"):
        try:
            encoder.load_weights(path)
        except Exception as error:
            raise ModelError(
                f"{path}: expected weights of the encoder of {model.name}, got something else ({first_line(error)})"
            ) from error
        return
    from liverseg_tf.models.saving import open_model

    source = {layer.name: layer for layer in open_model(path).network.layers}
    for layer in encoder.layers:
        weights = source[layer.name].get_weights() if layer.name in source else []
        if [w.shape for w in weights] != [w.shape for w in layer.get_weights()]:
            raise ModelError(f"{path}: its encoder does not fit {model.name}: layer {layer.name!r} differs")
        layer.set_weights(weights)
