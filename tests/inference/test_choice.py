"""Which artefact of a model runs, and that the one which needs no TensorFlow loads none."""

import os
import subprocess
import sys

import numpy as np
import pytest

from liverseg_tf.config import ModelConfig
from liverseg_tf.errors import ConfigError, ModelError
from liverseg_tf.inference import choice
from liverseg_tf.inference.choice import choose
from liverseg_tf.models.artefacts import SAVEDMODEL_MANIFEST, Manifest


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A folder as `export` fills it, of files that are told apart by their names alone."""
    monkeypatch.setattr(choice, "has_gpu", lambda: False)
    monkeypatch.setattr(choice, "has_litert", lambda: True)
    folder = tmp_path / "liver"
    write(folder / "1" / SAVEDMODEL_MANIFEST, "a")
    (folder / "1" / "saved_model.pb").write_bytes(b"")
    for precision in ("float32", "int8"):
        (folder / f"liver-{precision}.tflite").write_bytes(b"")
        write(folder / f"liver-{precision}.json", "a")
    return folder


def write(path, weights):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(Manifest(ModelConfig(32), {"weights_sha256": weights}, {"x": "y"}).to_json())


def test_int8_on_a_cpu_and_the_savedmodel_on_a_gpu(model, monkeypatch):
    found = choose(model)
    assert (found.runtime, found.path, found.weights) == ("tflite", model / "liver-int8.tflite", model / "1")
    monkeypatch.setattr(choice, "has_gpu", lambda: True)
    assert (choose(model).runtime, choose(model).reason) == ("savedmodel", "there is a GPU")


def test_what_stands_against_int8_is_told(model, monkeypatch):
    monkeypatch.setattr(choice, "has_litert", lambda: False)
    assert choose(model).runtime == "savedmodel" and "ai-edge-litert" in choose(model).reason
    monkeypatch.setattr(choice, "has_litert", lambda: True)
    write(model / "liver-int8.json", "b")
    assert choose(model).runtime == "savedmodel" and "other weights" in choose(model).reason
    assert choose(model, "tflite").weights is None
    (model / "liver-int8.tflite").unlink()
    assert choose(model).runtime == "savedmodel" and "no int8" in choose(model).reason
    assert choose(model, "tflite").path.name == "liver-float32.tflite"


def test_what_is_asked_for_runs_or_is_an_error(model, tmp_path):
    for runtime in ("keras", "savedmodel"):
        assert choose(model, runtime).runtime == runtime
    assert choose(model / "1").runtime == "savedmodel"  # a version was meant, not what lies beside it
    with pytest.raises(ModelError, match=r"no \.tflite"):
        choose(model / "1", "tflite")
    with pytest.raises(ConfigError, match="auto, keras"):
        choose(model, "onnx")
    for name, kind in (("x.tflite", "tflite"), ("x.keras", "keras"), ("run", "keras")):
        assert choose(tmp_path / name).runtime == choose(tmp_path / name, kind).runtime == kind
        with pytest.raises(ModelError, match=f"runs as {kind}"):
            choose(tmp_path / name, "savedmodel")


def test_a_gpu_that_is_hidden_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(choice, "_GPU", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert choice.has_gpu()
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert not choice.has_gpu()
    monkeypatch.setattr(choice, "_GPU", tmp_path / "none")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert not choice.has_gpu()


@pytest.mark.slow
def test_predict_loads_nothing_slow_with_the_shipped_model(tmp_path, write_nifti):
    pytest.importorskip("ai_edge_litert")
    hu = np.random.default_rng(0).integers(-100, 200, (40, 36, 3)).astype(np.int16)
    ct = write_nifti(tmp_path / "ct.nii", hu)
    code = (
        "import sys\nfrom liverseg_tf.cli.main import main\n"
        f"status = main(['predict', {str(ct)!r}, '-o', {str(tmp_path / 'mask.nii.gz')!r}])\n"
        "slow = 'tensorflow', 'keras', 'matplotlib', 'pydicom', 'scipy.spatial', 'ai_edge_litert.schema_py_generated'\n"
        "print(status, [m for m in slow if m in sys.modules])"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert (tmp_path / "mask.nii.gz").stat().st_size
