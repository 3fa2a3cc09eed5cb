"""`liverseg demo`, all of it, with a small network, fewer patients and fewer steps."""

from __future__ import annotations

import json
from functools import partial

import pytest

from liverseg_tf.cli import demo
from liverseg_tf.cli.main import main
from liverseg_tf.data import phantom
from tests.documented_fields import undocumented


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::liverseg_tf.errors.LiverSegWarning")
def test_every_option_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "_TRAINING_CASES", 2)
    monkeypatch.setattr(demo, "_TEST_CASES", 1)
    monkeypatch.setattr(demo, "_STEPS", 2)
    monkeypatch.setattr(demo, "_IMAGE_SIZE", 32)
    monkeypatch.setattr(phantom, "write_phantoms", partial(phantom.write_phantoms, shape=(64, 64, 8)))
    monkeypatch.setattr(demo, "_BACKBONE", "tiny")
    output = tmp_path / "demo"
    options = ["--seed", "1", "--epochs", "1", "--explain", "--report", "--export", "--json"]
    assert main(["demo", "-o", str(output), *options]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert 0 <= summary["liver_dice_per_case"] <= 1 and not undocumented(summary, "Other commands")
    made = {name: [p for p in output.rglob("*") if p.match(name)] for name in ("*.tflite", "saved_model.pb")}
    assert {name: len(found) for name, found in made.items()} == {"*.tflite": 1, "saved_model.pb": 1}
    for path in summary["paths"].values():
        assert (output / path).exists(), path
    assert list((output / "pictures").glob("*.png")) and list((output / "prediction").glob("*.nii.gz"))
    assert main(["demo", "-o", str(output)]) == 1  # never into a folder with files
    assert "expected no folder or an empty one" in capsys.readouterr().err
