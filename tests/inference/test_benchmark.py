"""What is measured of each runtime, and told."""

import json

import pytest

from liverseg_tf.cli.main import main
from liverseg_tf.errors import LiverSegError
from liverseg_tf.inference import benchmark as module
from liverseg_tf.inference.benchmark import benchmark


@pytest.fixture
def ran(monkeypatch):
    """Instead of minutes of predictions, what would be run."""
    words = []

    def run(*given):
        words.append(given)
        return ("12.5" if "predict" not in given else ""), 3.0, 400.0

    monkeypatch.setattr(module, "_run", run)
    return words


def test_every_runtime_of_the_shipped_model_is_measured(ran, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert main(["benchmark", str(tmp_path / "ct.nii"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["runtimes"]
    assert [row["runtime"] for row in rows] == ["tflite", "keras", "savedmodel"]
    assert [row["is_default"] for row in rows] == [True, False, False]
    assert {row["milliseconds_a_slice"] for row in rows} == {12.5} and {row["peak_memory_mb"] for row in rows} == {400}
    commands = [words for words in ran if "predict" in words]
    assert [words[words.index("--runtime") + 1] for words in commands] == ["tflite", "keras", "savedmodel"]
    assert all(words[-1] == str(tmp_path / "ct.nii") for words in ran)
    assert main(["benchmark", str(tmp_path / "ct.nii")]) == 0
    assert "tflite (default)" in capsys.readouterr().out


def test_a_model_of_one_kind_is_measured_as_it(ran, tmp_path):
    assert [one.runtime for one in benchmark(tmp_path / "ct.nii", tmp_path / "model.keras")] == ["keras"]


def test_processes_tell_seconds_memory_and_failures():
    out, seconds, memory_mb = module._run("-c", "import time; x = b'1' * 60_000_000; time.sleep(0.2); print(len(x))")
    assert out.strip() == "60000000" and 0.2 < seconds < 60
    assert memory_mb is None or 60 < memory_mb < 200
    with pytest.raises(LiverSegError, match="no such scan"):
        module._run("-c", "import sys; sys.exit('no such scan')")
