"""Prediction of many files by Ray's workers, on this machine or a cluster; each worker holds the model."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from liverseg_tf.errors import ConfigError, LiverSegError, ServerError, first_line, require
from liverseg_tf.inference.jobs import AheadReader, Job, predict_job
from liverseg_tf.inference.predictor import Predictor
from liverseg_tf.inference.run_manifest import manifest_row
from liverseg_tf.inference.thread_warnings import routed_warnings
from liverseg_tf.ownership import is_url

# How long to wait for a first worker while a cluster starts its nodes.
_START_SECONDS = 600.0
_CONNECT_SECONDS = 10.0
# Only rows go through Ray's shared memory; this is the smallest size that Ray accepts.
_OBJECT_STORE_BYTES = 80 * 1024**2
_THREADS = 2


@dataclass(frozen=True)
class RayOptions:
    """Options of the Ray engine.

    Attributes:
        address: a cluster's address as `ray.init` takes it: `auto`, `host:6379`, `ray://host:10001`. By default Ray is
            started on this machine and stopped at the end.
        workers: processes that each hold the model, one volume and the next one; by default as many as the CPUs allow.
        threads: CPU threads of a worker, and the CPUs that it reserves; by default 2, or fewer if `workers` leave fewer
            on this machine.
        gpus: number of GPUs for each worker.
        attempts: how often a volume is tried if its worker or node dies.
        timeout_s: seconds after which a worker that hasn't finished its volume is replaced.
    """

    address: str | None = None
    workers: int | None = None
    threads: int | None = None
    gpus: int = 0
    attempts: int = 3
    timeout_s: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "attempts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: expected at least 1. Received: {value}")
        if self.gpus < 0 or self.timeout_s <= 0:
            raise ConfigError(
                f"expected gpus of at least 0 and timeout_s above 0. Received: {self.gpus}, {self.timeout_s}"
            )


def predict_on_ray(
    predictor: Predictor, jobs: Mapping[int, Job], options: Mapping[str, Any], ray_options: RayOptions
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Predict volumes with Ray and yield a row for each as it is done.

    A worker has one volume at a time, and gets the next one when it has reported the last; it is told which one that
    will be, and reads it meanwhile. If the worker or its node dies, or it takes too long, a new worker replaces it and
    the volume is tried again after those that still wait. If a second volume was being read, either may be to blame:
    both are then tried alone. A volume whose worker dies `attempts` times, the last time alone, gives an error row.
    Only this process keeps account of the volumes, so that a failure elsewhere can neither lose one nor report it
    twice.

    Args:
        predictor: made from a model's path that all nodes can read.
        jobs: jobs by number; local paths must be valid on all nodes.
        options: for `predict_job`.
        ray_options: `RayOptions`.

    Yields:
        A job's number and its row, with `worker` (host and process), and `attempts` if there were several.

    Raises:
        MissingDependencyError: if Ray is missing.
        ServerError: if the cluster can't be reached.
        ConfigError: if the predictor has no path, or a URL refers to this process's memory.
        LiverSegError: if no worker can be started.
    """
    ray = require("ray", "ray", "engine='ray'")
    if not jobs:
        return
    for where in (where for job in jobs.values() for where in (job.source, job.target)):
        if is_url(where) and where.startswith("memory://"):
            raise ConfigError(f"{where}: is in this process's memory, which Ray's workers can't reach; use another URL")
    pickled = pickle.dumps(predictor)
    with _connected(ray, ray_options) as (threads, workers):
        yield from _Cohort(ray, pickled, jobs, options, ray_options, threads, min(workers, len(jobs))).run()


