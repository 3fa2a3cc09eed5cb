"""`liverseg explain`."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from liverseg_tf.cli.main import main
from liverseg_tf.explanation.explain import CAN_SHOW, explain
from tests.documented_fields import keys_of, stale, undocumented

pytestmark = pytest.mark.slow


def test_a_lesion_and_a_point(capsys, tmp_path, phantom_folder, open_model_file):
    ct, mask = next(
        (v, m)
        for v, m in zip(sorted(phantom_folder.glob("v*")), sorted(phantom_folder.glob("s*")), strict=True)
        if (np.asarray(nib.load(m).dataobj) == 2).any()
    )
    arguments = ["explain", str(ct), "--model", str(open_model_file), "--json"]
    assert main([*arguments, "-o", str(tmp_path / "a"), "--mask", str(mask), "--lesion", "1", "--no-tests"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [r["region"] for r in found["regions"]] == ["lesion-1"]
    assert found["settings"]["layer"] is None and found["regions"][0]["deletion_insertion"] is None
    image = nib.load(tmp_path / "a" / "lesion-1_heatmap.nii.gz")
    assert image.shape == nib.load(ct).shape and np.allclose(image.affine, nib.load(ct).affine)

    x, y, z = (n // 2 for n in image.shape)
    arguments += [
        "-o",
        str(tmp_path / "b"),
        "--point",
        f"{x},{y},{z}",
        "--radius",
        "20",
        "--method",
        "hirescam",
        "--layer",
        "decoder3",
    ]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["layer"] == "decoder_stage3b_relu"
    assert found["regions"][0]["region"] == "point" and found["regions"][0]["verdict"] in ("supported", "not supported")
    assert (tmp_path / "b" / "point.png").exists()
    stored = json.loads((tmp_path / "b" / "explanation.json").read_text())
    assert stored["regions"] == found["regions"]
    assert not undocumented(stored, "Explanations of") and not stale(keys_of(stored), "Explanations of")


def test_wrong_use(capsys, tmp_path, phantom_folder, open_model_file):
    ct = str(next(phantom_folder.glob("volume*")))
    base = ["explain", ct, "-o", str(tmp_path / "x"), "--model", str(open_model_file)]
    assert main([*base, "--point", "1,2"]) == 2
    assert main([*base, "--lesion", "1", "--point", "1,2,3"]) == 2
    assert main([*base, "--point", "9999,0,0"]) == 1
    assert "expected a voxel (x, y, z)" in capsys.readouterr().err
    assert main([*base, "--method", "gradcam", "--layer", "nonsense"]) == 1
    assert not (tmp_path / "x").exists()


def test_the_text_is_the_verdict_of_the_figures(capsys, tmp_path, phantom_folder, open_model_file, monkeypatch):
    from liverseg_tf.explanation import explain as module

    made = []
    monkeypatch.setattr(module, "explain", lambda *a, **k: made.append(explain(*a, **k)) or made[0])
    ct = str(next(phantom_folder.glob("volume*")))
    options = ["--model", str(open_model_file), "--point", "20,20,10", "--no-tests", "--all-slices"]
    assert main(["explain", ct, "-o", str(tmp_path), *options]) == 0
    shown = capsys.readouterr().out
    assert f"point.png  {made[0].regions[0].words}\n" in shown and "not tested" in shown
    assert CAN_SHOW in shown
