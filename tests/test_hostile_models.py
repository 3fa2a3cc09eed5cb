"""Model files made to do harm are refused before anything of them runs."""

from __future__ import annotations

import json
import struct
import warnings
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf

from liverseg_tf.config import ModelConfig
from liverseg_tf.errors import ModelError
from liverseg_tf.inference.allowed_operations import check_operations
from liverseg_tf.inference.runtimes import open_runtime
from liverseg_tf.models.artefacts import SAVEDMODEL_MANIFEST
from liverseg_tf.models.saving import CONFIG_ENTRY, load_model

pytestmark = pytest.mark.slow


def archive(path, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return path


def test_archives_that_are_no_models(tmp_path):
    config = ModelConfig(32, "resnet18").to_json()
    bomb = tmp_path / "bomb.keras"
    content = bytearray(archive(bomb, {"model.weights.h5": bytes(1 << 20), CONFIG_ENTRY: config}).read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, 3 << 30)  # the size it unpacks to
    bomb.write_bytes(content)
    large = archive(tmp_path / "large.keras", {CONFIG_ENTRY: config + " " * (1 << 21)})
    absolute = archive(tmp_path / "absolute.keras", {CONFIG_ENTRY: config, "/etc/passwd": "x"})
    huge = archive(tmp_path / "huge.keras", {CONFIG_ENTRY: '{"image_size": 1048576}'})
    names = archive(tmp_path / "names.keras", {CONFIG_ENTRY: '{"class_names": ["background", "../liver"]}'})
    deep = archive(tmp_path / "deep.keras", {CONFIG_ENTRY: "[" * 100_000})
    code = archive(tmp_path / "code.keras", {CONFIG_ENTRY: b"\x80\x04\x95pickle"})
    encrypted = archive(tmp_path / "encrypted.keras", {CONFIG_ENTRY: config}, zipfile.ZIP_STORED)
    content = bytearray(encrypted.read_bytes())
    content[6] |= 1  # flag in the entry, and in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    encrypted.write_bytes(content)
    damaged = archive(tmp_path / "damaged.keras", {CONFIG_ENTRY: config})
    content = bytearray(damaged.read_bytes())
    content[60:70] = b"\xff" * 10
    damaged.write_bytes(content)
    for path, words in (
        (bomb, "unpacks to more than 2 GiB"),
        (large, "larger than a megabyte"),
        (absolute, "point outside the archive"),
        (huge, "from 32 to 4096"),
        (names, "class names"),
        (deep, "expected JSON"),
        (code, "expected a .keras model file"),
        (encrypted, "expected a .keras model file"),
        (damaged, "expected a .keras model file"),
    ):
        with pytest.raises(ModelError, match=words) as caught:
            open_runtime(path)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_weights_that_declare_more_than_they_hold(small_model_file, tmp_path):
    """An HDF5 data set may declare terabytes, or point to another file."""
    with zipfile.ZipFile(small_model_file) as whole:
        entries = {name: whole.read(name) for name in whole.namelist()}
    weights = entries["model.weights.h5"]
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(1 << 20))
    for name, options in (
        ("declared", {"shape": (1 << 24, 1 << 10), "chunks": (1 << 10, 1 << 10)}),
        ("external", {"shape": (3, 3, 3, 8), "external": [(str(secret), 0, h5py.h5f.UNLIMITED)]}),
    ):
        h5 = tmp_path / f"{name}.h5"
        h5.write_bytes(weights)
        with h5py.File(h5, "r+") as file:
            found = []
            file.visititems(
                lambda path, item, found=found: found.append(path) if path.endswith("conv2d/vars/0") else None
            )
            assert found
            del file[found[0]]
            file.create_dataset(found[0], dtype=np.float32, **options)
        entries["model.weights.h5"] = h5.read_bytes()
        path = archive(tmp_path / f"{name}.keras", entries, zipfile.ZIP_STORED)
        with pytest.raises(ModelError, match=f"{name}.keras: expected the weights of unet_tiny"):
            load_model(path)


@pytest.mark.parametrize("name", ["/dev/zero", "../../outside", "variables"])
def test_manifests_that_name_other_files(name, tmp_path):
    folder = tmp_path / "model" / "1"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"")
    path = folder / SAVEDMODEL_MANIFEST
    path.parent.mkdir()
    content = {"config": ModelConfig(32).to_dict(), "card": {}, "sha256": {name: "0" * 64}}
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"names a file outside the folder|expected a file"):
        open_runtime(folder)


def test_a_function_that_has_an_operations_name_is_looked_into(tmp_path):
    """TensorFlow looks for a function of a name before it looks for an operation."""

    class Hostile(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((), tf.float32)])
        def serve(self, x):
            return {"x": self.inner(x)}

        @tf.function(input_signature=[tf.TensorSpec((), tf.float32)])
        def inner(self, x):
            tf.raw_ops.SaveV2(prefix="anywhere", tensor_names=["x"], shape_and_slices=[""], tensors=[x])
            return x + 1

    from tensorflow.core.protobuf import saved_model_pb2

    module, folder = Hostile(), tmp_path / "hostile"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf.saved_model.save(module, str(folder), signatures=module.serve)
    path = folder / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    meta = model.meta_graphs[0]
    functions = {f.signature.name: f for f in meta.graph_def.library.function}
    (inner,) = (name for name, f in functions.items() if any(n.op == "SaveV2" for n in f.node_def) and "inner" in name)
    for function in functions.values():
        for node in function.node_def:
            if any(value.func.name == inner for value in node.attr.values()):
                node.op = "Relu"
                node.ClearField("attr")
    functions[inner].signature.name = "Relu"
    concrete = meta.object_graph_def.concrete_functions
    concrete.pop(inner, None)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="SaveV2"):
        check_operations(folder)
