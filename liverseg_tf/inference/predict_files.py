"""Prediction of many files, in this process or by Ray's workers on many machines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from liverseg_tf.errors import ConfigError
from liverseg_tf.inference.choice import ENGINES
from liverseg_tf.inference.jobs import Job, may_be_read_ahead, predict_job, read_job
from liverseg_tf.inference.predictor import Prediction, Predictor
from liverseg_tf.inference.ray_engine import RayOptions, predict_on_ray
from liverseg_tf.inference.segment import read_ahead
from liverseg_tf.inference.thread_warnings import routed_warnings


def predict_files(
    predictor: Predictor,
    jobs: Iterable[Job],
    *,
    probabilities: bool = False,
    overwrite: bool = False,
    finished: Mapping[str | Path, dict[str, Any]] | None = None,
    extra: Callable[[Predictor, Prediction, Path], dict[str, Any]] | None = None,
    progress: Callable[[Job, int, int], None] | None = None,
    on_done: Callable[[dict[str, Any]], None] | None = None,
    engine: str = ENGINES[0],
    **ray_options: Any,
) -> list[dict[str, Any]]:
    """Predict volumes one after another; a volume that fails gives an error row, and the others continue.

    Args:
        finished: rows by output of volumes that need not be predicted again; see `RunManifest.finished`.
        extra: called with the predictor, each prediction and its mask's path in a hidden folder. Files that it writes
            to that folder are moved into place with the mask; what it returns is added to the row. With Ray it must be
            picklable.
        progress: called with the job, the number of slices done and their total; not with Ray.
        on_done: called with each new row when it is complete, always in this process.
        engine: `embedded`, in this process; or `ray`, by workers on this machine or a cluster.
        ray_options: `address`, `workers` and the other fields of `RayOptions`, only with `ray`.

    Returns:
        A row for each job, in their order: input, output, status, seconds, statistics, warnings, or the error.

    Raises:
        ConfigError: for an unknown engine, or options that don't belong to it.
        MissingDependencyError: if the engine's package is missing.
        LiverSegError: if no worker can be started.
    """
    options_of_ray = check_engine(engine, ray_options)
    jobs = list(jobs)
    rows = {index: finished[job.target] for index, job in enumerate(jobs) if finished and job.target in finished}
    todo = {index: job for index, job in enumerate(jobs) if index not in rows}
    options: dict[str, Any] = {"probabilities": probabilities, "overwrite": overwrite, "extra": extra}
    if options_of_ray is not None:
        results = predict_on_ray(predictor, todo, options, options_of_ray)
    else:
        results = _in_this_process(predictor, todo, options | {"progress": progress})
    for index, row in results:
        rows[index] = row
        if on_done is not None:
            on_done(row)
    return [rows[index] for index in range(len(jobs))]


def _in_this_process(
    predictor: Predictor, jobs: Mapping[int, Job], options: Mapping[str, Any]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows as they are completed. A volume is read while the previous one is predicted and written."""

    def readings():
        for index, job in jobs.items():
            yield index, job, read_job(predictor, job) if may_be_read_ahead(job) else None

    with routed_warnings():
        for index, job, reading in read_ahead(readings()):
            row = predict_job(predictor, job, reading=reading, **options)
            del reading  # frees the volume before another one is read
            yield index, row


def check_engine(engine: str, ray_options: Mapping[str, Any]) -> RayOptions | None:
    """Check the engine and its options; returns Ray's options, or None for this process.

    Raises:
        ConfigError: as `predict_files`.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine: expected one of {', '.join(ENGINES)}. Received: {engine!r}")
    if ray_options and engine != "ray":
        raise ConfigError(f"{', '.join(ray_options)}: only for engine='ray'")
    return RayOptions(**ray_options) if engine == "ray" else None
