"""What interpolated slices do to masks: the network on slices some mm apart, against the network on all slices.

    python benchmarks/slice_step.py [CT...] [--phantoms N] [--distances MM...] [--model M] [-o FILE.json]

Without a second look. With a mask beside the CT (`segmentation-7.nii.gz` of `volume-7.nii.gz`), and for phantoms, Dice
is also that of the true mask, and true lesions are counted that share a voxel with predicted tumour. Phantoms are those
of the first seeds that have tumours; their 240 slices are about 1.2 mm apart. A slice's scores are computed once.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

import numpy as np
from extent import Remembering
from prediction import mask_of
from scipy import ndimage

import liverseg_tf as ls
from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.inference import extent
from liverseg_tf.labels import TUMOUR

_PHANTOM_SHAPE = (256, 256, 240)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cts", nargs="*", metavar="CT")
    parser.add_argument("--phantoms", type=int, default=0, metavar="N")
    parser.add_argument("--distances", type=float, nargs="+", default=[3.25], metavar="MM")
    parser.add_argument("--model", help="default: the shipped one")
    parser.add_argument("-o", "--output", help="JSON file to write")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    predictor = ls.Predictor(args.model, second_look=None)
    rows = []
    for name, volume, truth in cases(args.cts, args.phantoms):
        predictor.runtimes = [Remembering(predictor.runtimes[0]._runtime if rows else predictor.runtimes[0])]
        predictor.extent = False
        every = predictor.predict(volume).canonical_labels
        rows.append({"ct": name, "step": 1, "apart_mm": round(volume.spacing_mm[2], 2)} | scores(every, every, truth))
        print(json.dumps(rows[-1]), flush=True)
        predictor.extent = True
        for extent._MOST_APART_MM in args.distances:
            step = extent.slice_step(volume.spacing_mm[2])
            found = predictor.predict(volume).canonical_labels
            row = {"ct": name, "step": step, "apart_mm": round(step * volume.spacing_mm[2], 2)}
            rows.append(row | scores(found, every, truth))
            print(json.dumps(rows[-1]), flush=True)
    if args.output:
        Path(args.output).write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def cases(cts: list[str], phantoms: int):
    """Names, CTs and true labels, None where unknown."""
    for path in cts:
        truth = mask_of(Path(path))
        yield Path(path).name, CTVolume.load(path), None if truth is None else MaskVolume.load(truth).labels
    seed = -1
    for _ in range(phantoms):
        labels = np.zeros(1)
        while not (labels == TUMOUR).any():
            seed += 1
            phantom = ls.make_phantom(seed, _PHANTOM_SHAPE)
            labels = phantom.labels
        yield f"phantom {seed}", CTVolume.from_array(phantom.hu, spacing_mm=phantom.spacing_mm), labels


def scores(found: np.ndarray, every: np.ndarray, truth: np.ndarray | None) -> dict:
    row = {"liver, to all slices": dice(found > 0, every > 0), "tumour, to all slices": dice(found == 2, every == 2)}
    if truth is not None:
        lesions, count = ndimage.label(truth == TUMOUR)
        hit = np.setdiff1d(lesions[found == TUMOUR], [0]).size
        row |= {"liver, to the truth": dice(found > 0, truth > 0), "tumour, to the truth": dice(found == 2, truth == 2)}
        row |= {"lesions": count, "found": hit}
    return row


def dice(a: np.ndarray, b: np.ndarray) -> float | None:
    total = int(a.sum()) + int(b.sum())
    return round(2 * int((a & b).sum()) / total, 4) if total else None


if __name__ == "__main__":
    sys.exit(main())
