"""Time and bytes per volume of a cohort, by step; then the cohort on Ray with 1 and 2 workers.

    python benchmarks/cohort.py [--volumes N] [--shape ROWS COLUMNS SLICES] [--model MODEL] [-o FILE.json]

Phantoms as .nii.gz. First the steps run one after another in this process, volume by volume, with one thread.
Then `predict_files` runs whole cohorts, in turns with 1 and 2 workers of one thread, and 1 worker of two threads.
Throughput is counted after each worker has finished its first volume, when the model is loaded and the graph traced.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

STEPS = ("read", "decompress", "channels", "network", "post-processing", "statistics", "write")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", type=int, default=6)
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 256, 40), metavar=("ROWS", "COLUMNS", "SLICES"))
    parser.add_argument("--model", help="path (default: shipped)")
    parser.add_argument("--rounds", type=int, default=1, help="how often each number of workers is measured")
    parser.add_argument("-o", "--output", help="JSON file to write")
    args = parser.parse_args()

    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    import liverseg_tf as ls
    from liverseg_tf.inference.jobs import plan

    with tempfile.TemporaryDirectory(prefix="liverseg-") as temporary:
        folder = Path(temporary)
        ls.write_phantoms(folder / "ct", cases=args.volumes, seed=1, shape=tuple(args.shape))
        jobs = plan([folder / "ct"], folder / "steps")
        predictor = ls.Predictor(args.model)
        print(f"{args.volumes} phantoms of {args.shape}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
        found = {"steps": by_steps(predictor, jobs), "cohorts": []}
        for _ in range(args.rounds):
            for workers, threads in ((1, 1), (2, 1), (1, 2)):
                found["cohorts"].append(cohort(predictor, folder, jobs, workers, threads))
    found |= {"shape": args.shape, "volumes": args.volumes, "cores": os.cpu_count()}
    if args.output:
        Path(args.output).write_text(json.dumps(found, indent=2) + "\n")
    return 0


def by_steps(predictor, jobs) -> dict:
    """Median seconds of each step, and bytes."""
    import tensorflow as tf

    from liverseg_tf.data.volume import CTVolume
    from liverseg_tf.inference.slice_function import SliceFunction

    config = predictor.config
    channels = tf.function(SliceFunction(None, config).network_input, [tf.TensorSpec((None, None, None), tf.float32)])
    rows, sizes = [], []
    for job in [jobs[0], *jobs]:  # the first time traces the graphs, and doesn't count
        row = {}

        def took(step, since, row=row):
            row[step] = time.perf_counter() - since
            return time.perf_counter()

        began = time.perf_counter()
        content = job.source.read_bytes()
        took("read", began)
        began = time.perf_counter()
        volume = CTVolume.load(job.source, hu_range=config.hu_range)  # the file lies in memory by now
        took("decompress", began)
        batch = predictor.batch_slices(volume)
        batches = [volume.slices(i, min(i + batch, volume.shape[2])) for i in range(0, volume.shape[2], batch)]
        began = time.perf_counter()
        for hu in batches:
            channels(tf.constant(hu)).numpy()
        began = took("channels", began)
        prediction = predictor.predict(volume)
        took("network", began)
        labels = prediction.canonical_labels.copy()
        began = time.perf_counter()
        if predictor.postprocessing is not None:
            predictor.postprocessing(labels, volume.spacing_mm, volume.voxel_volume_ml)
        took("post-processing", began)
        row["network"] -= row["channels"] + row["post-processing"]  # they are within `predict`
        began = time.perf_counter()
        prediction.statistics()
        began = took("statistics", began)
        prediction.save(job.target)
        took("write", began)
        rows.append(row)
        voxels = np.prod(volume.shape, dtype=int)
        sizes.append((len(content), int(voxels) * 2, job.target.stat().st_size))
    seconds = {step: statistics.median(row[step] for row in rows[1:]) for step in STEPS}
    whole = sum(seconds.values())
    for step, value in seconds.items():
        print(f"{step:16}{value:8.3f} s{value / whole:8.1%}")
    read, voxels, written = (statistics.median(column) for column in zip(*sizes[1:], strict=True))
    print(f"{'together':16}{whole:8.3f} s")
    print(f"MB: read {read / 1e6:.2f}, voxels {voxels / 1e6:.2f}, written {written / 1e6:.3f}\n")
    return {"seconds": seconds, "bytes_read": read, "bytes_of_voxels": voxels, "bytes_written": written}


def cohort(predictor, folder: Path, jobs, workers: int, threads: int) -> dict:
    """Throughput of a cohort on Ray, and whether its masks are those of this process."""
    from liverseg_tf.data.volume import MaskVolume
    from liverseg_tf.inference.jobs import plan
    from liverseg_tf.inference.predict_files import predict_files

    output = folder / f"{workers}-{threads}"
    done = []
    began = time.perf_counter()
    rows = predict_files(
        predictor,
        plan([folder / "ct"], output),
        on_done=lambda row: done.append(time.perf_counter()),
        engine="ray",
        workers=workers,
        threads=threads,
    )
    first = done[workers - 1]
    differing = sum(
        int(np.count_nonzero(MaskVolume.load(row["output"]).labels != MaskVolume.load(job.target).labels))
        for row, job in zip(rows, jobs, strict=True)
    )
    found = {
        "workers": workers,
        "threads": threads,
        "volumes_a_minute": 60 * (len(done) - workers) / (done[-1] - first),
        "seconds_to_first": first - began,
        "differing_voxels": differing,
        "load": os.getloadavg()[0],
    }
    print(
        f"{workers} workers of {threads} threads: {found['volumes_a_minute']:6.1f} volumes a minute, first after "
        f"{found['seconds_to_first']:.0f} s, {differing} voxels differ from this process's, load {found['load']:.1f}",
        flush=True,
    )
    return found


if __name__ == "__main__":
    sys.exit(main())
