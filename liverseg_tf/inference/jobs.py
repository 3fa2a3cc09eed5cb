"""Prediction of many files, in this process or by workers on many machines."""

from __future__ import annotations

import logging
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liverseg_tf.data.nifti import is_nifti_name, stem
from liverseg_tf.data.remote import fetch, is_url, join, listing, location, parent, starts, store
from liverseg_tf.errors import ConfigError, InputFileError, LiverSegError, OutputError, without_login
from liverseg_tf.inference.predictor import (
    Prediction,
    Predictor,
    check_output,
    manifest_row,
    says_own_result,
)

ENGINES = ("embedded", "ray")
_MASK_NAME = re.compile(r"segmentation-\d+(_[a-z]+)?|.*_seg(_[a-z]+)?", re.IGNORECASE)
_MASK_FOLDERS = ("labelstr", "labelsts")
# of a remote file, enough to tell whose it is
_START_BYTES = 2048

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One volume to predict and where its mask goes.

    Attributes:
        source, target: local paths, or URLs.
        source_time: when a volume behind a URL was last written, in seconds since 1970.
    """

    source: Path | str
    target: Path | str
    source_time: float | None = None

    @property
    def name(self) -> str:
        """The volume's file name."""
        return Path(self.source).name


def plan(inputs: Sequence[str | Path], output: str | Path, overwrite: bool = False) -> list[Job]:
    """Say which file's mask goes where, and check all of it before anything is predicted.

    One input file and an output ending in .nii or .nii.gz: that file. Otherwise `output` is a folder in which
    `volume-7.nii.gz` gives `segmentation-7.nii.gz` and `x.nii.gz` gives `x_seg.nii.gz`.

    Args:
        inputs: NIfTI files, or folders that are searched recursively; masks in them are passed over. Paths or URLs.
        output: file or folder, path or URL.
        overwrite: replace files that this library did not make.

    Raises:
        InputFileError: if an input is missing or a folder holds no CT.
        OutputError: if two inputs share an output, or an output may not be written.
    """
    sources = _sources(inputs)
    output = location(output)
    if is_nifti_name(output) and not (isinstance(output, Path) and output.is_dir()):
        if len(sources) != 1:
            raise OutputError(f"{output}: one file can't take {len(sources)} masks; name a folder")
        jobs = [Job(source, output, time) for source, time in sources.items()]
    else:
        if isinstance(output, Path) and output.exists() and not output.is_dir():
            raise OutputError(f"{output}: expected a folder or a name ending in .nii or .nii.gz, got another file")
        jobs = [Job(source, join(output, mask_name(source)), time) for source, time in sources.items()]
    first: dict[str | Path, str | Path] = {}
    local_sources = [source for source in sources if isinstance(source, Path)]
    for job in jobs:
        if job.target in first:
            raise OutputError(
                f"{job.target}: both {first[job.target]} and {job.source} would give it; predict them apart"
            )
        first[job.target] = job.source
        if isinstance(job.target, Path):
            check_output(job.target, local_sources, overwrite)
    if is_url(output):
        _check_remote_outputs(list(first), sources, overwrite)
    return jobs


