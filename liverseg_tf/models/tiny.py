"""The encoder "tiny": five plain stages, to test a whole pipeline in seconds. Its masks are useless."""

from __future__ import annotations

import keras

TINY = "tiny"
_FILTERS = (8, 8, 16, 16, 32)
DECODER_FILTERS = (32, 16, 16, 8, 8)


def build_encoder(input_shape: tuple[int, int, int]) -> tuple[keras.Model, list[str]]:
    """Build the encoder: a 3x3 convolution of stride 2, BatchNorm and ReLU in each stage.

    Args:
        input_shape: (rows, columns, channels) of channels in [0, 1].

    Returns:
        The encoder, and the names of the layers to skip from: at strides 16, 8, 4 and 2.

    Examples:
        >>> encoder, skips = build_encoder((64, 64, 3))
        >>> encoder.output_shape, [encoder.get_layer(name).output.shape[1] for name in skips]
        ((None, 2, 2, 32), [4, 8, 16, 32])
    """
    x = inputs = keras.layers.Input(input_shape)
    for stage, filters in enumerate(_FILTERS):
        x = keras.layers.Conv2D(filters, 3, 2, "same", use_bias=False, name=f"conv{stage}")(x)
        x = keras.layers.BatchNormalization(name=f"bn{stage}")(x)
        x = keras.layers.ReLU(name=f"relu{stage}")(x)
    return keras.Model(inputs, x, name=TINY), [f"relu{stage}" for stage in (3, 2, 1, 0)]
