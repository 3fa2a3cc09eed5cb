"""`liverseg predict` of this checkout against another one's, in turns: wall and CPU time, peak memory, and both masks.

    git worktree add /tmp/before COMMIT
    python benchmarks/prediction.py /tmp/before CT... [--slices N] [--rounds N] [-o FILE.json]

Whole commands, from their start to the mask on disk. On a machine that other programs use, trust only the ratios, and
those of CPU time more than those of wall time. `--slices N` makes each CT N slices long: its lowest and its highest ten
are repeated below and above it, back and forth. With a mask beside the CT (`segmentation-7.nii.gz` of
`volume-7.nii.gz`) both masks are scored against it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

HERE = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", help="folder of the other checkout")
    parser.add_argument("cts", nargs="+", metavar="CT")
    parser.add_argument("--slices", type=int, metavar="N", help="make each CT this many slices long")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("-o", "--output", help="JSON file to write")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="liverseg-") as folder:
        for given in args.cts:
            ct = lengthened(given, args.slices, Path(folder, "long.nii.gz")) if args.slices else Path(given)
            took = {"before": [], "after": []}
            for _ in range(args.rounds):
                for name, root in (("before", Path(args.before)), ("after", HERE)):
                    took[name].append(command(root, ct, Path(folder, f"{name}.nii.gz")))
            rows.append(compared(given, took, Path(folder), None if args.slices else mask_of(ct)))
            print(json.dumps(rows[-1]), flush=True)
    if args.output:
        Path(args.output).write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def command(root: Path, ct: Path, mask: Path) -> dict[str, float]:
    """Seconds of wall and of CPU, and peak MB."""
    environment = os.environ | {"PYTHONPATH": str(root)}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "liverseg_tf", "predict", str(ct), "-o", str(mask)],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{root}: predict failed")
    wall = time.perf_counter() - began
    return {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss * 1024 / 1e6}


def compared(ct: str, took: dict[str, list[dict]], folder: Path, truth: Path | None) -> dict:
    row: dict = {"ct": Path(ct).name}
    for key in ("wall_s", "cpu_s", "peak_mb"):
        before, after = (statistics.median(run[key] for run in took[name]) for name in ("before", "after"))
        row[key] = {"before": round(before, 2), "after": round(after, 2), "ratio": round(after / before, 3)}
    masks = {name: np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj) for name in ("before", "after")}
    if truth:
        masks["truth"] = np.asarray(nib.load(truth).dataobj)
    for name, least in (("liver", 1), ("tumour", 2)):
        row[name] = {"voxels": {which: int(np.count_nonzero(mask >= least)) for which, mask in masks.items()}}
        row[name]["dice after against before"] = dice(masks["after"] >= least, masks["before"] >= least)
        if truth:
            for which in ("before", "after"):
                row[name][f"dice {which} against truth"] = dice(masks[which] >= least, masks["truth"] >= least)
    return row


def dice(a: np.ndarray, b: np.ndarray) -> float | None:
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return round(2 * np.count_nonzero(a & b) / total, 4) if total else None


def mask_of(ct: Path) -> Path | None:
    name = re.sub(r"^volume-", "segmentation-", ct.name)
    return ct.with_name(name) if name != ct.name and ct.with_name(name).is_file() else None


def lengthened(ct: str, slices: int, path: Path) -> Path:
    """A CT with its ends repeated, each time the other way round, so that neighbours stay neighbours."""
    image = nib.load(ct)
    voxels = np.asarray(image.dataobj).astype(np.int16)
    more = max(0, slices - voxels.shape[2])
    below, above = more // 2, more - more // 2
    places = np.arange(-below, voxels.shape[2] + above)
    ends = np.concatenate([np.arange(10), np.arange(10)[::-1]])
    places = np.where(places < 0, ends[(-1 - places) % 20], places)
    beyond = places - voxels.shape[2]
    places = np.where(beyond >= 0, voxels.shape[2] - 1 - ends[beyond % 20], places)
    nib.save(nib.Nifti1Image(voxels[..., places], image.affine), path)
    return path


if __name__ == "__main__":
    sys.exit(main())
