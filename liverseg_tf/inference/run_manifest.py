"""Manifest of a prediction run: JSON Lines, one added for each finished volume."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liverseg_tf.data.nifti import is_nifti_name
from liverseg_tf.data.remote import fetch, listing, location, parent, store
from liverseg_tf.errors import InputFileError, LiverSegError, OutputError, without_secrets
from liverseg_tf.ownership import Url, carries_our_mark, is_url, read_signed_line, signed_line, why_not_ours, write_text
from liverseg_tf.provenance import NOT_A_MEDICAL_DEVICE, versions
from liverseg_tf.strict_json import to_json

if TYPE_CHECKING:
    from liverseg_tf.inference.jobs import Job
    from liverseg_tf.inference.predictor import Prediction

MANIFEST = "manifest.jsonl"
_KIND = "manifest"
# Remote objects can't be appended to, so the whole file is uploaded again: at most this often, and at most 1/20 of the
# time
_UPLOAD_SECONDS = 30.0
_UPLOAD_SHARE = 20


class RunManifest:
    """The manifest of a prediction run: the model, the settings, and a line for each volume.

    The first line holds the versions, the model and the settings; each further line is a volume's row. Rows are added
    as volumes are done, and rewritten in the order of the volumes at the end of the run. A killed run leaves the rows
    of its finished volumes, and possibly a truncated last line. Each line ends in its digest, by which
    `liverseg_tf.ownership` recognises it.

    Args:
        where: path or URL. To a URL it is written at most every 30 seconds, and when the run ends.
        model: the model, as the user names it.
        settings: the run's settings, as JSON values.
        model_sha256: `Predictor.sha256`: rows made by other weights are not reused, even under the same name.
        overwrite: replace a manifest that this library did not write.

    Examples:
        >>> with RunManifest("manifest.jsonl", "shipped", settings={}) as manifest:
        ...     manifest.write()
        ...     manifest.add({"input": "volume-7.nii.gz", "status": "done"})
        >>> read_rows(Path("manifest.jsonl"))
        [{'input': 'volume-7.nii.gz', 'status': 'done'}]
    """

    def __init__(
        self,
        where: str | Path,
        model: str,
        settings: dict[str, Any],
        model_sha256: str | None = None,
        overwrite: bool = False,
    ):
        self.where, self.model, self.settings = location(where), model, settings
        self.model_sha256, self._overwrite = model_sha256, overwrite
        self._url = self.where if is_url(self.where) else None
        self._folder = tempfile.mkdtemp(prefix="liverseg-") if self._url else None
        self._path = Path(self._folder, MANIFEST) if self._folder else Path(self.where)
        self._stored_at, self._pause, self._changed = 0.0, _UPLOAD_SECONDS, False

    def __enter__(self) -> RunManifest:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def finished(self, jobs: Iterable[Job]) -> dict[str | Path, dict[str, Any]]:
        """Rows of an earlier run, possibly a killed one, that this run need not repeat.

        These are rows of the same model and settings whose mask exists and is newer than its volume. A mask that was
        corrected by hand since then still belongs to its row and is kept.

        Returns:
            Rows by output.
        """
        rows = self._read()  # URLs in it have no passwords

        def row_of(job: Job) -> dict[str, Any]:
            return rows.get((without_secrets(str(job.source)), job.series), {})

        jobs = [job for job in jobs if row_of(job).get("output") == without_secrets(str(job.target))]
        folders = {parent(job.target) for job in jobs if is_url(job.target)}
        there = {url: seconds for folder in folders for url, seconds in listing(folder).items()}
        finished: dict[str | Path, dict[str, Any]] = {}
        for job in jobs:
            if is_url(job.target):
                made = there.get(job.target)
            else:
                made = job.target.stat().st_mtime if _has_mask(job.target) else None
            changed = job.source_time or 0.0
            if not is_url(job.source) and job.source.exists():
                changed = job.source.stat().st_mtime
            if made is not None and changed <= made:
                finished[job.target] = row_of(job)
        return finished

    def write(self, rows: Iterable[dict[str, Any]] = ()) -> None:
        """Write the whole manifest with the known rows, at the start and at the end of the run.

        Raises:
            OutputError: if a file that this library did not write is there, or it can't be written.
        """
        first = {
            "versions": versions(),
            "model": self.model,
            "model_sha256": self.model_sha256,
            "settings": self.settings,
            "note": NOT_A_MEDICAL_DEVICE,
        }
        if self._url and not self._overwrite:
            self._check_remote(self._url)
        text = "".join(signed_line(content, _KIND) for content in (first, *rows))
        write_text(self._path, text, _KIND, overwrite=self._overwrite)
        self._overwrite = True  # the file now belongs to this run
        self._store()

    def add(self, row: dict[str, Any]) -> None:
        """Add the row of a volume that is done or has failed.

        Raises:
            OutputError: if it can't be written.
        """
        try:
            with self._path.open("ab", buffering=0) as file:  # in one write, because other processes may add rows too
                file.write(signed_line(row, _KIND).encode())
        except OSError as error:
            raise OutputError(
                f"{self.where}: could not be written ({error.strerror or error}); is the disk full?"
            ) from error
        self._changed = True
        if time.monotonic() - self._stored_at > self._pause:
            self._store()

    def close(self) -> None:
        """Upload the last rows; needed only for a URL."""
        if self._folder:
            try:
                if self._changed:
                    self._store()
            finally:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _store(self) -> None:
        if self._url is None:
            return
        began = time.monotonic()
        store(self._path, self._url)
        self._stored_at, self._changed = time.monotonic(), False
        self._pause = max(_UPLOAD_SECONDS, _UPLOAD_SHARE * (self._stored_at - began))

    def _read(self) -> dict[tuple[str, str | None], dict[str, Any]]:
        """Rows of finished volumes by input; none if the file is missing, not a manifest, or of another run."""
        rows: dict[tuple[str, str | None], dict[str, Any]] = {}
        try:
            if self._url:
                fetch(self._url, self._path)
            first, *lines = (read_signed_line(line, _KIND) for line in self._path.read_bytes().splitlines())
            if first is None or (first["model_sha256"] or first["model"]) != (self.model_sha256 or self.model):
                return {}
            if first["settings"] != json.loads(to_json(self.settings)):
                return {}
        except (LiverSegError, OSError, ValueError, KeyError, TypeError):
            return {}
        for row in filter(None, lines):  # none: a line that was cut
            with contextlib.suppress(KeyError, TypeError):
                if row["status"] == "done":
                    rows[row["input"], row.get("series")] = row
                else:
                    rows.pop((row["input"], row.get("series")), None)
        return rows

    def _check_remote(self, url: Url) -> None:
        if url not in listing(url):
            self._path.unlink(missing_ok=True)
            return
        fetch(url, self._path)
        if reason := why_not_ours(self._path, _KIND):
            raise OutputError(f"{self.where}: {reason}; choose another output, or replace it with overwrite=True")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a manifest in their order, done or failed; the last one of a volume with several.

    Raises:
        InputFileError: if it can't be read, or is not a manifest.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputFileError(f"{path}: can't be read ({error.strerror or error})") from None
    contents = [read_signed_line(line, _KIND) for line in lines]
    if not contents or contents[0] is None or "settings" not in contents[0]:
        raise InputFileError(f"{path}: expected a manifest that 'predict' wrote, got something else")
    rows: dict[tuple[str, str | None], dict[str, Any]] = {}
    for row in filter(None, contents[1:]):  # none: a line that was cut
        rows[str(row.get("input")), row.get("series")] = row
    return list(rows.values())


def manifest_row(
    source: str | Path, target: str | Path | None, prediction: Prediction | None, error: str | None
) -> dict[str, Any]:
    """One volume's row in the manifest; `jobs` and `predict_folder` add to it."""
    row: dict[str, Any] = {"input": str(source), "output": str(target) if target else None}
    row["status"] = "error" if error else "done"
    if error:
        row["error"] = error
    if prediction is not None:
        row["statistics"] = prediction.statistics().to_dict()
    return row


def _has_mask(path: Path) -> bool:
    """Whether a mask of this library is there, possibly corrected since."""
    if not is_nifti_name(path):
        return path.is_file()
    try:
        with path.open("rb") as file:
            return carries_our_mark(file.read(2048), "mask")
    except OSError:
        return False
