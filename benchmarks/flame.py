"""Where the time of one `liverseg predict` goes: wall and CPU by stage, CPU by function within the segmentation.

    python benchmarks/flame.py CT [--runtime NAME]

Everything runs in one process. On a machine that other programs use, trust the shares, not the seconds. Functions
within the segmentation run in several threads at a time; their CPU time is that of these threads. The rest of the
stage's CPU time is that of LiteRT's or TensorFlow's own threads.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

# What Python itself took until here is in the process's CPU.
START = time.perf_counter() - time.process_time()
STAGES, FUNCTIONS = {}, defaultdict(lambda: [0.0, 0])


def stage(owner, name: str, label: str) -> None:
    """Count the wall and the process's CPU of a function that nothing else runs beside."""
    inner = getattr(owner, name)

    def timed(*args, **kwargs):
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return inner(*args, **kwargs)
        finally:
            old = STAGES.get(label, (0.0, 0.0))
            STAGES[label] = (old[0] + time.perf_counter() - wall, old[1] + time.process_time() - cpu)

    setattr(owner, name, timed)


def function(owner, name: str, label: str) -> None:
    """Count the CPU that a function takes of its own thread."""
    inner = getattr(owner, name)

    def timed(*args, **kwargs):
        cpu = time.thread_time()
        try:
            return inner(*args, **kwargs)
        finally:
            FUNCTIONS[label][0] += time.thread_time() - cpu
            FUNCTIONS[label][1] += 1

    setattr(owner, name, timed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ct")
    parser.add_argument("--runtime", default="auto")
    args = parser.parse_args()
    from liverseg_tf.cli.main import main as command
    from liverseg_tf.cli.quiet import load_nibabel_quickly

    load_nibabel_quickly()
    from liverseg_tf import channels_numpy
    from liverseg_tf.cohorts import predict_folder  # noqa: F401 (what the command imports)
    from liverseg_tf.inference import postprocessing, predictor, runtimes, segment

    STAGES["Python and imports"] = (time.perf_counter() - START, time.process_time())
    stage(predictor.Predictor, "__init__", "open the model")
    stage(predictor.Predictor, "read", "read the file")
    stage(predictor.Predictor, "_segment", "segment")
    stage(postprocessing.PostProcessing, "__call__", "post-process")
    stage(predictor.Prediction, "save", "write the mask")
    stage(predictor.Prediction, "statistics", "volumes and lesions")
    function(channels_numpy, "network_input", "CT channels, resize")
    function(runtimes.TFLiteRuntime, "_network", "channels, network, softmax together")
    function(channels_numpy, "softmax", "softmax")
    function(postprocessing.SliceSmoother, "add", "smoothing along the slices")
    function(segment.NetworkScoring, "found", "look for a finding")
    function(segment.NetworkScoring, "labels", "labels at the slices' own size")
    with tempfile.TemporaryDirectory(prefix="liverseg-") as folder:
        words = ["predict", args.ct, "-o", str(Path(folder, "mask.nii.gz")), "--runtime", args.runtime]
        status = command(words)
    whole = time.perf_counter() - START, time.process_time()
    if "post-process" in STAGES:
        clean = STAGES["post-process"]
        STAGES["segment"] = tuple(s - c for s, c in zip(STAGES["segment"], clean, strict=True))
    STAGES["else"] = tuple(whole[i] - sum(found[i] for found in STAGES.values()) for i in range(2))
    print("stage | wall s | share | CPU s")
    for name, (wall, cpu) in STAGES.items():
        print(f"{name} | {wall:.2f} | {100 * wall / whole[0]:.0f} % | {cpu:.2f}")
    print(f"together | {whole[0]:.2f} | | {whole[1]:.2f}")
    print("within the segmentation | CPU s | calls | ms a call")
    for name, (cpu, calls) in FUNCTIONS.items():
        print(f"{name} | {cpu:.2f} | {calls} | {1000 * cpu / calls:.1f}")
    return status


if __name__ == "__main__":
    sys.exit(main())
