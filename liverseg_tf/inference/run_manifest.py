"""What a prediction run has done: JSON Lines that grow with it."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liverseg_tf.data.remote import fetch, is_url, listing, location, parent, store
from liverseg_tf.errors import LiverSegError, OutputError, without_login
from liverseg_tf.files import write_text
from liverseg_tf.inference.predictor import is_own_result
from liverseg_tf.provenance import NOT_A_MEDICAL_DEVICE, versions
from liverseg_tf.strict_json import to_json

if TYPE_CHECKING:
    from liverseg_tf.inference.jobs import Job

MANIFEST = "manifest.jsonl"
# Objects can't grow: behind a URL the whole file is written again, not more often than this and a twentieth of the time
_UPLOAD_SECONDS = 30.0
_UPLOAD_SHARE = 20


class RunManifest:
    """The manifest of a prediction run: what was predicted with what, a line for each volume.

    The first line tells the versions, the model and the settings; each line after it is a volume's row. Rows are added
    as volumes are done; the end of the run writes them once more, in the order of the volumes. A killed run leaves what
    it had done, perhaps with a last line that was cut.

    Args:
        where: path or URL. Behind a URL it is written at most every 30 seconds, and when the run ends.
        model: what the volumes are predicted with, as the user names it.
        settings: of the run; JSON.

    Examples:
        >>> with RunManifest("masks/manifest.jsonl", "shipped", {}) as manifest:  # doctest: +SKIP
        ...     finished = manifest.finished(jobs)
        ...     manifest.write(finished.values())
        ...     manifest.write(predict_files(predictor, jobs, finished=finished, on_done=manifest.add))
    """

    def __init__(self, where: str | Path, model: str, settings: dict[str, Any]):
        self.where, self.model, self.settings = location(where), model, settings
        self._folder = tempfile.mkdtemp(prefix="liverseg-") if is_url(self.where) else None
        self._path = Path(self._folder, MANIFEST) if self._folder else self.where
        self._stored_at, self._pause, self._changed = 0.0, _UPLOAD_SECONDS, False

    def __enter__(self) -> RunManifest:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def finished(self, jobs: Iterable[Job]) -> dict[str | Path, dict[str, Any]]:
        """Rows of an earlier run, perhaps a killed one, that this run would give again.

        Those of the same model and settings whose mask is there and newer than its volume and the model.

        Returns:
            Rows by output.
        """
        rows = self._read()  # without the passwords of URLs

        def row_of(job: Job) -> dict[str, Any]:
            return rows.get(without_login(str(job.source)), {})

        jobs = [job for job in jobs if row_of(job).get("output") == without_login(str(job.target))]
        folders = {parent(job.target) for job in jobs if is_url(job.target)}
        there = {url: seconds for folder in folders for url, seconds in listing(folder).items()}
        finished = {}
        for job in jobs:
            if is_url(job.target):
                made = there.get(job.target)
            else:
                made = job.target.stat().st_mtime if is_own_result(job.target) else None
            origins = [Path(self.model)]
            if not is_url(job.source):
                origins.append(job.source)
            times = [path.stat().st_mtime for path in origins if path.exists()]
            if made is not None and max([job.source_time or 0.0, *times]) <= made:
                finished[job.target] = row_of(job)
        return finished

    def write(self, rows: Iterable[dict[str, Any]] = ()) -> None:
        """Write it anew, with the rows that are known: at the start, and at the end of the run.

        Raises:
            OutputError: if it can't be written.
        """
        first = {
            "versions": versions(),
            "model": self.model,
            "settings": self.settings,
            "note": NOT_A_MEDICAL_DEVICE,
        }
        write_text(self._path, "".join(_line(content) for content in (first, *rows)))
        self._store()

    def add(self, row: dict[str, Any]) -> None:
        """Write the row of a volume that is done or has failed.

        Raises:
            OutputError: if it can't be written.
        """
        try:
            with self._path.open("ab", buffering=0) as file:  # in one piece: other processes may add too
                file.write(_line(row).encode())
        except OSError as error:
            raise OutputError(
                f"{self.where}: could not be written ({error.strerror or error}); is the disk full?"
            ) from error
        self._changed = True
        if time.monotonic() - self._stored_at > self._pause:
            self._store()

    def close(self) -> None:
        """Finish it; needed behind a URL alone."""
        if self._folder:
            try:
                if self._changed:
                    self._store()
            finally:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _store(self) -> None:
        if not self._folder:
            return
        began = time.monotonic()
        store(self._path, self.where)
        self._stored_at, self._changed = time.monotonic(), False
        self._pause = max(_UPLOAD_SECONDS, _UPLOAD_SHARE * (self._stored_at - began))

    def _read(self) -> dict[str, dict[str, Any]]:
        """Rows of volumes that are done, by input; none if the file is missing, something else, or of another run."""
        rows: dict[str, dict[str, Any]] = {}
        try:
            if self._folder:
                fetch(self.where, self._path)
            first, *lines = self._path.read_text("utf-8").splitlines()
            run = json.loads(first)
            if run["model"] != self.model or run["settings"] != json.loads(to_json(self.settings)):
                return {}
        except (LiverSegError, OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):  # a line that was cut
                row = json.loads(line)
                if row["status"] == "done":
                    rows[row["input"]] = row
                else:
                    rows.pop(row["input"], None)
        return rows


def _line(content: dict[str, Any]) -> str:
    return to_json(content) + "\n"
