"""`predict_folder` in Python: rows, the manifest, uncertainty and resuming; the command's own tests cover the rest."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import liverseg_tf as ls
import liverseg_tf.inference.predictor as predictor_module
from liverseg_tf.errors import ConfigError, DataWarning, OutputError
from liverseg_tf.ownership import is_ours, read_signed_line

pytestmark = pytest.mark.filterwarnings("ignore::liverseg_tf.errors.LiverSegWarning")


class Threshold:
    """A runtime without a network: bright is liver, brighter is tumour."""

    config = ls.ModelConfig(image_size=32, backbone="resnet18")
    is_remote, slices_at_once = False, 1

    def labels(self, hu):
        return ((hu > 0).astype(np.uint8) + (hu > 100)).astype(np.uint8)

    def probabilities(self, hu):
        return np.eye(3, dtype=np.float32)[self.labels(hu)]


@pytest.fixture
def model(monkeypatch, tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("weights")
    monkeypatch.setattr(predictor_module, "open_runtime", lambda given: Threshold() if given == path else given)
    return path


@pytest.fixture
def hu():
    return np.random.default_rng(0).normal(0, 100, (16, 14, 3)).astype(np.int16)


@pytest.fixture
def scans(tmp_path, write_nifti, hu):
    for number in (1, 2):
        write_nifti(tmp_path / "ct" / f"volume-{number}.nii.gz", hu + number)
    return tmp_path / "ct"


def lines_of(folder) -> list[dict]:
    return [read_signed_line(line, "manifest") for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_rows_manifest_and_uncertainty(model, scans, tmp_path):
    started, slices, seen = [], [], []
    rows = ls.predict_folder(
        scans,
        tmp_path / "out",
        model,
        uncertainty=True,
        probabilities=True,
        on_start=lambda *counts: started.append(counts),
        progress=lambda job, done, total: slices.append((job.name, done, total)),
        on_done=lambda row: seen.append((row, lines_of(tmp_path / "out")[-1])),
        postprocessing=None,
    )
    assert started == [(2, 0)] and slices[-1] == ("volume-2.nii.gz", 3, 3)
    assert [row["status"] for row in rows] == ["done", "done"]
    assert [(row, json.loads(json.dumps(row))) for row in rows] == seen  # in the manifest before it is told
    first, *rest = lines_of(tmp_path / "out")
    assert rest == json.loads(json.dumps(rows))
    assert first["model"] == str(model) and len(first["model_sha256"]) == 64
    assert first["settings"]["postprocessing"] is False and first["settings"]["uncertainty"] is True
    names = {path.name for path in (tmp_path / "out").iterdir()}
    mask = "segmentation-1"
    assert names >= {f"{mask}{end}.nii.gz" for end in ("", "_liver", "_tumour", "_uncertainty")}
    low, high = rows[0]["uncertainty"]["liver_range_ml"]
    assert 0 < low < high and is_ours(rows[0]["uncertainty"]["entropy"], "uncertainty")


def test_what_is_done_is_not_done_again_unless_something_changed(model, scans, tmp_path, write_nifti, hu):
    def run(**options):
        told = []
        options = {"postprocessing": None, "resume": True} | options
        rows = ls.predict_folder([scans], tmp_path / "out", model, on_start=lambda *n: told.append(n), **options)
        return told[0], json.loads(json.dumps(rows))  # as the manifest has them

    (counts, first) = run(resume=False)
    assert counts == (2, 0)
    assert run() == ((2, 2), first)
    write_nifti(scans / "volume-3.nii.gz", hu)
    counts, rows = run()
    assert counts == (3, 2) and rows[:2] == first and rows[2]["status"] == "done"
    for options in (
        {"postprocessing": ls.PostProcessing()},
        {"postprocessing": ls.PostProcessing(smallest_lesion_ml=0)},
        {"variations": 3},
        {"variations": ls.TestTimeAugmentation(count=3, hu_shift=1)},
        {"probabilities": True},
    ):
        assert run(**options)[0] == (3, 0)
        assert run(**options)[0] == (3, 3)
    model.write_text("other weights")
    assert run(**options)[0] == (3, 0)


def test_one_file_has_no_manifest(model, scans, tmp_path):
    (row,) = ls.predict_folder(scans / "volume-1.nii.gz", tmp_path / "mask.nii.gz", model, postprocessing=None)
    assert row["output"] == str(tmp_path / "mask.nii.gz") and is_ours(tmp_path / "mask.nii.gz", "mask")
    assert {path.name for path in tmp_path.iterdir()} == {"ct", "mask.nii.gz", "model.keras"}


def test_wrong_requests_leave_everything_as_it_was(model, scans, tmp_path):
    out = tmp_path / "out"
    ls.predict_folder(scans, out, model)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    predictor = ls.Predictor(model)
    for wrong, message, options in (
        (predictor, "batch_size: expected with a model's path", {"batch_size": 2}),
        (predictor, "engine: expected one of embedded, ray", {"engine": "spark"}),
        (predictor, "workers: only for engine='ray'", {"ray_options": {"workers": 2}}),
        (predictor, "workers: expected at least 1", {"engine": "ray", "ray_options": {"workers": 0}}),
        (predictor, "format: expected some of nifti, seg", {"formats": ["nifti", "jpeg"]}),
        (predictor, "segmentation_type: expected BINARY or LABELMAP", {"segmentation_type": "FRACTIONAL"}),
        (Threshold(), "resume=True: expected a model that can be identified", {"resume": True}),
    ):
        with pytest.raises(ConfigError, match=message):
            ls.predict_folder(scans, out, wrong, **options)
    (scans / "volume-1_seg_liver.nii.gz").hardlink_to(scans / "volume-1.nii.gz")
    with pytest.raises(OutputError, match="never written over"):
        ls.predict_folder(scans / "volume-1.nii.gz", scans / "volume-1_seg.nii.gz", model, probabilities=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_another_organs_mask_is_no_dicom_object_also_where_the_name_asks_for_one(scans, tmp_path):
    kidneys = Threshold()
    kidneys.config = replace(Threshold.config, class_names=("background", "kidney", "kidney_tumour"))
    with pytest.raises(ConfigError, match="expected nifti alone for kidney, kidney_tumour. Received: seg"):
        ls.predict_folder(scans / "volume-1.nii.gz", tmp_path / "mask.dcm", kidneys)
    (row,) = ls.predict_folder(scans / "volume-1.nii.gz", tmp_path / "mask.nii.gz", kidneys)
    assert row["status"] == "done" and "kidney_volume_ml" in row["statistics"]


def test_a_servers_model_goes_by_its_url_without_the_password(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(ls.ServingClient, "config", replace(Threshold.config))
    monkeypatch.setattr(ls.ServingClient, "labels", lambda self, hu: Threshold().labels(hu))
    told = []
    for where in ("me:secret@host", "host", "other"):
        client = ls.ServingClient(f"http://{where}:8501/liver")
        ls.predict_folder(
            scans, tmp_path / "out", client, resume=True, on_start=lambda *n: told.append(n), postprocessing=None
        )
        text = (tmp_path / "out" / "manifest.jsonl").read_text()
        assert "secret" not in text and lines_of(tmp_path / "out")[0]["model"].endswith(
            f"{where.split('@')[-1]}:8501/liver"
        )
    assert told == [(2, 0), (2, 2), (2, 0)]


def test_intervals_come_with_a_calibration_alone_and_another_model_is_told(model, scans, tmp_path):
    from liverseg_tf.calibration.calibrate import fit
    from liverseg_tf.calibration.simulated_sites import draw_cases

    plain = ls.predict_folder(scans, tmp_path / "plain", model, postprocessing=None)
    assert not any("calibrated" in row for row in plain)
    file = tmp_path / "calibration.json"
    fit(draw_cases(np.random.default_rng(0), 20), with_ct=False, model_sha256="ab" * 32).save(file)
    with pytest.warns(DataWarning, match="promise nothing"):
        rows = ls.predict_folder(scans, tmp_path / "out", model, calibration=file, postprocessing=None)
    found = rows[0]["calibrated"]
    low, high = found["liver_interval_ml"]
    assert low < rows[0]["statistics"]["liver_volume_ml"] * 1.02 < high and found["cases"] == 20
    assert lines_of(tmp_path / "out")[1]["calibrated"] == found
