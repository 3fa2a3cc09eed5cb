"""Prediction jobs: which volume gives which mask, and the prediction of one job. All engines use them."""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from liverseg_tf.data.cases import is_mask_name
from liverseg_tf.data.dicom.formats import PRODUCTS
from liverseg_tf.data.nifti import is_nifti_name, stem
from liverseg_tf.data.reading import format_of, is_volume_name
from liverseg_tf.data.remote import child, fetch, fetch_all, file_name, join, listing, location, parent, starts, store
from liverseg_tf.data.volume import CTVolume
from liverseg_tf.errors import (
    DataWarning,
    InputFileError,
    LiverSegError,
    MissingDependencyError,
    OutputError,
    warn,
    without_secrets,
)
from liverseg_tf.files import is_hidden, staging_folder
from liverseg_tf.inference.predictor import Prediction, Predictor, side_product
from liverseg_tf.inference.run_manifest import manifest_row
from liverseg_tf.inference.thread_warnings import routed_warnings, warnings_here
from liverseg_tf.ownership import (
    MAPS,
    Url,
    carries_our_mark,
    claim,
    is_url,
    kind_of,
    publish,
    refuse_inputs,
    why_not_ours,
)

if TYPE_CHECKING:
    from liverseg_tf.data.dicom.series import DicomSeries

UNCERTAINTY = "uncertainty"
PREVIEW = "_preview.png"
_RESULTS = ("mask", *MAPS)
# first bytes of a remote file, enough to see whether this library made it
_START_BYTES = 2048

_log = logging.getLogger(__name__)
# Size of a compressed file; in memory it is two or three times as large.
_LARGEST_AHEAD_BYTES = 128 * 1024**2


@dataclass(frozen=True)
class Job:
    """One volume to predict and where its mask goes.

    Attributes:
        source, target: local paths, or URLs; `source` may be a folder of DICOM files.
        source_time: when a volume behind a URL was last written, in seconds since 1970.
        series: UID of the DICOM series; None for another format, or if the source holds only one series.
        is_dicom: whether the volume is DICOM.
        allow_gaps: resample a DICOM series with gaps or uneven steps.
        found: the DICOM series if its headers are known already, as those of a run's only volume are.
    """

    source: Path | Url
    target: Path | Url
    source_time: float | None = None
    series: str | None = None
    is_dicom: bool = False
    allow_gaps: bool = False
    found: DicomSeries | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The volume's file name."""
        return file_name(self.source)


@dataclass(frozen=True)
class _Source:
    """A volume that was found; its mask is named after `name`."""

    path: Path | Url
    name: str
    time: float | None = None
    series: str | None = None
    is_dicom: bool = False
    found: DicomSeries | None = None


def plan(
    inputs: Sequence[str | Path],
    output: str | Path,
    overwrite: bool = False,
    resume: bool = False,
    *,
    series: str | None = None,
    allow_gaps: bool = False,
    ending: str = ".nii.gz",
) -> list[Job]:
    """Decide which file's mask goes where, and check all of it before anything is predicted.

    One input file and an output ending in .nii or .nii.gz: that file. Otherwise `output` is a folder in which
    `volume-7.nii.gz` gives `segmentation-7.nii.gz` and `x.nii.gz` gives `x_seg.nii.gz`; a DICOM series is named after
    the folder (or archive) that holds it, with a part of its UID if the folder holds several series.

    Args:
        inputs: volumes, or folders that are searched recursively: every usable DICOM series in them is a volume; masks
            are skipped. Paths or URLs.
        output: file or folder, path or URL.
        overwrite: replace files that this library did not make, or that were changed since.
        resume: existing masks may be kept; `check_outputs` checks later whether the others may be replaced.
        series: UID of the one DICOM series to take.
        allow_gaps: also take DICOM series with gaps.
        ending: ending of the mask's name: `.nii.gz`, or the ending of a DICOM object that is written instead.

    Raises:
        InputFileError: if an input is missing, or a folder holds no CT.
        OutputError: if two inputs share an output, or an output may not be written.
    """
    sources = _sources(inputs, series, allow_gaps)
    output = location(output)

    def job(source: _Source, target: Path | Url) -> Job:
        # a cohort's headers would take memory during the whole run
        found = source.found if len(sources) == 1 else None
        gaps = allow_gaps and source.is_dicom
        return Job(source.path, target, source.time, source.series, source.is_dicom, gaps, found)

    is_file = is_nifti_name(output) if ending == ".nii.gz" else Path(output).name.lower().endswith(".dcm")
    if is_file and not (isinstance(output, Path) and output.is_dir()):
        if len(sources) != 1:
            raise OutputError(f"{output}: one file can't take {len(sources)} masks; name a folder")
        jobs = [job(source, output) for source in sources]
    else:
        if isinstance(output, Path) and output.exists() and not output.is_dir():
            raise OutputError(f"{output}: expected a folder or a name ending in .nii or .nii.gz, got another file")
        jobs = [job(source, join(output, mask_name(source.name, ending))) for source in sources]
    check_outputs(jobs, {"": "mask"}, overwrite or resume)
    return jobs