class _Worker:
    """A process that holds a model: a Ray actor, replaced by a new one when it dies."""

    def __init__(self, folder: str, threads: int):
        with contextlib.suppress(OSError):
            os.chdir(folder)  # so that relative paths mean the same as in the calling process
        # TensorFlow's own variables: importing it takes seconds, and a model for LiteRT needs none of it
        for name in ("LIVERSEG_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
            os.environ[name] = str(threads)
        self.name = f"{socket.gethostname()}:{os.getpid()}"

    def load(self, pickled: bytes) -> str | None:
        """Load the model; returns an error message or None."""
        try:
            self.predictor = pickle.loads(pickled)
        except LiverSegError as error:
            return f"{self.name}: {error}"
        self._always = contextlib.ExitStack()  # a volume is also read between two calls
        self._always.enter_context(routed_warnings())
        self._ahead = AheadReader(self.predictor)
        return None

    def predict(self, job: Job, options: Mapping[str, Any], following: Job | None = None) -> dict[str, Any]:
        """Predict a volume, and read the following one meanwhile."""
        reading = self._ahead.take(job)
        if following is not None:
            self._ahead.start(following)
        return {**predict_job(self.predictor, job, reading=reading, **options), "worker": self.name}


@dataclass
class _Slot:
    """A worker's slot. Its first call loads the model; later calls predict volume `index` and read `following`."""

    actor: Any
    call: Any
    began: float
    index: int | None = None
    following: int | None = None
    ready: bool = False


class _Cohort:
    """State of the run in this process: the waiting volumes, and each worker's volume."""

    def __init__(self, ray, pickled, jobs, options, ray_options: RayOptions, threads: int, workers: int):
        self.ray, self.pickled, self.jobs, self.options, self.ray_options = (
            ray,
            pickled,
            jobs,
            dict(options),
            ray_options,
        )
        # Ray itself restarts and repeats nothing, so that this process alone tracks the volumes
        self.worker_class = ray.remote(_Worker).options(
            num_cpus=threads,
            num_gpus=ray_options.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        self.threads = threads
        self.waiting = deque(jobs)
        self.crashes: Counter[int] = Counter()
        self.alone: set[int] = set()  # volumes that may have killed a worker: no other is read beside them
        self.failed_starts = 0
        self.slots = [self._new_slot() for _ in range(workers)]

    def run(self) -> Iterator[tuple[int, dict[str, Any]]]:
        left = len(self.jobs)
        progressed = time.monotonic()
        try:
            while left:
                self._hand_out()
                calls = {slot.call: slot for slot in self.slots if slot.call is not None}
                done, _ = self.ray.wait(list(calls), num_returns=1, timeout=1.0)
                for slot in [calls[call] for call in done] or self._overdue():
                    if (result := self._end_of(slot)) is not None:
                        left -= 1
                        yield result
                if any(slot.ready for slot in self.slots):
                    progressed = time.monotonic()
                elif time.monotonic() - progressed > _START_SECONDS:
                    raise self._cannot_start(f"none was ready within {_START_SECONDS:.0f} s")
        finally:
            for slot in self.slots:
                self._kill(slot)

    def _new_slot(self) -> _Slot:
        actor = self.worker_class.remote(os.getcwd(), self.threads)
        return _Slot(actor, actor.load.remote(self.pickled), time.monotonic())

    def _hand_out(self) -> None:
        for slot in self.slots:
            if slot.ready and slot.call is None and self.waiting:
                slot.index = self._next_for(slot)
                self.waiting.remove(slot.index)
                slot.following = self._following(slot)
                following = None if slot.following is None else self.jobs[slot.following]
                slot.call = slot.actor.predict.remote(self.jobs[slot.index], self.options, following)
                slot.began = time.monotonic()

    def _next_for(self, slot: _Slot) -> int:
        """The volume that the worker has read, else one that no other worker reads, else any: no worker is to wait."""
        if slot.following is not None and slot.following in self.waiting:
            return slot.following
        return next((index for index in self.waiting if index not in self._read_by_others(slot)), self.waiting[0])

    def _following(self, slot: _Slot) -> int | None:
        """The volume to read meanwhile. It goes on waiting, so that it is not lost with the worker."""
        if slot.index in self.alone:
            return None
        taken = self._read_by_others(slot) | self.alone
        return next((index for index in self.waiting if index not in taken), None)

    def _read_by_others(self, slot: _Slot) -> set[int | None]:
        return {other.following for other in self.slots if other is not slot}

    def _overdue(self) -> list[_Slot]:
        limit = time.monotonic() - self.ray_options.timeout_s
        return [slot for slot in self.slots if slot.index is not None and slot.began < limit]

    def _end_of(self, slot: _Slot) -> tuple[int, dict[str, Any]] | None:
        """Take a call's result; returns a row if it ends a volume."""
        index = slot.index
        try:
            answer = self.ray.get(slot.call, timeout=0)
        except self.ray.exceptions.RayTaskError as error:
            answer = f"failed unexpectedly ({type(error.cause or error).__name__}: {first_line(error.cause or error)})"
        except self.ray.exceptions.GetTimeoutError:
            return self._lost(slot, f"took more than {self.ray_options.timeout_s:g} s")
        except self.ray.exceptions.RayError as error:
            return self._lost(slot, _reason(error), beside=slot.following)
        slot.call, slot.index = None, None
        if index is None:
            if answer is not None:
                raise self._cannot_start(answer)
            slot.ready, self.failed_starts = True, 0
            return None
        row = answer if isinstance(answer, dict) else self._error_row(index, answer)
        if self.crashes[index]:
            row["attempts"] = self.crashes[index] + 1
        return index, row

    def _lost(self, slot: _Slot, reason: str, beside: int | None = None) -> tuple[int, dict[str, Any]] | None:
        """Replace a lost worker; its volume is queued again, or gets an error row.

        Args:
            beside: a volume that was read meanwhile, and may be to blame instead.
        """
        self._kill(slot)
        index = slot.index
        if index is None:
            self.failed_starts += 1
            if self.failed_starts >= 3 + len(self.slots):
                raise self._cannot_start(reason)
        self.slots[self.slots.index(slot)] = self._new_slot()
        if index is None:
            return None
        self.crashes[index] += 1
        if beside is not None:
            self.alone |= {index, beside}
        if beside is not None or self.crashes[index] < self.ray_options.attempts:
            self.waiting.append(index)
            return None
        times = f"{self.crashes[index]} times" if self.crashes[index] > 1 else "once"
        return index, {
            **self._error_row(index, f"crashed the worker {times} ({reason})"),
            "attempts": self.crashes[index],
        }

    def _error_row(self, index: int, text: str) -> dict[str, Any]:
        source = self.jobs[index].source
        return {**manifest_row(source, None, None, f"{source}: {text}"), "warnings": []}

    def _cannot_start(self, reason: str) -> LiverSegError:
        return LiverSegError(
            f"Ray can't start a worker with {self.threads} CPUs and {self.ray_options.gpus} GPUs ({reason}); the "
            f"cluster has {_resources(self.ray)}: every node needs this package, and the model at the same path"
        )

    def _kill(self, slot: _Slot) -> None:
        with contextlib.suppress(Exception):  # the worker or Ray may be dead
            self.ray.kill(slot.actor, no_restart=True)


@contextlib.contextmanager
def _connected(ray, options: RayOptions) -> Iterator[tuple[int, int]]:
    """Connect to Ray for one run; gives the threads of a worker and the number of workers."""
    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics leave the hospital
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if options.address is None:
                cpus = max(os.cpu_count() or 1, (options.workers or 1) * (options.threads or 1))
                store = _OBJECT_STORE_BYTES
                # "local": never the cluster that someone else has running here
                ray.init("local", num_cpus=cpus, include_dashboard=False, object_store_memory=store, **quiet)
            else:
                _check_reachable(options.address)
                ray.init(address=options.address, **quiet)
        except (ConnectionError, RuntimeError, OSError, ValueError) as error:
            raise ServerError(
                f"Ray could not be started at {options.address or 'this machine'} ({type(error).__name__}: "
                f"{first_line(error)}); check the address, or start a cluster with: ray start --head"
            ) from error
    try:
        cpus = int(ray.cluster_resources().get("CPU", 0))
        threads = options.threads or max(1, min(_THREADS, cpus // (options.workers or 1)))
        yield threads, options.workers or max(1, cpus // threads)
    finally:
        if ours:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Fail within seconds if nothing listens there; Ray itself would try for minutes.

    Raises:
        OSError: if nothing listens at host:port.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()


def _resources(ray) -> str:
    found = ray.cluster_resources()
    return f"{found.get('CPU', 0):g} CPUs and {found.get('GPU', 0):g} GPUs on {len(ray.nodes())} nodes"


def _reason(error: Exception) -> str:
    """Ray's reason for a worker's death, without the stack trace."""
    text = " ".join(str(error).split())
    for start in ("Worker exit detail: ", "The actor is dead because ", "creation task"):
        if start in text:
            text = text.split(start, 1)[1]
            break
    return text.split(" Some common causes", 1)[0].rstrip(" .")[:200]
