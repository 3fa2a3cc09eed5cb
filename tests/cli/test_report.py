"""`liverseg report`, and uncertainty in `liverseg predict`."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from liverseg_tf.cli.main import main
from tests.documented_fields import undocumented

pytestmark = pytest.mark.slow


def test_a_page_with_truth(capsys, tmp_path, phantom_folder, open_model_file):
    page = tmp_path / "new" / "page.html"
    ct, mask = (str(phantom_folder / f"{name}-0.nii.gz") for name in ("volume", "segmentation"))
    arguments = ["report", ct, "-o", str(page), "--model", str(open_model_file), "--truth", mask, "--no-heatmaps"]
    assert main([*arguments, "--title", "Case 0", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"page": str(page), "bytes": page.stat().st_size}
    assert not undocumented(printed, "Other commands")
    text = page.read_text("utf-8")
    assert "<h1>Case 0</h1>" in text and "Against the reference" in text and "volume-0" not in text
    page.write_text("mine")
    assert main(arguments) == 1
    assert "was changed since this library made it" in capsys.readouterr().err and page.read_text() == "mine"


def test_predict_with_uncertainty(capsys, tmp_path, phantom_folder, open_model_file):
    ct = phantom_folder / "volume-1.nii.gz"
    arguments = ["predict", str(ct), "-o", str(tmp_path / "out"), "--model", str(open_model_file), "--uncertainty"]
    assert main([*arguments, "--statistics"]) == 0
    shown = capsys.readouterr().out
    assert "test-time augmentation: liver" in shown and "not a confidence interval" in shown
    _, row = map(json.loads, (tmp_path / "out" / "manifest.jsonl").read_text().splitlines())
    entropy = nib.load(tmp_path / "out" / "segmentation-1_uncertainty.nii.gz")
    assert row["uncertainty"]["entropy"].endswith("segmentation-1_uncertainty.nii.gz")
    assert entropy.shape == nib.load(ct).shape and np.asarray(entropy.dataobj).max() <= 1 + 1e-6
    volumes = row["uncertainty"]["liver_volumes_ml"]
    assert row["uncertainty"]["liver_range_ml"] == [min(volumes), max(volumes)] and len(volumes) == 8
    # a file of somebody else is noticed before anything is predicted
    (tmp_path / "x_uncertainty.nii.gz").write_bytes(b"mine")
    arguments[3] = str(tmp_path / "x.nii.gz")
    assert main(arguments) == 1
    assert "was not made by this library" in capsys.readouterr().err and not (tmp_path / "x.nii.gz").exists()
    # masks and their companions are no CTs
    assert main(["predict", str(tmp_path / "out"), "-o", str(tmp_path / "again"), "--model", str(open_model_file)]) == 1
    assert "the folder holds none" in capsys.readouterr().err


def test_predict_with_variations(capsys, tmp_path, phantom_folder, open_model_file):
    arguments = ["predict", str(phantom_folder / "volume-1.nii.gz"), "--model", str(open_model_file)]
    arguments += ["--no-postprocessing", "-o"]
    masks = []
    for name, more in (("plain", []), ("varied", ["--variations", "3"])):
        assert main([*arguments, str(tmp_path / name), *more]) == 0
        masks.append(np.asarray(nib.load(tmp_path / name / "segmentation-1.nii.gz").dataobj))
    first = json.loads((tmp_path / "varied" / "manifest.jsonl").read_text().splitlines()[0])
    assert first["settings"]["variations"] == 3
    assert 0.5 < np.mean(masks[0] == masks[1]) < 1
    assert main([*arguments, str(tmp_path / "few"), "--variations", "2"]) == 1
    assert "at least 3" in capsys.readouterr().err and not (tmp_path / "few").exists()