def check_outputs(
    jobs: Sequence[Job],
    products: Mapping[str, str],
    overwrite: bool = False,
    inputs: Iterable[str | Path] | None = None,
) -> None:
    """Check, before anything is predicted, that no two jobs share an output, and that each may be written.

    Args:
        jobs: the result of `plan`.
        products: the files that each job writes: the end of the name ("" for the mask itself) and the kind, as
            `ownership.claim` takes it.
        overwrite: replace any other file too, but never an input.
        inputs: all inputs of the run; by default the jobs' volumes.

    Raises:
        OutputError: naming the first output that may not be written: an input, or a file that this library did not
            make.
    """
    inputs = [job.source for job in jobs] if inputs is None else list(inputs)
    of: dict[Path | Url, Path | Url] = {}
    kinds: dict[Path | Url, str] = {}
    for job in jobs:
        for ending, kind in {"": "mask", **products}.items():  # the mask's name must be unique, written or not
            path = product(job.target, ending)
            if path in of:
                raise OutputError(f"{path}: both {of[path]} and {job.source} would be written there; name two folders")
            of[path] = job.source
            if ending in products:
                kinds[path] = kind if ending or is_nifti_name(path) else _object_kind(path)
    refuse_inputs(kinds, inputs)
    remote = {path: kind for path, kind in kinds.items() if is_url(path)}
    for path, kind in kinds.items():
        if path not in remote:
            claim(path, kind, overwrite=overwrite)
    if remote and not overwrite:
        _check_remote_outputs(remote)


def _object_kind(path: Path | Url) -> str:
    """Kind of a DICOM object by its name."""
    name = Path(path).name
    return max(((end, kind) for end, kind in PRODUCTS.values() if name.endswith(end)), key=lambda one: len(one[0]))[1]


@overload
def product(target: Path, ending: str) -> Path: ...
@overload
def product(target: Path | Url, ending: str) -> Path | Url: ...
def product(target: Path | Url, ending: str) -> Path | Url:
    """Path of a job's further result: `x_seg_liver.nii.gz` or `x_seg.dcm` for `x_seg.nii.gz`; the same path for ""."""
    if not ending:
        return target
    if not is_url(target):
        if ending.endswith((".dcm", ".png")):
            return target.with_name(f"{stem(target)}{ending}")
        return entropy_path(target) if ending == UNCERTAINTY else side_product(target, ending)
    return child(parent(target), str(product(Path(Path(target).name), ending)))


def entropy_path(target: Path) -> Path:
    """Path of the entropy map of a mask's test-time augmentation."""
    return target.with_name(f"{stem(target)}_{UNCERTAINTY}.nii.gz")


def mask_name(source: str | Path, ending: str = ".nii.gz") -> str:
    """Name of a volume's mask: `segmentation-7.nii.gz` of `volume-7.nii`, else `x_seg.nii.gz` of `x.nii`."""
    name = stem(source)
    if match := re.fullmatch(r"volume-(\d+)", name, re.IGNORECASE):
        return f"segmentation-{match[1]}{ending}"
    return f"{name}_seg{ending}"


@dataclass(eq=False)
class Reading:
    """A volume that was read, perhaps while another one was predicted, or what went wrong.

    Attributes:
        volume, error: one of them.
        warnings: texts of the warnings.
        seconds: time taken.
        local_names: for each temporary copy's path, the name that is shown instead.
        copies: deletes the temporary copies on exit.
    """

    volume: CTVolume | None
    error: Exception | None
    warnings: list[str]
    seconds: float
    local_names: dict[str, str]
    copies: ExitStack


def may_be_read_ahead(job: Job) -> bool:
    """Whether a volume is small enough: two are in memory at a time."""
    try:
        return is_url(job.source) or job.is_dicom or job.source.stat().st_size <= _LARGEST_AHEAD_BYTES
    except OSError:
        return False


def read_job(predictor: Predictor, job: Job) -> Reading:
    """Read a job's volume, in any thread within `routed_warnings`. A remote one is copied to a temporary folder."""
    began, copies = time.perf_counter(), ExitStack()
    local_names: dict[str, str] = {}
    volume, error = None, None
    with warnings_here() as found:
        try:
            source = job.source
            if is_url(source):
                copy = Path(copies.enter_context(tempfile.TemporaryDirectory(prefix="liverseg-")), job.name)
                local_names[str(copy)] = source
                fetch_all(source, copy) if job.is_dicom else fetch(source, copy)
                source = copy
            series = job.series if job.found is None else job.found
            volume = predictor.read(source, series=series, allow_gaps=job.allow_gaps, in_memory=False)
        except Exception as failed:  # reported in the volume's row
            error = failed
    return Reading(volume, error, found, time.perf_counter() - began, local_names, copies)


