"""Many files in one process: rows, the manifest, and a predictor that goes to another process."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
import warnings

import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.errors import ConfigError, DataWarning, OutputError
from liverseg_tf.inference.jobs import plan
from liverseg_tf.inference.predict_files import predict_files
from liverseg_tf.inference.run_manifest import RunManifest
from liverseg_tf.ownership import read_signed_line

pytestmark = pytest.mark.filterwarnings("ignore::liverseg_tf.errors.LiverSegWarning")


@pytest.fixture
def data(tmp_path, phantom_folder):
    folder = tmp_path / "data"
    folder.mkdir()
    for number in (1, 2, 3):
        shutil.copy(phantom_folder / f"volume-{number}.nii.gz", folder)
    return folder


def test_what_nobody_expected_ends_one_volume_and_not_the_run(small_predictor, data, tmp_path):
    def extra(_, prediction, path):
        if "segmentation-2" in path.name:
            raise ZeroDivisionError("of\ntwo lines")
        return {"more": path.name}

    seen = []
    rows = predict_files(small_predictor, plan([data], tmp_path / "out"), extra=extra, on_done=seen.append)
    assert [row["status"] for row in rows] == ["done", "error", "done"] and seen == rows
    assert rows[1]["error"].endswith("volume-2.nii.gz: failed unexpectedly (ZeroDivisionError: of two lines)")
    assert rows[0]["more"] == "segmentation-1.nii.gz" and all(row["seconds"] > 0 for row in rows)


def test_rows_are_in_the_manifest_as_soon_as_they_are_known(small_predictor, data, tmp_path):
    jobs, where = plan([data], tmp_path / "out"), tmp_path / "out" / "manifest.jsonl"
    with RunManifest(where, "small", {}) as manifest:
        manifest.write()

        def on_done(row):
            manifest.add(row)
            assert read_signed_line(where.read_text().splitlines()[-1], "manifest") == json.loads(json.dumps(row))

        rows = predict_files(small_predictor, jobs, on_done=on_done)
    lines = [read_signed_line(line, "manifest") for line in where.read_text().splitlines()]
    assert lines[0]["model"] == "small" and lines[1:] == json.loads(json.dumps(rows))

    # a volume that failed the second time is not done, whatever its first row says
    with RunManifest(where, "small", {}) as manifest:
        assert len(manifest.finished(jobs)) == 3
        manifest.add({"input": str(jobs[0].source), "output": None, "status": "error", "error": "x"})
        assert list(manifest.finished(jobs)) == [job.target for job in jobs[1:]]


def test_a_manifest_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(OutputError, match="manifest.jsonl: could not be written"):
        RunManifest(tmp_path / "missing" / "manifest.jsonl", "small", {}).add({"input": "x"})


@pytest.mark.slow
def test_a_predictor_goes_to_another_process_by_its_models_path(small_predictor, small_model, phantom_folder):
    again = pickle.loads(pickle.dumps(small_predictor))
    assert again.config == small_predictor.config and again.postprocessing == small_predictor.postprocessing
    path = phantom_folder / "volume-0.nii.gz"
    np.testing.assert_array_equal(again.predict(path).labels, small_predictor.predict(path).labels)
    with pytest.raises(ConfigError, match="made from a model's path"):
        pickle.dumps(ls.Predictor(small_model))


def test_file_urls_are_paths(data, tmp_path):
    jobs = plan([f"file://{data}"], f"file://{tmp_path}/out")
    assert jobs == plan([data], tmp_path / "out")


def test_a_volume_is_read_while_the_one_before_is_predicted(tmp_path, write_nifti, monkeypatch):
    """Warnings stay with the volume that they are about, whoever reads it when."""

    class Waiting:
        config, is_remote, slices_at_once = ls.ModelConfig(image_size=32), False, 1

        def labels(self, hu):
            if not hu.any():  # the first volume: it ends only if the second one is being read
                assert second_is_read.wait(20)
            return np.zeros(hu.shape, np.uint8)

        probabilities = labels

    second_is_read, read = threading.Event(), ls.Predictor.read

    def slow(self, source, *args, **options):
        if "volume-2" in str(source):
            second_is_read.set()
            warnings.warn("about the second", DataWarning, 2)
        return read(self, source, *args, **options)

    monkeypatch.setattr(ls.Predictor, "read", slow)
    for number in (1, 2, 3):
        write_nifti(tmp_path / "ct" / f"volume-{number}.nii", np.full((40, 36, 2), 1 - number, np.int16))
    (tmp_path / "ct" / "volume-3.nii").write_bytes(b"no volume")
    rows = predict_files(ls.Predictor(Waiting(), postprocessing=None), plan([tmp_path / "ct"], tmp_path / "out"))
    assert [row["status"] for row in rows] == ["done", "done", "error"]
    assert ["about the second" in row["warnings"] for row in rows] == [False, True, False]
    assert "volume-3" in rows[2]["error"]
