"""Finds a network's stages by the function of its layers: an encoder, then a decoder with upsampling."""

from __future__ import annotations

import keras

from liverseg_tf.errors import ConfigError

LAYERS = ("bottleneck", "decoder0", "decoder1", "decoder2", "decoder3", "decoder4")
_ENLARGING = (keras.layers.UpSampling2D, keras.layers.Conv2DTranspose)


def stages(model: keras.Model) -> dict[str, str]:
    """Names of each stage's last layer: the bottleneck, and the output of each decoder stage.

    Args:
        model: channels in, logits out, as `build_unet` makes it.

    Returns:
        "bottleneck", "decoder0" (coarse) and so on, and the layer of each; empty for a network without upsampling.

    Examples:
        >>> from liverseg_tf.models.unet import build_unet
        >>> stages(build_unet(32, "resnet18"))["bottleneck"]
        'relu1'
    """
    enlarging = [layer for layer in model.layers if isinstance(layer, _ENLARGING)]
    head = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)][-1:]
    return dict(zip(LAYERS, (one.input._keras_history.operation.name for one in [*enlarging, *head]), strict=False))


def resolve_layer(model: keras.Model, layer: str) -> str:
    """Resolve a stage's name, or a layer's own name, to a layer's name.

    Raises:
        ConfigError: if the network has no such layer.

    Examples:
        >>> from liverseg_tf.models.unet import build_unet
        >>> resolve_layer(build_unet(32, "resnet18"), "bottleneck")
        'relu1'
    """
    found = stages(model)
    if layer in found:
        return found[layer]
    if layer in {one.name for one in model.layers} and len(model.get_layer(layer).output.shape) == 4:
        return layer
    raise ConfigError(
        f"explanation layer: expected one of {', '.join(LAYERS)}, or the name of a layer of {model.name} that gives "
        f"pictures. Received: {layer!r}"
    )


def decoder_layers(model: keras.Model) -> set[str]:
    """Names of the layers after the first upsampling: the decoder and the head."""
    found: set[str] = set()
    for layer in model.layers:  # in the order of computation
        before = {parent.operation.name for node in layer._inbound_nodes for parent in node.parent_nodes}
        if isinstance(layer, _ENLARGING) or before & found:
            found.add(layer.name)
    return found
