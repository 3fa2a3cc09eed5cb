"""Every key of JSON, CSV and manifests is described in docs/reference/files.md, and nothing there is out of date.

The keys of `train`, `explain`, `export`, `report`, `demo`, `send` and Ray are looked up by the tests that run these.
"""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest

import liverseg_tf as ls
import liverseg_tf.inference.predictor as predictor_module
from liverseg_tf.cli.main import main
from liverseg_tf.data.verify import Finding
from liverseg_tf.inference.benchmark import Measurement as RuntimeMeasurement
from tests.documented_fields import keys_of, stale, undocumented

pytestmark = pytest.mark.filterwarnings("ignore::liverseg_tf.errors.LiverSegWarning")

STATISTICS = "Statistics of a mask"


class Threshold:
    """A runtime without a network: bright is liver, brighter is tumour."""

    config = ls.ModelConfig(image_size=32, backbone="tiny")
    is_remote, slices_at_once = False, 1

    def labels(self, hu):
        return ((hu > 0).astype(np.uint8) + (hu > 150)).astype(np.uint8)

    def probabilities(self, hu):
        return np.eye(3, dtype=np.float32)[self.labels(hu)]


@pytest.fixture
def run(capsys):
    """Run a command; gives what it prints as JSON."""

    def command(*words):
        main([*map(str, words), "--json"])
        return json.loads(capsys.readouterr().out)

    return command


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a CT and of its mask: a liver of 300 ml with a tumour."""
    import nibabel as nib

    folder = tmp_path_factory.mktemp("fields")
    labels = np.zeros((40, 40, 16), np.uint8)
    labels[6:32, 6:32, 3:13] = 1
    labels[12:20, 12:20, 5:10] = 2
    hu = np.choose(labels, (-500, 100, 200)).astype(np.int16)
    for name, array in (("scans/volume-7", hu), ("masks/segmentation-7", labels)):
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir()
        nib.save(nib.Nifti1Image(array, np.diag([-3.0, -3.0, 5.0, 1.0])), path)
    return folder / "scans", folder / "masks"


def columns(path):
    with open(path, newline="") as file:
        return set(next(csv.reader(file)))


@pytest.mark.slow  # loads TensorFlow
def test_predict_and_summarize(run, folders, tmp_path, monkeypatch):
    from liverseg_tf.calibration.calibrate import fit
    from liverseg_tf.calibration.simulated_sites import draw_cases

    calibration, model, out = tmp_path / "c.json", tmp_path / "model.keras", tmp_path / "out"
    fit(draw_cases(np.random.default_rng(0), 60), with_ct=False).save(calibration)
    model.write_text("a model")
    monkeypatch.setattr(predictor_module, "open_runtime", lambda path: Threshold())
    options = ["--uncertainty", "--preview", "--calibration", calibration, "--no-postprocessing", "--model", model]
    printed = run("predict", folders[0], "-o", out, *options)
    assert printed["volumes"][0]["status"] == "done" and printed["volumes"][0]["calibrated"]["lesions"]

    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    failed = {"error"}
    manifest = "Manifest of `predict`"
    assert not undocumented(printed, manifest, STATISTICS)
    assert not undocumented(lines, manifest, STATISTICS, "Calibration of", "Exported models")
    elsewhere = {"series", "objects", "worker", "attempts"}  # DICOM and Ray
    assert not stale(keys_of(lines) | failed | elsewhere, manifest)
    assert not stale(keys_of(lines), STATISTICS)

    content = json.loads(calibration.read_text())
    assert not undocumented(content, "Calibration of") and not stale(keys_of(content), "Calibration of")

    summary = run("summarize", out, "-o", tmp_path / "page.html")
    assert not undocumented(summary, "Summary of") and not stale(keys_of(summary), "Summary of")
    assert not undocumented(columns(tmp_path / "page.csv"), "Summary of")


def test_measure(run, folders, tmp_path):
    scans, masks = folders
    found = run("measure", masks, scans)
    headings = "Measurements of", STATISTICS
    assert not undocumented(found, *headings) and not stale(keys_of(found), headings[0])
    run("measure", masks, scans, "-o", tmp_path / "m.csv")
    for name in ("m.csv", "m_lesions.csv"):
        assert not undocumented(columns(tmp_path / name), *headings)


def test_evaluate(run, folders, tmp_path):
    tables = {f"--csv{rows}": tmp_path / f"{rows}.csv" for rows in ("", "-slices", "-lesions")}
    options = [word for pair in tables.items() for word in pair]
    scores = run("evaluate", "--truth", folders[1], "--prediction", folders[1], "--resamples", 2, *options)
    heading = "Scores of"
    assert not undocumented(scores, heading) and not stale(keys_of(scores), heading)
    for path in tables.values():
        assert not undocumented(columns(path), heading)


def test_compare(run, folders, tmp_path):
    pytest.importorskip("SimpleITK", reason="needs the extra [compare]")
    mask = next(folders[1].iterdir())
    found = run("compare", mask, mask, "-o", tmp_path / "out", "--days", 0, 30)
    assert found["lesions"][0]["sightings"]
    heading = "Comparison of"
    assert not undocumented(found, heading) and not stale(keys_of(found), heading)
    assert not undocumented(json.loads((tmp_path / "out" / "comparison.json").read_text()), heading)
    for name in ("lesions.csv", "scans.csv"):
        assert not undocumented(columns(tmp_path / "out" / name), heading)


def test_verify_and_series(run, folders, tmp_path):
    pytest.importorskip("pydicom", reason="needs the extra [dicom]")
    heading = "Checks of"
    run("phantom", tmp_path / "dicom", "--cases", 1, "--shape", 64, 64, 12, "--format", "dicom")
    checked = run("verify", *folders, tmp_path / "dicom")
    findings = {field.name for field in dataclasses.fields(Finding)}  # there are none in some sound phantoms
    assert "kernel" in keys_of(checked) and not undocumented(keys_of(checked) | findings, heading)
    (tmp_path / "dicom" / "volume-0" / "part.dcm").write_bytes(b"\0" * 128 + b"DICM")
    listed = run("series", tmp_path / "dicom")
    assert listed["series"] and listed["broken"] and not undocumented(listed, heading)


@pytest.mark.slow  # loads TensorFlow
def test_find_lr_and_fetch(run, phantom_folder, tmp_path, monkeypatch):
    import liverseg_tf.data.dicom.web as web
    import liverseg_tf.training.find_learning_rate as range_test

    curve = range_test.LearningRateCurve([1e-4, 1e-3], [1.0, 0.5], 1e-3)
    monkeypatch.setattr(range_test, "find_learning_rate", lambda *args, **options: curve)
    printed = run("find-lr", phantom_folder, "-o", tmp_path)
    written = json.loads((tmp_path / "learning_rate.json").read_text())
    assert written["rates"] == curve.rates and not undocumented([printed, written], "A run folder")
    monkeypatch.setattr(web, "fetch_series", lambda *args: [tmp_path / "series"])
    fetched = run("fetch", "1.2.3", "--from", "https://host/dicom-web", "-o", tmp_path)
    assert fetched["folders"] and not undocumented(fetched, "Other commands")


@pytest.mark.slow
def test_other_commands(run, tmp_path):
    heading = "Other commands"
    assert not undocumented(run("info"), heading)
    made = run("phantom", tmp_path / "phantoms", "--cases", 3, "--seed", 5, "--shape", 64, 64, 12)
    assert any(case["tumours"] for case in made["cases"]) and not undocumented(made, heading)
    written = run("slices", tmp_path / "phantoms", "-o", tmp_path / "pictures", "--every-slice", 6)
    assert not undocumented(written, heading)
    assert not undocumented({field.name for field in dataclasses.fields(RuntimeMeasurement)}, heading)
