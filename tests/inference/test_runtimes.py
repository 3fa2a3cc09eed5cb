"""What `open_runtime` makes of all kinds of paths, good and bad."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf

from liverseg_tf.channels_numpy import network_input, softmax
from liverseg_tf.errors import GeometryError, ModelError
from liverseg_tf.files import sha256_of
from liverseg_tf.inference.allowed_operations import check_operations
from liverseg_tf.inference.runtimes import KerasRuntime, Runtime, SavedModelRuntime, TFLiteRuntime, open_runtime
from liverseg_tf.models.artefacts import SAVEDMODEL_MANIFEST, Manifest
from liverseg_tf.models.model import Model
from liverseg_tf.shipped import shipped_model

pytestmark = pytest.mark.slow


@pytest.fixture
def artefacts(savedmodel, tflite_file):
    return {"savedmodel": savedmodel, "tflite": tflite_file}


@pytest.fixture
def copies(artefacts, tmp_path):
    """In one folder: a SavedModel's version and a TFLite file."""
    folder = tmp_path / "liver"
    shutil.copytree(artefacts["savedmodel"].parent, folder)
    for path in (artefacts["tflite"], artefacts["tflite"].with_suffix(".json")):
        shutil.copy(path, folder)
    return {f: folder / path.name for f, path in artefacts.items()}


def test_each_path_opens_as_what_it_is(artefacts, small_model_file, small_model):
    kinds = {
        small_model_file: KerasRuntime,
        artefacts["savedmodel"]: SavedModelRuntime,
        artefacts["savedmodel"].parent: SavedModelRuntime,
        str(artefacts["tflite"]): TFLiteRuntime,
        small_model: KerasRuntime,
    }
    hu = np.round(np.random.default_rng(0).normal(0, 200, (2, 48, 40))).astype(np.float32)
    expected = KerasRuntime(small_model).labels(hu)
    for model, kind in kinds.items():
        runtime = open_runtime(model)
        assert type(runtime) is kind
        assert isinstance(runtime, Runtime)
        assert runtime.config == Model.of(small_model).config
        assert (runtime.labels(hu) == expected).mean() > 0.999
    assert open_runtime(runtime) is runtime


def test_a_tflite_file_serves_several_threads(artefacts):
    runtime = open_runtime(artefacts["tflite"])
    batches = [np.random.default_rng(i).normal(0, 300, (2, 40, 30 + i)).astype(np.float32) for i in range(8)]
    expected = [runtime.labels(hu) for hu in batches]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(np.array_equal, pool.map(runtime.labels, batches), expected))


def test_a_tflite_file_whose_memory_was_given_back_serves_on(artefacts):
    runtime = open_runtime(artefacts["tflite"])
    hu = np.random.default_rng(0).normal(0, 300, (2, 40, 30)).astype(np.float32)
    expected, interpreters = runtime.labels(hu), len(runtime._idle)
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(runtime.labels, hu) for _ in range(12)]
        for _ in range(20):
            runtime.release()
        assert all(np.array_equal(one.result(timeout=60), expected) for one in found)
    runtime.release()
    assert not runtime._idle
    assert np.array_equal(runtime.labels(hu), expected)
    assert len(runtime._idle) + runtime._closed == interpreters


def test_a_network_looks_at_parts_of_slices(body_hu):
    path = next(shipped_model("liverseg-lite0").glob("*.tflite"))
    runtime, hu = TFLiteRuntime(path), body_hu((3, 512, 512))
    assert runtime.sees_parts
    boxes = [None, (slice(32, 192), slice(8, 232)), (slice(0, 256), slice(0, 128))]
    whole, part, half = expected = [np.stack(list(runtime.scores(hu, box))) for box in boxes]
    assert half[:, 0, :, 128:].min() == 1
    assert half[:, 1:, :, 128:].max() == 0
    assert abs(part - whole)[..., 64:160, 64:176].mean() < 0.03
    assert (part.argmax(1) == whole.argmax(1))[..., 64:160, 64:176].mean() > 0.95
    # as a network sees it that was opened for this size
    channels = np.stack([network_input(one, runtime.config.channels, 256)[boxes[1]] for one in hu])
    interpreter = runtime._network_for(channels.shape[1:3])
    for one, found in zip(channels, part, strict=True):
        interpreter.set_tensor(runtime._ends[0], one[None])
        interpreter.invoke()
        np.testing.assert_array_equal(softmax(interpreter.get_tensor(runtime._ends[1])[0]), found[:, *boxes[1]])
    with ThreadPoolExecutor(4) as pool:  # by turns
        jobs = [pool.submit(lambda box: np.stack(list(runtime.scores(hu, box))), box) for box in boxes * 3]
        for job, wanted in zip(jobs, expected * 3, strict=True):
            np.testing.assert_array_equal(job.result(), wanted)


def test_run_folder_opens(small_model_file, tmp_path):
    shutil.copy(small_model_file, tmp_path / "model.keras")
    assert isinstance(open_runtime(tmp_path), KerasRuntime)


def test_newest_version_by_number(copies):
    shutil.copytree(copies["savedmodel"], copies["savedmodel"].with_name("10"))
    shutil.copytree(copies["savedmodel"], copies["savedmodel"].with_name("9"))
    assert open_runtime(copies["savedmodel"].parent).path.name == "10"


def test_missing_and_strange_paths_are_errors(tmp_path):
    (tmp_path / "text.tflite").write_text("no model")
    (tmp_path / "empty").mkdir()
    for path in ("text.tflite", "none.tflite", "empty", "nothing"):
        with pytest.raises(ModelError, match=path):
            open_runtime(tmp_path / path)
    with pytest.raises(ModelError, match="int"):
        open_runtime(3)
    with pytest.raises(ModelError, match="configuration"):
        open_runtime(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))


