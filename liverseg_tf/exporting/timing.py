"""Run one exported model in its own process, so that time and memory are measured for it only.

`python -m liverseg_tf.exporting.timing MODEL SLICES.npz RESULT.npz`: slices are arrays (N, rows, columns) under any
names; the result has `<name>_labels` and `<name>_probabilities`, and `figures`, JSON of `Measured`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liverseg_tf.errors import LiverSegError, ModelError
from liverseg_tf.strict_json import to_json

_SLICES_A_BATCH = 4


@dataclass(frozen=True)
class Measured:
    """Time and memory of one exported model.

    Attributes:
        milliseconds_a_slice: time from HU to labels in ms per slice, by the slices' names; the best of several batches,
            after a warm-up batch.
        peak_memory_mb: highest resident memory in MB, minus that of the same process before it opened the model; None
            if the system does not report it.
    """

    milliseconds_a_slice: dict[str, float]
    peak_memory_mb: float | None


def measure(
    model: str | Path, slices: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Measured]:
    """Run an exported model on slices in a new process.

    Args:
        model: path, as `open_runtime` takes it.
        slices: arrays of HU, (N, rows, columns) float32 each, by name.

    Returns:
        Labels (N, rows, columns) uint8 and probabilities (N, rows, columns, classes) float32 by the slices' names,
        and the figures.

    Raises:
        ModelError: if the process fails.
    """
    with tempfile.TemporaryDirectory(prefix="liverseg-") as folder:
        given, result = Path(folder, "slices.npz"), Path(folder, "result.npz")
        arrays: dict[str, Any] = dict(slices)
        np.savez(given, **arrays)
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
        process = subprocess.run(
            [sys.executable, "-m", "liverseg_tf.exporting.timing", str(model), str(given), str(result)],
            env=os.environ | {"PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            errors="replace",
        )
        if process.returncode or not result.is_file():
            last = (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
            raise ModelError(f"{model}: could not be run for comparison ({last:.300})")
        with np.load(result) as arrays:
            labels, probabilities = ({n: arrays[f"{n}_{kind}"] for n in slices} for kind in ("labels", "probabilities"))
            return labels, probabilities, Measured(**json.loads(str(arrays["figures"])))


def _run(model: str, given: str, result: str) -> None:
    from liverseg_tf.inference.runtimes import open_runtime

    with np.load(given) as arrays:
        slices = {name: arrays[name] for name in arrays.files}
    before = _memory_mb("VmRSS")
    runtime = open_runtime(model)
    arrays, milliseconds = {}, {}
    for name, hu in slices.items():
        batches = [hu[i : i + _SLICES_A_BATCH] for i in range(0, len(hu), _SLICES_A_BATCH)]
        runtime.labels(batches[0])
        times, labels = [], []
        for batch in batches:
            start = time.perf_counter()
            labels.append(runtime.labels(batch))
            times.append((time.perf_counter() - start) / len(batch))
        milliseconds[name] = 1e3 * min(times)
        arrays[f"{name}_labels"] = np.concatenate(labels)
    peak = _memory_mb("VmHWM")  # before the probabilities, which few ask for
    for name, hu in slices.items():
        batches = [hu[i : i + _SLICES_A_BATCH] for i in range(0, len(hu), _SLICES_A_BATCH)]
        arrays[f"{name}_probabilities"] = np.concatenate([runtime.probabilities(batch) for batch in batches])
    memory = None if before is None or peak is None else max(0.0, peak - before)
    np.savez(result, figures=to_json(asdict(Measured(milliseconds, memory))), **arrays)


def _memory_mb(field: str) -> float | None:
    """A field of Linux's /proc/self/status, in MB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:")), None)


if __name__ == "__main__":
    try:
        _run(*sys.argv[1:])
    except LiverSegError as error:
        sys.exit(str(error))
