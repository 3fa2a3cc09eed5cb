"""SavedModels: signatures, versions, warm-up, and that TensorFlow alone runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from liverseg_tf.errors import OutputError
from liverseg_tf.exporting.savedmodel import (
    WARMUP_REQUESTS,
    _write_warmup_requests,
    has_warmup_requests,
    write_savedmodel,
)
from liverseg_tf.hounsfield import PNG_OFFSET_HU
from liverseg_tf.inference.runtimes import SavedModelRuntime

pytestmark = pytest.mark.slow

TENSORFLOW_ALONE = """
import sys
sys.modules["liverseg_tf"] = sys.modules["segmentation_models"] = sys.modules["keras"] = None
import numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
hu = np.load(sys.argv[2])
np.savez(sys.argv[3], labels=model.signatures["serving_default"](hu=tf.constant(hu))["labels"],
         probabilities=model.signatures["probabilities"](hu=tf.constant(hu))["probabilities"])
"""


@pytest.mark.parametrize("shape", [(2, 512, 512), (1, 476, 290), (3, 37, 50)])
def test_gives_what_keras_gives(savedmodel, keras_runtime, body_hu, shape):
    hu = body_hu(shape)
    runtime = SavedModelRuntime(savedmodel)
    labels = runtime.labels(hu)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, keras_runtime.labels(hu))
    assert np.allclose(runtime.probabilities(hu), keras_runtime.probabilities(hu), atol=1e-6)


def test_the_network_is_stored_once_for_all_signatures(savedmodel, small_model):
    graph = SavedModel.FromString((savedmodel / "saved_model.pb").read_bytes()).meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    convolutions = sum(isinstance(layer, keras.layers.Conv2D) for layer in small_model.layers)
    assert sum(node.op == "Conv2D" for node in nodes) == convolutions > 10


def test_runs_in_a_process_with_tensorflow_and_nothing_of_ours(savedmodel, keras_runtime, body_hu, tmp_path):
    hu = body_hu((2, 60, 44))
    np.save(tmp_path / "hu.npy", hu)
    command = [sys.executable, "-c", TENSORFLOW_ALONE, savedmodel, tmp_path / "hu.npy", tmp_path / "out.npz"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, timeout=120)
    with np.load(tmp_path / "out.npz") as out:
        assert np.array_equal(out["labels"], keras_runtime.labels(hu))
        assert out["probabilities"].shape == (2, 60, 44, 3)


def test_a_slice_does_not_depend_on_its_batch(savedmodel, body_hu):
    runtime, hu = SavedModelRuntime(savedmodel), body_hu((3, 64, 48))
    hu[1] += 0.25  # one slice of fractions, whose histogram goes another way than that of whole numbers
    alone = np.concatenate([runtime.probabilities(slice_hu[None]) for slice_hu in hu])
    assert np.allclose(runtime.probabilities(hu), alone, atol=1e-5)


def test_compact_signature_takes_and_gives_png(savedmodel, body_hu):
    hu = body_hu((2, 60, 44))
    hu[0, 0, :2] = -32768, 32767
    png = [tf.io.encode_png((image[..., None] + PNG_OFFSET_HU).astype(np.uint16)).numpy() for image in hu]
    model = tf.saved_model.load(str(savedmodel))
    replies = model.signatures["compact"](png=tf.constant(png))["labels_bytes"].numpy()
    labels = np.stack([tf.io.decode_png(reply).numpy()[..., 0] for reply in replies])
    assert np.array_equal(labels, SavedModelRuntime(savedmodel).labels(hu))


def test_configuration_and_card_travel_with_it(savedmodel, small_config):
    manifest = json.loads((savedmodel / "assets.extra" / "liverseg_model.json").read_text())
    assert manifest["config"]["backbone"] == small_config.backbone
    assert "Not a medical device" in manifest["card"]["intended_use"]
    described = tf.saved_model.load(str(savedmodel)).signatures["describe"](name=tf.constant([""]))["json"].numpy()
    assert json.loads(described[0]) == manifest["config"]


def test_versions_count_up_and_stay(small_model, small_config, savedmodel, tmp_path):
    folder = tmp_path / "liverseg"
    (folder / "7").mkdir(parents=True)
    (folder / "7" / "of_another").write_text("kept")
    assert write_savedmodel(small_model, small_config, folder, {}).name == "8"
    assert (folder / "7" / "of_another").read_text() == "kept"
    assert sorted(p.name for p in folder.iterdir()) == ["7", "8"]  # nothing half written is left


def test_a_failed_export_leaves_nothing(small_model, small_config, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        write_savedmodel(small_model, small_config, tmp_path / "liverseg", {})
    assert list((tmp_path / "liverseg").iterdir()) == []


def test_warm_up_requests_parse_and_run(savedmodel):
    prediction_log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    model = tf.saved_model.load(str(savedmodel))
    seen = set()
    for record in tf.data.TFRecordDataset(str(savedmodel / WARMUP_REQUESTS)):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        assert request.model_spec.name == "liverseg"
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        (values,) = inputs.values()
        seen.add((request.model_spec.signature_name, len(values)))
        if len(values) == 1:
            signature = model.signatures[request.model_spec.signature_name]
            (output,) = signature(**{name: tf.constant(value) for name, value in inputs.items()}).values()
            assert output.shape[0] == 1
    assert seen == {(name, n) for name in ("serving_default", "probabilities", "compact") for n in (1, 8)}


def test_without_the_serving_package_there_are_no_warm_up_requests(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis.prediction_log_pb2", None)
    assert not has_warmup_requests()
    _write_warmup_requests(tmp_path / "requests", "liverseg")
    assert not (tmp_path / "requests").exists()
