"""A volume is read while the one before it is predicted: in this process, and by Ray's workers."""

import pickle
import threading
from collections import Counter
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from liverseg_tf.errors import InputFileError
from liverseg_tf.inference import jobs as jobs_module
from liverseg_tf.inference import predict_files, ray_engine
from liverseg_tf.inference.jobs import AheadReader, Job, Reading
from liverseg_tf.inference.ray_engine import RayOptions


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

    for module in (predict_files, jobs_module):
        monkeypatch.setattr(module, "read_job", read)
    for module in (predict_files, ray_engine):
        monkeypatch.setattr(module, "predict_job", predict)


def test_in_this_process(slow_reader, jobs):
    rows = predict_files._in_this_process(None, {0: jobs[0], 1: jobs[1]}, {"following": "b.nii"})
    assert next(rows)[1] == {"input": "a.nii", "was read": "a.nii"}
    assert next(rows)[1] == {"input": "b.nii", "was read": "b.nii"}


def test_in_a_worker_of_ray(slow_reader, jobs, monkeypatch):
    monkeypatch.setattr(ray_engine.os, "chdir", lambda folder: None)
    for name in ("LIVERSEG_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        monkeypatch.setenv(name, "1")
    worker = ray_engine._Worker("", 1)
    try:
        assert worker.load(pickle.dumps(None)) is None
        row = worker.predict(jobs[0], {"following": "b.nii"}, jobs[1])
        assert (row["input"], row["was read"]) == ("a.nii", None)
        row = worker.predict(jobs[1], {})
        assert (row["input"], row["was read"]) == ("b.nii", "b.nii")
    finally:
        worker._always.close()  # a worker's process ends with it


def test_a_volume_that_is_not_wanted_any_more_is_given_up(jobs, monkeypatch):
    copies, read = [], threading.Event()

    def reading(predictor, job):
        stack = ExitStack()
        stack.callback(copies.append, job.name)  # where a temporary copy is deleted
        stack.callback(read.set)
        return Reading(None, InputFileError(job.name), [], 0.0, {}, stack)

    monkeypatch.setattr(jobs_module, "read_job", reading)
    ahead = AheadReader(None)
    ahead.start(jobs[0])
    assert ahead.take(jobs[1]) is None and read.wait(10)
    assert ahead.take(jobs[0]) is None and copies == ["a.nii"]
    ahead.start(jobs[1])
    assert str(ahead.take(jobs[1]).error) == "b.nii" and copies == ["a.nii"]
    monkeypatch.setattr(jobs_module, "_LARGEST_AHEAD_BYTES", 4)
    ahead.start(jobs[1])
    assert ahead.take(jobs[1]) is None  # too large to be read beside another one


class _RayError(Exception):
    pass


class _RayTaskError(_RayError):
    cause = None


class _GetTimeoutError(_RayError):
    pass


class _FakeRay:
    """Ray whose actors work when they are asked for the result; a volume named in `kills` kills who reads it."""

    exceptions = SimpleNamespace(RayError=_RayError, RayTaskError=_RayTaskError, GetTimeoutError=_GetTimeoutError)

    def __init__(self, kills=()):
        self.kills, self.calls, self._begun = set(kills), [], []

    def remote(self, kind):
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=self._actor))

    def _actor(self, *args):
        methods = {"load": lambda pickled: None, "predict": self._predict}
        return SimpleNamespace(
            **{
                name: SimpleNamespace(remote=lambda *args, f=f, called=self._called: called(f, args))
                for name, f in methods.items()
            }
        )

    def _called(self, function, args):
        if function == self._predict:
            self.calls.append((args[0].name, args[2] and args[2].name))
        self._begun.append(lambda: function(*args))
        return self._begun[-1]

    def _predict(self, job, options, following):
        if self.kills & {job.name, following and following.name}:
            raise _RayError("killed")
        return {"input": job.name, "status": "done"}

    def wait(self, calls, num_returns, timeout):
        first = min(calls, key=self._begun.index)
        return [first], [call for call in calls if call is not first]

    def get(self, call, timeout):
        return call()

    def kill(self, actor, no_restart):
        pass


def _run(ray, names, workers, **options):
    jobs = {number: Job(f"{name}.nii", f"{name}_seg.nii") for number, name in enumerate(names)}
    cohort = ray_engine._Cohort(ray, b"", jobs, {}, RayOptions(**options), 1, workers)
    rows = list(cohort.run())
    assert Counter(number for number, _ in rows) == Counter(range(len(names)))  # each once
    return {names[number]: row for number, row in rows}


def test_a_worker_is_told_what_follows():
    ray = _FakeRay()
    assert {row["status"] for row in _run(ray, "abcd", workers=1).values()} == {"done"}
    assert ray.calls == [("a.nii", "b.nii"), ("b.nii", "c.nii"), ("c.nii", "d.nii"), ("d.nii", None)]


def test_no_worker_waits_for_what_another_one_reads():
    ray = _FakeRay()
    _run(ray, "abc", workers=2)
    assert ray.calls[:2] == [("a.nii", "b.nii"), ("c.nii", None)]
    assert sorted(name for name, _ in ray.calls) == ["a.nii", "b.nii", "c.nii"]
    ray = _FakeRay()
    _run(ray, "ab", workers=2)
    assert ray.calls == [("a.nii", "b.nii"), ("b.nii", None)]


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_only_the_volume_that_kills_its_worker_gets_an_error(attempts, workers):
    names, killers = "abcdefgh", {"c", "d", "h"}
    ray = _FakeRay(f"{name}.nii" for name in killers)
    rows = _run(ray, names, workers, attempts=attempts)
    assert {name for name, row in rows.items() if row["status"] == "error"} == killers
    for name in killers:
        assert attempts <= rows[name]["attempts"] <= attempts + 1
        assert (f"{name}.nii", None) in ray.calls  # the last time alone
        assert sum(following == f"{name}.nii" for _, following in ray.calls) <= 1
    assert all(row.get("attempts", 1) <= 2 for name, row in rows.items() if name not in killers)