@pytest.mark.parametrize(
    "name", ["saved_model.pb", "variables/variables.data-00000-of-00001", "variables/variables.index"]
)
def test_cut_savedmodel_is_an_error(copies, name):
    path = copies["savedmodel"] / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match="cut or exchanged"):
        open_runtime(copies["savedmodel"])
    path.unlink()
    with pytest.raises(ModelError, match=path.name):
        open_runtime(copies["savedmodel"])


def test_cut_or_exchanged_tflite_is_an_error(copies):
    path = copies["tflite"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ModelError, match="cut or exchanged"):
        open_runtime(path)
    path.write_bytes(whole)
    renamed = path.with_name("renamed.tflite")
    path.rename(renamed)
    with pytest.raises(ModelError, match=r"renamed\.json"):
        open_runtime(renamed)
    path.with_suffix(".json").rename(renamed.with_suffix(".json"))
    with pytest.raises(ModelError, match="keep the names"):
        open_runtime(renamed)


def test_cut_files_with_matching_checksums_are_errors_too(copies):
    """As someone would make them who recomputes the checksums."""
    path = copies["tflite"]
    path.write_bytes(path.read_bytes()[:1000])
    forge_manifest(path.with_suffix(".json"), path.parent, path.name)
    with pytest.raises(ModelError, match="can be run"):
        open_runtime(path)
    folder = copies["savedmodel"]
    for name in ("variables/variables.data-00000-of-00001", "saved_model.pb"):
        (folder / name).write_bytes((folder / name).read_bytes()[:5000])
        forge_manifest(folder / SAVEDMODEL_MANIFEST, folder, name)
        with pytest.raises(ModelError, match="liver"):
            open_runtime(folder)


def test_configuration_of_another_network_is_an_error(copies):
    for manifest in (copies["savedmodel"] / SAVEDMODEL_MANIFEST, copies["tflite"].with_suffix(".json")):
        manifest.write_text(manifest.read_text().replace('"liver",\n      "tumour"', '"kidney"'))
    with pytest.raises(ModelError, match="classes"):
        open_runtime(copies["savedmodel"])
    with pytest.raises(ModelError, match="classes"):
        open_runtime(copies["tflite"])


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"config": {}, "card": 1, "sha256": {}}', '{"config": 1, "card": {}, "sha256": {"a": "b"}}'],
)
def test_broken_manifest_is_an_error(copies, text):
    path = copies["tflite"].with_suffix(".json")
    path.write_text(text)
    with pytest.raises(ModelError, match=path.name):
        open_runtime(copies["tflite"])


def test_savedmodel_that_touches_files_is_not_loaded(copies, tmp_path):
    target = tmp_path / "written"
    folder = copies["savedmodel"]

    class Hostile(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, None, None), tf.float32)])
        def serve(self, hu):
            tf.io.write_file(str(target), "gotcha")
            return {"labels": tf.cast(hu, tf.uint8)}

    module = Hostile()
    shutil.rmtree(folder / "variables")
    tf.saved_model.save(
        module, str(folder), signatures={"serving_default": module.serve, "probabilities": module.serve}
    )
    files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    forge_manifest(folder / SAVEDMODEL_MANIFEST, folder, *[f for f in files if not f.startswith("assets.extra")])
    with pytest.raises(ModelError, match="WriteFile"):
        open_runtime(folder)
    assert not target.exists()


def test_saving_operations_are_refused_where_a_signature_runs_them(tmp_path):
    class Hostile(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((), tf.float32)])
        def serve(self, x):
            tf.raw_ops.SaveV2(prefix="anywhere", tensor_names=["x"], shape_and_slices=[""], tensors=[x])
            return {"x": x}

    module = Hostile()
    tf.saved_model.save(module, str(tmp_path / "hostile"), signatures=module.serve)
    with pytest.raises(ModelError, match="SaveV2"):
        check_operations(tmp_path / "hostile")


def test_python_functions_are_refused(tmp_path):
    module = tf.Module()
    module.f = tf.function(lambda x: tf.py_function(lambda y: y, [x], tf.float32), [tf.TensorSpec((), tf.float32)])
    tf.saved_model.save(module, str(tmp_path / "hostile"))
    with pytest.raises(ModelError, match="EagerPyFunc"):
        check_operations(tmp_path / "hostile")


def test_our_own_pass(artefacts):
    check_operations(artefacts["savedmodel"])


def forge_manifest(path, folder, *names):
    manifest = Manifest.load(path)
    sha256 = manifest.sha256 | {name: sha256_of(folder / name) for name in names}
    sha256 = {name: value for name, value in sha256.items() if (folder / name).exists()}
    path.write_text(Manifest(manifest.config, manifest.card, sha256).to_json())


def test_no_slices_give_no_labels_and_slices_without_pixels_are_told(keras_runtime, artefacts):
    for runtime in (keras_runtime, SavedModelRuntime(artefacts["savedmodel"]), TFLiteRuntime(artefacts["tflite"])):
        for shape in ((0, 40, 36), (0, 512, 512)):
            labels, probabilities = (f(np.zeros(shape, np.float32)) for f in (runtime.labels, runtime.probabilities))
            assert (labels.shape, labels.dtype) == (shape, np.uint8)
            assert (probabilities.shape, probabilities.dtype) == ((*shape, 3), np.float32)
        for shape in ((2, 0, 36), (2, 40, 0), (40, 36), (1, 40, 36, 1)):
            for function in (runtime.labels, runtime.probabilities):
                with pytest.raises(GeometryError, match="expected slices"):
                    function(np.zeros(shape, np.float32))
