"""A volume is read while the one before it is predicted."""

import threading
from contextlib import ExitStack

import pytest

from liverseg_tf.errors import InputFileError
from liverseg_tf.inference import predict_files
from liverseg_tf.inference.jobs import Job, Reading


@pytest.fixture
def jobs(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.nii").write_bytes(b"small")
    return [Job(tmp_path / f"{name}.nii", tmp_path / f"{name}_seg.nii") for name in "ab"]


@pytest.fixture
def slow_reader(monkeypatch):
    """A prediction that goes on only once the volume that follows is being read."""
    asked = {}

    def read(predictor, job):
        asked.setdefault(job.name, threading.Event()).set()
        return Reading(None, InputFileError(job.name), [], 0.0, {}, ExitStack())

    def predict(predictor, job, *, reading=None, following="", **options):
        if following:
            assert asked.setdefault(following, threading.Event()).wait(10), f"{following} is not read meanwhile"
        return {"input": job.name, "was read": str(reading.error) if reading else None}

    monkeypatch.setattr(predict_files, "read_job", read)
    monkeypatch.setattr(predict_files, "predict_job", predict)


def test_in_this_process(slow_reader, jobs):
    rows = predict_files._in_this_process(None, {0: jobs[0], 1: jobs[1]}, {"following": "b.nii"})
    assert next(rows)[1] == {"input": "a.nii", "was read": "a.nii"}
    assert next(rows)[1] == {"input": "b.nii", "was read": "b.nii"}