class AheadReader:
    """Reads one volume in another thread while the one before it is predicted. Use it within `routed_warnings`."""

    def __init__(self, predictor: Predictor):
        self._predictor, self._pool = predictor, ThreadPoolExecutor(1, "liverseg-ahead")
        self._coming: tuple[Job, Future[Reading]] | None = None

    def start(self, job: Job) -> None:
        """Begin to read a job's volume; one that was begun before and not taken is given up."""
        self._give_up()
        if may_be_read_ahead(job):
            self._coming = job, self._pool.submit(read_job, self._predictor, job)

    def take(self, job: Job) -> Reading | None:
        """The job's volume, waited for if need be; None if another one, or none, was begun."""
        if self._coming is None or self._coming[0] != job:
            self._give_up()
            return None
        (_, reading), self._coming = self._coming, None
        return reading.result()

    def _give_up(self) -> None:
        if self._coming is not None:
            self._coming[1].add_done_callback(lambda reading: reading.result().copies.close())
            self._coming = None


def predict_job(
    predictor: Predictor,
    job: Job,
    *,
    probabilities: bool = False,
    overwrite: bool = False,
    extra: Callable[[Predictor, Prediction, Path], dict[str, Any]] | None = None,
    progress: Callable[[Job, int, int], None] | None = None,
    reading: Reading | None = None,
) -> dict[str, Any]:
    """Predict one volume and write its results; all engines call this for each job.

    Results are written to a hidden folder first and moved into place together, the mask last: if one fails, none is
    left.

    Args:
        reading: the result of `read_job`, if the volume was read ahead.

    Returns:
        The volume's row, also after an error.
    """
    began = time.perf_counter() - (reading.seconds if reading else 0.0)
    with routed_warnings(), ExitStack() as stack:
        reading = reading or read_job(predictor, job)
        stack.enter_context(reading.copies)
        local_names = reading.local_names
        with warnings_here() as found:
            try:
                if reading.volume is None:
                    raise reading.error or InputFileError(f"{job.source}: could not be read")
                target = job.target
                report = (lambda done, total: progress(job, done, total)) if progress else None
                prediction = predictor.predict(reading.volume, probabilities=probabilities, progress=report)
                prediction.seconds += reading.seconds
                if is_url(target):
                    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="liverseg-")))
                else:
                    folder = stack.enter_context(staging_folder(target))
                local_names[str(folder)] = parent(target) if is_url(target) else str(target.parent)
                staged = folder / Path(target).name
                if is_nifti_name(staged):  # else `extra` writes it
                    prediction.save(staged)
                if probabilities:
                    prediction.save_probabilities(staged)
                more = extra(predictor, prediction, staged) if extra is not None else {}
                if is_url(target):
                    for path in sorted(folder.iterdir(), key=lambda path: path == staged):
                        store(path, child(parent(target), path.name))
                else:
                    files = prediction.volume.files
                    publish(folder, target.parent, inputs=files, overwrite=overwrite, last=staged.name)
                row = {**manifest_row(job.source, job.target, prediction, None), **more}
            except LiverSegError as failed:
                row = manifest_row(job.source, None, None, str(failed))
            except MemoryError as failed:
                text = f"{job.source}: writing it needs more memory than there is ({failed})"
                row = manifest_row(job.source, None, None, text)
            except Exception as failed:  # no error of one volume may end a run over thousands
                _log.info("%s", without_secrets(str(job.source)), exc_info=True)
                text = f"{job.source}: failed unexpectedly ({type(failed).__name__}: {failed})"
                row = manifest_row(job.source, None, None, " ".join(text.split()))
    if job.series:
        row["series"] = job.series
    row["seconds"] = round(time.perf_counter() - began, 3)
    row["warnings"] = [*reading.warnings, *found]
    return _renamed(row, local_names)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """A row in which the paths of local copies are replaced by the names that users know."""
    if isinstance(value, str):
        for local, url in names.items():
            value = value.replace(local, url)
        return without_secrets(value)  # rows are written to manifests and shown on screens
    if isinstance(value, dict):
        return {key: _renamed(content, names) for key, content in value.items()}
    return [_renamed(content, names) for content in value] if isinstance(value, list) else value


