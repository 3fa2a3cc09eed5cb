"""Prediction of many files, with a manifest."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liverseg_tf.data.nifti import is_nifti_name, stem
from liverseg_tf.errors import InputFileError, LiverSegError, OutputError
from liverseg_tf.files import write_text
from liverseg_tf.inference.predictor import Prediction, Predictor, check_output, is_own_result, manifest_row

MANIFEST = "manifest.json"
_MASK_NAME = re.compile(r"segmentation-\d+(_[a-z]+)?|.*_seg(_[a-z]+)?", re.IGNORECASE)
_MASK_FOLDERS = ("labelstr", "labelsts")


@dataclass(frozen=True)
class Job:
    """One volume to predict and where its mask goes."""

    source: Path
    target: Path


def plan(inputs: Sequence[str | Path], output: str | Path, overwrite: bool = False) -> list[Job]:
    """Say which file's mask goes where, and check all of it before anything is predicted.

    One input file and an output ending in .nii or .nii.gz: that file. Otherwise `output` is a folder in which
    `volume-7.nii.gz` gives `segmentation-7.nii.gz` and `x.nii.gz` gives `x_seg.nii.gz`.

    Args:
        inputs: NIfTI files, or folders that are searched recursively; masks in them are passed over.
        output: file or folder.
        overwrite: replace files that this library did not make.

    Raises:
        InputFileError: if an input is missing or a folder holds no CT.
        OutputError: if two inputs share an output, or an output may not be written.
    """
    sources = _sources(inputs)
    output = Path(output)
    if is_nifti_name(output) and not output.is_dir():
        if len(sources) != 1:
            raise OutputError(f"{output}: one file can't take {len(sources)} masks; name a folder")
        jobs = [Job(sources[0], output)]
    else:
        if output.exists() and not output.is_dir():
            raise OutputError(f"{output}: expected a folder or a name ending in .nii or .nii.gz, got another file")
        jobs = [Job(source, output / mask_name(source)) for source in sources]
    first: dict[Path, Path] = {}
    for job in jobs:
        if job.target in first:
            raise OutputError(
                f"{job.target}: both {first[job.target]} and {job.source} would give it; predict them apart"
            )
        first[job.target] = job.source
        check_output(job.target, sources, overwrite)
    return jobs


def mask_name(source: Path) -> str:
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
    finished: Mapping[Path, dict[str, Any]] | None = None,
    extra: Callable[[Prediction, Path], dict[str, Any]] | None = None,
    progress: Callable[[Job, int, int], None] | None = None,
    on_done: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Predict volume after volume; one that fails becomes an error row and the rest go on.

    Args:
        finished: rows, by output, that need no second prediction; see `finished_rows`.
        extra: called with each prediction and its mask's path; what it returns joins the row.
        progress: called with the job, the slices done and their total.
        on_done: called with each row as it is complete.

    Returns:
        A row for each job: input, output, status, seconds, statistics, warnings, or the error.
    """
    rows = []
    for job in jobs:
        if finished and job.target in finished:
            rows.append(finished[job.target])
            if on_done is not None:
                on_done(rows[-1])
            continue
        prediction = error = None
        more: dict[str, Any] = {}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                report = (lambda done, total, job=job: progress(job, done, total)) if progress else None
                prediction = predictor.predict(job.source, probabilities=probabilities, progress=report)
                prediction.save(job.target, overwrite)
                if probabilities:
                    prediction.save_probabilities(job.target, overwrite)
                if extra is not None:
                    more = extra(prediction, job.target)
            except LiverSegError as failed:
                prediction, error = None, str(failed)
        row = manifest_row(job.source, job.target if prediction else None, prediction, error)
        row.update(more)
        row["warnings"] = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
        rows.append(row)
        if on_done is not None:
            on_done(row)
    return rows


def finished_rows(
    manifest: str | Path, model: str, settings: dict[str, Any], jobs: Iterable[Job]
) -> dict[Path, dict[str, Any]]:
    """Rows of an earlier run, perhaps a killed one, that the same run would give again.

    Those of the same model and settings whose mask is there and newer than its volume and the model.

    Returns:
        Rows by output.
    """
    try:
        record = json.loads(Path(manifest).read_text("utf-8"))
        rows = {row["input"]: row for row in record["volumes"] if row["status"] == "done"}
        if record["model"] != model or record["settings"] != json.loads(json.dumps(settings)):
            return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    finished = {}
    for job in jobs:
        row = rows.get(str(job.source))
        if row and row.get("output") == str(job.target) and is_own_result(job.target):
            origins = [p for p in (job.source, Path(model)) if p.exists()]
            if all(p.stat().st_mtime <= job.target.stat().st_mtime for p in origins):
                finished[job.target] = row
    return finished


def write_manifest(path: str | Path, model: str, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write what was predicted with what, as JSON.

    Raises:
        OutputError: if it can't be written.
    """
    import keras
    import tensorflow as tf

    from liverseg_tf import __version__

    record = {
        "versions": {"liverseg_tf": __version__, "tensorflow": tf.__version__, "keras": keras.__version__},
        "model": model,
        "settings": settings,
        "note": "Not a medical device: for research only.",
        "volumes": rows,
    }
    write_text(path, json.dumps(record, indent=2) + "\n")


def _sources(inputs: Sequence[str | Path]) -> list[Path]:
    sources: dict[Path, Path] = {}
    for given in map(Path, inputs):
        if given.is_dir():
            found = [p for p in sorted(given.rglob("*")) if p.is_file() and is_nifti_name(p) and not _is_mask(p)]
            if not found:
                raise InputFileError(f"{given}: expected CTs ending in .nii or .nii.gz, the folder holds none")
        else:
            found = [given]
        for path in found:
            sources.setdefault(path.resolve(), path)
    return list(sources.values())


def _is_mask(path: Path) -> bool:
    return bool(_MASK_NAME.fullmatch(stem(path))) or path.parent.name.lower() in _MASK_FOLDERS
