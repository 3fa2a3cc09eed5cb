"""Time and memory of each runtime on this machine, each measured in its own processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from liverseg_tf.errors import LiverSegError, ModelError
from liverseg_tf.inference.choice import RUNTIMES, choose
from liverseg_tf.shipped import locate_model
from liverseg_tf.strict_json import to_json

# Number of slices from the middle of the CT over which the time of one slice is averaged.
_SLICES = 16
_PHANTOM_SHAPE = (512, 512, 60)
# Runs a command and writes its seconds and peak memory. A child process inherits the peak memory of the process that
# starts it, so a small process must start it.
_WAITER = """
import subprocess, sys, time
began = time.perf_counter()
status = subprocess.call(sys.argv[2:])
seconds = time.perf_counter() - began
try:
    import resource
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
except ImportError:
    peak = 0
with open(sys.argv[1], "w") as file:
    file.write(f"{seconds} {peak}")
sys.exit(status if status >= 0 else 1)
"""


@dataclass(frozen=True)
class Measurement:
    """Time and memory of one runtime.

    Attributes:
        runtime: its name, as in `choose`.
        milliseconds_a_slice: from HU in memory to a mask, with smoothing and post-processing; the faster of two runs
            after a warm-up run, on 16 slices from the middle of the CT.
        command_s: seconds of `liverseg predict`, from its start to the mask on disk.
        peak_memory_mb: of that command; None where the operating system doesn't report it.
        is_default: whether `auto` chooses it on this machine.
    """

    runtime: str
    milliseconds_a_slice: float
    command_s: float
    peak_memory_mb: float | None
    is_default: bool


def benchmark(
    ct: str | Path | None = None,
    model: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Measurement]:
    """Measure every runtime that a model has, the default one first.

    Args:
        ct: what to segment; by default a phantom of 512 x 512 x 60.
        model: as `Predictor` takes it, as a path; by default the shipped one.
        progress: called with the number of runtimes done, their total, and the name of the next.

    Raises:
        LiverSegError: for a model or a CT that can't be used.
    """
    model = locate_model(model)
    default = choose(model).runtime
    runtimes = [default]
    for runtime in RUNTIMES[1:]:
        try:
            choose(model, runtime)
        except ModelError:
            continue
        runtimes += [runtime] * (runtime not in runtimes)
    with tempfile.TemporaryDirectory(prefix="liverseg-") as folder:
        if ct is None:
            from liverseg_tf.data.phantom import write_phantoms

            write_phantoms(folder, cases=1, seed=0, shape=_PHANTOM_SHAPE)
            ct = next(Path(folder).glob("volume-*"))
        found = []
        for done, runtime in enumerate(runtimes):
            if progress:
                progress(done, len(runtimes), runtime)
            slices, _, _ = _run("-m", "liverseg_tf.inference.benchmark", str(model), runtime, str(ct))
            words = ["--model", str(model), "--runtime", runtime, "-o", str(Path(folder, f"{runtime}.nii.gz"))]
            _, seconds, memory = _run("-m", "liverseg_tf", "predict", *words, "--", str(ct))
            found.append(Measurement(runtime, json.loads(slices), seconds, memory, runtime == default))
    return found


def _run(*words: str) -> tuple[str, float, float | None]:
    """Run Python with the given arguments; returns its stdout, seconds, and peak memory in MB."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    with tempfile.TemporaryDirectory(prefix="liverseg-") as folder:
        figures = Path(folder, "figures")
        done = subprocess.run(
            [sys.executable, "-S", "-c", _WAITER, str(figures), sys.executable, *words],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PYTHONPATH": path},
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise LiverSegError(f"could not be measured: {last:.300}")
        seconds, peak = map(float, figures.read_text().split())
    memory_mb = peak * (1 if sys.platform == "darwin" else 1024) / 1e6
    return done.stdout, seconds, memory_mb or None


def _milliseconds_a_slice(model: str, runtime: str, ct: str) -> float:
    from liverseg_tf.data.volume import CTVolume
    from liverseg_tf.inference.predictor import Predictor

    predictor = Predictor(model, runtime=runtime, extent=False, second_look=None)
    volume = predictor.read(ct)
    count = min(_SLICES, volume.shape[2])
    first = (volume.shape[2] - count) // 2
    part = CTVolume.from_array(volume.slices(first, first + count).transpose(1, 2, 0), volume.spacing_mm)
    return 1e3 * min([predictor.predict(part).seconds for _ in range(3)][1:]) / count


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        print(to_json(_milliseconds_a_slice(*sys.argv[1:])))  # noqa: T201 (what the process was started for)
    except LiverSegError as error:
        sys.exit(str(error))
