"""Processes of their own for tests, without paying for TensorFlow's import in each: it takes seconds.

They are forks of one process that has imported TensorFlow and run nothing of it; nothing of liverseg_tf is in them yet.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tensorflow", "keras", "nibabel", "scipy.ndimage"])


class Ended(NamedTuple):
    """How a process ended: status as `subprocess` gives it, and what it wrote."""

    status: int
    output: str
    errors: str


class Fork:
    """Runs `function(*arguments)`, which must be importable; started at once.

    Args:
        function: of a module.
        arguments: that can be pickled.
        environment: variables beside those of the tests.
    """

    def __init__(self, function, *arguments, environment=None):
        self._folder = tempfile.mkdtemp(prefix="liverseg-fork-")
        options = (function, arguments, self._folder, {**os.environ, **(environment or {})})
        self.process = _CONTEXT.Process(target=_run, args=options)
        self.process.start()

    def end(self, seconds: float = 300) -> Ended:
        """Wait for its end; it is killed after `seconds`."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        written = [Path(self._folder, name).read_text(errors="replace") for name in ("output", "errors")]
        shutil.rmtree(self._folder)
        return Ended(self.process.exitcode, *written)


def _run(function, arguments, folder, environment) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, name in ((1, "output"), (2, "errors")):
        with open(os.path.join(folder, name), "wb") as file:
            os.dup2(file.fileno(), descriptor)
    function(*arguments)
