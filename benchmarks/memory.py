"""Peak memory of predicting large volumes, and whether many volumes keep it flat.

Run: python benchmarks/memory.py [--slices 600 1000] [--side 512] [--model M] [--volumes 100] [--folder 50]

Each volume of side x side x slices int16 is written as .nii.gz and goes through `liverseg predict` in a fresh process,
by default with the shipped model: read, predicted, post-processed, saved, measured. The peak is that process's largest
resident set, TensorFlow itself (about 0.5 GB) included. Then one process goes through many small volumes with
`slice_dataset`, another predicts a folder of them, and each prints its resident set meanwhile.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import nibabel as nib
import numpy as np

PREDICT = """
import resource, sys, time
from liverseg_tf.cli.main import main
start = time.perf_counter()
status = main(["predict", sys.argv[1], "-o", sys.argv[2], "--model", sys.argv[3]])
print(round(time.perf_counter() - start, 1), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(status)
"""


def write_volume(path: Path, side: int, slices: int) -> None:
    """A cylinder of 50 HU in air, with noise that differs from slice to slice but repeats after 16."""
    rng = np.random.default_rng(0)
    y, x = np.ogrid[:side, :side]
    body = np.where(np.hypot(y - side / 2, x - side / 2) < 0.4 * side, 50, -1024)
    tile = (body + rng.normal(0, 12, (16, side, side))).astype(np.int16)
    hu = np.tile(tile, (-(-slices // 16), 1, 1))[:slices]
    image = nib.Nifti1Image(hu.T, np.diag([-0.75, -0.75, 1.0, 1.0]))
    nib.save(image, path)


def in_fresh_process(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1]


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def read_many(count: int) -> None:
    """Go through `count` volumes; print the resident set after each tenth of them."""
    from liverseg_tf.data.cases import Case
    from liverseg_tf.data.phantom import write_phantoms
    from liverseg_tf.data.slices import slice_dataset

    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(folder, 2, seed=1, shape=(256, 256, 24))
        pairs = [[Path(folder) / f"{kind}-{i}.nii.gz" for kind in ("volume", "segmentation")] for i in range(2)]
        # the same two files again and again: each is opened, decompressed and read anew
        cases = [Case(i, str(i), *pairs[i % 2]) for i in range(count)]
        dataset = slice_dataset(cases, 128, shuffle=True, with_index=True).batch(16)
        slices, every, told = 0, count * 24 // 10, []
        for _, labels, _ in dataset:
            slices += len(labels)
            if slices >= every * (len(told) + 1):
                told.append(resident_mb())
        print(f"{count} volumes read, {slices} slices; resident MB on the way: {' '.join(f'{mb:.0f}' for mb in told)}")


def predict_many(count: int, model: str) -> None:
    """Predict a folder of `count` volumes; print the resident set after each tenth of them."""
    from liverseg_tf.inference.jobs import plan
    from liverseg_tf.inference.predict_files import predict_files
    from liverseg_tf.inference.predictor import Predictor

    with tempfile.TemporaryDirectory() as folder:
        write_volume(Path(folder, "volume-0.nii"), 256, 8)
        for number in range(1, count):
            os.link(Path(folder, "volume-0.nii"), Path(folder, f"volume-{number}.nii"))
        told = []
        predict_files(
            Predictor(model), plan([folder], Path(folder, "out")), on_done=lambda row: told.append(resident_mb())
        )
        print(
            f"{count} volumes of 256x256x8 predicted; resident MB on the way: "
            f"{' '.join(f'{mb:.0f}' for mb in told[:: max(1, count // 10)])} {told[-1]:.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, nargs="*", default=[600, 1000], help="of the volumes to predict")
    parser.add_argument("--side", type=int, default=512, help="their rows and columns (default: %(default)s)")
    parser.add_argument("--model", default="shipped", help="what predicts (default: %(default)s)")
    parser.add_argument("--volumes", type=int, default=100, help="small volumes to read (default: %(default)s)")
    parser.add_argument("--folder", type=int, default=50, help="small volumes to predict (default: %(default)s)")
    parser.add_argument("--in-process", choices=("read", "predict"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_process == "read":
        return read_many(args.volumes)
    if args.in_process == "predict":
        return predict_many(args.folder, args.model)
    with tempfile.TemporaryDirectory() as temporary:
        for slices in args.slices:
            paths = [Path(temporary, name) for name in ("volume-0.nii.gz", "segmentation-0.nii.gz")]
            start = time.perf_counter()
            write_volume(paths[0], args.side, slices)
            written = time.perf_counter() - start
            taken, peak = in_fresh_process("-c", PREDICT, *map(str, paths), args.model).split()
            print(
                f"{args.side}x{args.side}x{slices}: {float(peak) * 1024 / 1e9:.2f} GB at the peak, {taken} s to "
                f"predict and save ({written:.0f} s to write the input)",
                flush=True,
            )
    if args.volumes:
        print(in_fresh_process(__file__, "--in-process", "read", "--volumes", str(args.volumes)), flush=True)
    if args.folder:
        print(
            in_fresh_process(__file__, "--in-process", "predict", "--folder", str(args.folder), "--model", args.model)
        )
    return None


if __name__ == "__main__":
    main()
