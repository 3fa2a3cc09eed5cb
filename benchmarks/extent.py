"""Does slice selection lose anything? Masks from the slices that can hold the liver, against masks from all slices.

    python benchmarks/extent.py CT... [--phantoms N] [--model M] [-o FILE.json]

For CTs whose slices are 1.7 mm apart or more; of thinner ones the network segments some only (`slice_step.py`).
Each CT is segmented both ways by the same network, as it is and changed: mirrored (situs inversus), turned upside down,
with 30 mm of air through the liver's middle, cut at the liver's middle (the field of view ends in it), and with the
liver's slices below all others (a transplant in the pelvis). A slice's scores are cached, so that a change takes little
time. Folders are searched for `volume-*`. Prints a line for each CT and change, then sums.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import liverseg_tf as ls
from liverseg_tf.data.volume import CTVolume

_GAP_MM = 30.0
_PHANTOM_SHAPE = (128, 128, 60)


class Remembering:
    """A runtime that keeps each slice's scores, and counts the slices that it was asked for."""

    is_remote = False

    def __init__(self, runtime):
        self._runtime, self._known = runtime, {}
        self.config, self.slices_at_once, self.asked = runtime.config, runtime.slices_at_once, 0

    def at_network_size(self, hu: np.ndarray) -> np.ndarray:
        self.asked += len(hu)
        names = [hashlib.blake2b(one.tobytes()).digest() for one in hu]
        new = [index for index, name in enumerate(names) if name not in self._known]
        if new:
            for index, scores in zip(new, self._runtime.at_network_size(hu[new]), strict=True):
                self._known[names[index]] = scores
        return np.stack([self._known[name] for name in names])

    def forget(self) -> None:
        self._known.clear()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cts", nargs="*", metavar="CT")
    parser.add_argument("--phantoms", type=int, default=0, metavar="N", help="phantoms to segment too")
    parser.add_argument("--model", help="default: the shipped one")
    parser.add_argument("-o", "--output", help="JSON file to write")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    predictors = [ls.Predictor(args.model, extent=extent) for extent in (True, False)]
    runtime = Remembering(predictors[0].runtimes[0])
    for predictor in predictors:
        predictor.runtimes = [runtime]
    rows = []
    with tempfile.TemporaryDirectory(prefix="liverseg-") as folder:
        if args.phantoms:
            ls.write_phantoms(folder, args.phantoms, shape=_PHANTOM_SHAPE)
        for path in [path for given in (*args.cts, folder) for path in volumes(Path(given))]:
            rows += [{"ct": path.name} | row for row in compared(path, predictors, runtime)]
            runtime.forget()
    table(rows)
    if args.output:
        Path(args.output).write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def volumes(path: Path) -> list[Path]:
    return sorted(path.glob("volume-*")) if path.is_dir() and any(path.glob("volume-*")) else [path] * path.is_file()


def compared(path: Path, predictors: list[ls.Predictor], runtime: Remembering) -> Iterator[dict]:
    """A row for the CT as it is, and one for each change of it."""
    volume = predictors[0].read(path)
    hu = volume.slices(0, volume.shape[2]).transpose(1, 2, 0)
    whole = both_ways(CTVolume.from_array(hu, volume.spacing_mm), predictors, runtime)
    yield {"change": "none", **whole[0]}
    there = np.flatnonzero(whole[1].any((0, 1)))
    if not len(there):
        return
    for name, changed in changes(hu, int(there[0]), int(there[-1]), volume.spacing_mm[2]):
        row, _ = both_ways(CTVolume.from_array(changed, volume.spacing_mm), predictors, runtime)
        yield {"change": name, **row}


def changes(hu: np.ndarray, lowest: int, highest: int, spacing_mm: float) -> Iterator[tuple[str, np.ndarray]]:
    middle, half = (lowest + highest) // 2, max(1, round(_GAP_MM / spacing_mm / 2))
    gap = hu.copy()
    gap[..., max(middle - half, 0) : middle + half] = -1024
    yield "30 mm of air through the liver", gap
    yield "cut, lower part", hu[..., : middle + 1]
    yield "cut, upper part", hu[..., middle:]
    yield "upside down", hu[..., ::-1]
    liver = slice(lowest, highest + 1)
    yield "liver below all", np.concatenate([hu[..., liver], hu[..., :lowest], hu[..., highest + 1 :]], axis=2)
    yield "mirrored", hu[:, ::-1]


def both_ways(volume: CTVolume, predictors: list[ls.Predictor], runtime: Remembering) -> tuple[dict, np.ndarray]:
    masks, asked = [], []
    for predictor in predictors:
        runtime.asked = 0
        masks.append(predictor.predict(volume).canonical_labels)
        asked.append(runtime.asked)
    found, every = masks
    counts = {
        "liver": every > 0,
        "missed liver": (every > 0) & (found == 0),
        "tumour": every == 2,
        "missed tumour": (every == 2) & (found != 2),
        "more": (every == 0) & (found > 0),
    }
    row = {name: int(np.count_nonzero(mask)) for name, mask in counts.items()}
    return row | {"slices": asked[1], "through the network": asked[0]}, every


def table(rows: list[dict]) -> None:
    names = ["liver", "missed liver", "tumour", "missed tumour", "more", "slices", "through the network"]
    print(" | ".join(["CT", "change", *names]))
    for row in rows:
        print(" | ".join(map(str, (row["ct"], row["change"], *(row[name] for name in names)))))
    print(" | ".join(["all", "", *(str(sum(row[name] for row in rows)) for name in names)]))


if __name__ == "__main__":
    sys.exit(main())