def _check_remote_outputs(kinds: Mapping[Url, str]) -> None:
    """`claim` for the URLs of one folder, with few requests: only files with this library's mark are read whole."""
    there = listing(parent(next(iter(kinds))))
    existing = [url for url in kinds if url in there]
    with tempfile.TemporaryDirectory(prefix="liverseg-") as folder:
        for url, start in zip(existing, starts(existing, _START_BYTES), strict=True):
            copy = Path(folder, Path(url).name)
            if carries_our_mark(start, kinds[url]):
                fetch(url, copy)
            reason = why_not_ours(copy, kinds[url])
            copy.unlink(missing_ok=True)
            if reason:
                raise OutputError(f"{url}: {reason}; choose another output, or replace it with overwrite=True")


def _sources(inputs: Sequence[str | Path], series: str | None, allow_gaps: bool) -> list[_Source]:
    """The volumes of all inputs, each once."""
    sources: dict[Any, _Source] = {}
    for given in map(location, inputs):
        if is_url(given):
            found = _remote_sources(given, series)
        elif given.is_dir():
            files = [p for p in sorted(given.rglob("*")) if p.is_file() and not is_hidden(p, given)]
            paths = [p for p in files if is_volume_name(p) and not (is_mask_name(p) or kind_of(p) in _RESULTS)]
            found = [_Source(path, path.name) for path in paths] if series is None else []
            found += _dicom_sources(given, series, allow_gaps, needed=not found)
        elif given.exists() and format_of(given) == "dicom":
            found = _dicom_sources(given, series, allow_gaps, needed=True)
        else:
            found = [_Source(given, given.name)]
        for source in found:
            place = source.path.resolve() if isinstance(source.path, Path) else source.path
            sources.setdefault((place, source.series), source)
    return list(sources.values())


def _dicom_sources(given: Path, series: str | None, allow_gaps: bool, needed: bool) -> list[_Source]:
    """The DICOM series at a path. Unusable series cause a warning, or an error if there is no usable one."""
    from liverseg_tf.data.dicom.series import find_series, named_series, pick_series, why_nothing

    try:
        found = find_series(given)
    except MissingDependencyError as error:
        if needed:
            raise
        warn(f"{given}: holds DICOM files, which are left out ({error})", DataWarning)
        return []
    if series is not None:
        usable = [pick_series(found, series, allow_gaps=allow_gaps)]
    else:
        usable = [s for s in found.series if s.is_usable or (allow_gaps and s.is_uneven)]
    if not usable:
        if needed:
            if given.is_dir() and not (found.series or found.broken or found.directories):
                raise InputFileError(
                    f"{given}: expected CTs ending in .nii, .nii.gz, .nrrd, .mha or .mhd, or DICOM files; the folder "
                    "holds none"
                )
            raise InputFileError(f"{given}: {why_nothing(found)}")
        return []
    for left in found.series:
        if left.problem and left not in usable:
            warn(f"{left.folder}: series {left.number} is left out: {left.problem}", DataWarning)
    if derived := sum(s.left_out.startswith("derived") for s in found.series):
        warn(
            f"{given}: {derived} series of derived images {'is' if derived == 1 else 'are'} left out; "
            "series= selects one",
            DataWarning,
        )
    sources = []
    for name, one in named_series(given, usable):
        path = given / Path(one.folder).relative_to(given) if given.is_dir() else given
        # what an archive may expand to is checked when it is read
        kept = one if given.is_dir() else None
        sources.append(_Source(path, name, series=one.uid or None, is_dicom=True, found=kept))
    return sources


def _remote_sources(given: Url, series: str | None) -> list[_Source]:
    """Volumes at a URL. DICOM is recognised by name only: a folder with .dcm files is a series, and so is a .zip."""
    there = listing(given)
    if given in there:
        is_dicom = Path(file_name(given)).suffix.lower() in (".dcm", ".zip")
        return [_Source(given, file_name(given), there[given], series if is_dicom else None, is_dicom)]
    found = []
    for url, seconds in there.items():
        path = Path(file_name(url))
        if is_volume_name(path) and not is_mask_name(path):
            found.append(_Source(url, path.name, seconds))
        elif path.suffix.lower() == ".zip":
            found.append(_Source(url, path.name, seconds, series, is_dicom=True))
    folders: dict[Url, float] = {}
    for url, seconds in there.items():
        if url.lower().endswith(".dcm"):
            folders[parent(url)] = max(seconds, folders.get(parent(url), seconds))
    found += [_Source(url, Path(url).name, seconds, series, is_dicom=True) for url, seconds in folders.items()]
    if not found:
        raise InputFileError(
            f"{given}: expected CTs ending in .nii, .nii.gz, .nrrd, .mha, .dcm or .zip, there is no such folder or it "
            "holds none"
        )
    return found