def mask_name(source: str | Path) -> str:
    """Name of a volume's mask: `segmentation-7.nii.gz` of `volume-7.nii`, else `x_seg.nii.gz` of `x.nii`."""
    name = stem(source)
    if match := re.fullmatch(r"volume-(\d+)", name, re.IGNORECASE):
        return f"segmentation-{match[1]}.nii.gz"
    return f"{name}_seg.nii.gz"


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
    engine: str = "embedded",
    **ray_options: Any,
) -> list[dict[str, Any]]:
    """Predict volume after volume; one that fails becomes an error row and the rest go on.

    Args:
        finished: rows, by output, that need no second prediction; see `RunManifest.finished`.
        extra: called with the predictor, each prediction and its mask's path; what it returns joins the row. For Ray it
            must be picklable.
        progress: called with the job, the slices done and their total; not with Ray.
        on_done: called with each new row as it is complete, always in this process.
        engine: `embedded`, in this process; or `ray`, by workers on this machine or a cluster.
        ray_options: `address`, `workers` and the other fields of `RayOptions`, for `ray` alone.

    Returns:
        A row for each job, in their order: input, output, status, seconds, statistics, warnings, or the error.

    Raises:
        ConfigError: for another engine, or options that don't fit it.
        MissingDependencyError: if the engine's package is missing.
        LiverSegError: if no worker can be started.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine: expected one of {', '.join(ENGINES)}. Received: {engine!r}")
    if ray_options and engine != "ray":
        raise ConfigError(f"{', '.join(ray_options)}: for engine='ray' alone")
    jobs = list(jobs)
    rows = {index: finished[job.target] for index, job in enumerate(jobs) if finished and job.target in finished}
    todo = {index: job for index, job in enumerate(jobs) if index not in rows}
    options = {"probabilities": probabilities, "overwrite": overwrite, "extra": extra}
    if engine == "ray":
        from liverseg_tf.inference.ray_engine import RayOptions, predict_on_ray

        results = predict_on_ray(predictor, todo, options, RayOptions(**ray_options))
    else:
        results = ((index, predict_job(predictor, job, **options, progress=progress)) for index, job in todo.items())
    for index, row in results:
        rows[index] = row
        if on_done is not None:
            on_done(row)
    return [rows[index] for index in range(len(jobs))]


def predict_job(
    predictor: Predictor,
    job: Job,
    *,
    probabilities: bool = False,
    overwrite: bool = False,
    extra: Callable[[Predictor, Prediction, Path], dict[str, Any]] | None = None,
    progress: Callable[[Job, int, int], None] | None = None,
) -> dict[str, Any]:
    """Predict one volume and write its results: what every engine does with a job.

    A volume behind a URL is copied to a temporary folder, and results that go to a URL are written there first: its
    files take no more of the disk than this one volume, its mask comes last.

    Returns:
        The volume's row, of an error too.
    """
    began = time.perf_counter()
    local_names: dict[str, str] = {}
    with warnings.catch_warnings(record=True) as caught, ExitStack() as stack:
        warnings.simplefilter("always")
        try:
            source, target = job.source, job.target
            if is_url(source) or is_url(target):
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="liverseg-"))
            if is_url(source):
                source = Path(folder, "in", job.name)
                local_names[str(source)] = job.source
                fetch(job.source, source)
            if is_url(target):
                target = Path(folder, "out", Path(job.target).name)
                local_names[str(target.parent)] = parent(job.target)
            report = (lambda done, total: progress(job, done, total)) if progress else None
            prediction = predictor.predict(source, probabilities=probabilities, progress=report)
            prediction.save(target, overwrite)
            if probabilities:
                prediction.save_probabilities(target, overwrite)
            more = extra(predictor, prediction, target) if extra is not None else {}
            if is_url(job.target):
                for path in sorted(target.parent.iterdir(), key=lambda path: path == target):
                    store(path, join(parent(job.target), path.name))
            row = {**manifest_row(job.source, job.target, prediction, None), **more}
        except LiverSegError as failed:
            row = manifest_row(job.source, None, None, str(failed))
        except MemoryError as failed:
            text = f"{job.source}: needs more memory than there is to be written ({failed})"
            row = manifest_row(job.source, None, None, text)
        except Exception as failed:  # nothing that one volume does ends a run over thousands
            _log.info("%s", without_login(str(job.source)), exc_info=True)
            text = f"{job.source}: failed unexpectedly ({type(failed).__name__}: {failed})"
            row = manifest_row(job.source, None, None, " ".join(text.split()))
    row["seconds"] = round(time.perf_counter() - began, 3)
    row["warnings"] = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    return _renamed(row, local_names)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """A row with what local copies stand for in place of their paths."""
    if isinstance(value, str):
        for local, url in names.items():
            value = value.replace(local, url)
        return without_login(value)  # rows stand in manifests and on screens
    if isinstance(value, dict):
        return {key: _renamed(content, names) for key, content in value.items()}
    return [_renamed(content, names) for content in value] if isinstance(value, list) else value


def _check_remote_outputs(targets: list[str], sources: Iterable[str | Path], overwrite: bool) -> None:
    """`check_output` for URLs of one folder, with few requests."""
    if inputs := set(targets).intersection(sources):
        raise OutputError(f"{min(inputs)}: is an input and is never written over; choose another output")
    there = listing(parent(targets[0]))
    existing = [target for target in targets if target in there]
    if overwrite:
        return
    for target, start in zip(existing, starts(existing, _START_BYTES), strict=True):
        if not says_own_result(start):
            raise OutputError(
                f"{target}: exists and was not made by this library; choose another output, "
                "or replace it with overwrite=True"
            )


def _sources(inputs: Sequence[str | Path]) -> dict[str | Path, float | None]:
    """Volumes, and the time of those behind a URL."""
    sources: dict[str | Path, tuple[str | Path, float | None]] = {}
    for given in map(location, inputs):
        if is_url(given):
            there = listing(given)
            found = {url: seconds for url, seconds in there.items() if is_nifti_name(url) and not _is_mask(Path(url))}
            if given in there:
                found = {given: there[given]}
            elif not found:
                raise InputFileError(
                    f"{given}: expected CTs ending in .nii or .nii.gz, there is no such folder or it holds none"
                )
        elif given.is_dir():
            paths = [p for p in sorted(given.rglob("*")) if p.is_file() and is_nifti_name(p) and not _is_mask(p)]
            if not paths:
                raise InputFileError(f"{given}: expected CTs ending in .nii or .nii.gz, the folder holds none")
            found = dict.fromkeys(paths)
        else:
            found = {given: None}
        for path, seconds in found.items():
            sources.setdefault(path.resolve() if isinstance(path, Path) else path, (path, seconds))
    return dict(sources.values())


def _is_mask(path: Path) -> bool:
    return bool(_MASK_NAME.fullmatch(stem(path))) or path.parent.name.lower() in _MASK_FOLDERS
