"""Gather the training slices of the shipped models into one file.

    python prepare.py --slices SLICES --tumours TUMOURS --negatives NEGATIVES --patients patients.csv -o slices.npz

Folders contain pairs `volume-N.nii.gz`, `segmentation-N.nii.gz`. TUMOURS contains `segmentation-N.nii.gz` with the
tumours of the same slices, and `tumours.csv`, which says for each N whether its tumours are `labelled`, `none` or
`unknown`. Every slice is padded to a square, resized to 256x256 by area averaging, and stored as int16 HU. Where
tumours are unknown, pixels clearly darker than the patient's liver are OPEN: liver or tumour (see `train.py`).
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import tensorflow as tf
from scipy import ndimage

from liverseg_tf.channels import SquareResize, resize_labels
from liverseg_tf.data.cases import Case, find_cases
from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.files import atomic_write

SIZE = 256
FAT_HU = -100  # files clipped to 0..255 HU store all lower values as -1000; it is set to fat, which surrounds organs
LIVER, TUMOUR, OPEN = 1, 2, 254  # OPEN: liver or tumour


def square(hu: np.ndarray) -> np.ndarray:
    """(N, H, W) HU -> (N, SIZE, SIZE) int16, air where padded."""
    shifted = tf.constant(hu + 1024.0)[..., None]  # the padding's 0 means air
    return np.round(SquareResize(SIZE)(shifted).numpy()[..., 0] - 1024.0).astype(np.int16)


def hidden_tumours(hu: np.ndarray, liver: np.ndarray) -> np.ndarray:
    """Mark what in one patient's liver may be tumour.

    The liver's density is the mode of the smoothed HU well inside its label; its spread is the median absolute
    deviation of what lies within 30 HU of the mode. Regions 2.5 spreads (12 HU at least) darker are OPEN, and so is the
    rim of regions 4 spreads (20 HU at least) darker.

    Args:
        hu: (N, H, W) HU.
        liver: (N, H, W) bool.

    Returns:
        (N, H, W) uint8: 0, LIVER, OPEN.
    """
    codes = liver.astype(np.uint8) * LIVER
    smooth = ndimage.gaussian_filter(np.clip(hu, -50, 250).astype(np.float32), (0, 1.3, 1.3))
    distance = np.stack([ndimage.distance_transform_edt(mask) for mask in liver])
    values = smooth[distance > 4]
    if values.size < 200:
        return codes
    counts, edges = np.histogram(values, bins=300, range=(-50, 250))
    mode = edges[ndimage.gaussian_filter1d(counts.astype(float), 5).argmax()] + 0.5
    near = values[np.abs(values - mode) < 30]
    spread = 1.4826 * np.median(np.abs(near - mode))
    plane = ndimage.generate_binary_structure(2, 1)[None]
    maybe = ndimage.binary_opening((smooth < mode - max(12.0, 2.5 * spread)) & (distance > 1.5), plane)
    dark = (smooth < mode - max(20.0, 4.0 * spread)) & (distance > 1.5)
    dark = ndimage.binary_opening(dark, plane, iterations=2)
    codes[liver & (maybe | ndimage.binary_dilation(dark, plane, iterations=2))] = OPEN
    return codes


def tumour_knowledge(folder: Path) -> dict[int, str]:
    """What `tumours.csv` says of each id: `labelled`, `none` or `unknown`."""
    with (folder / "tumours.csv").open(newline="") as file:
        return {int(row["id"]): row["tumours"] for row in csv.DictReader(file)}


def slices_of(case: Case, tumours: Path, knowledge: dict[int, str]) -> tuple[np.ndarray, np.ndarray, str, list]:
    """(N, SIZE, SIZE) HU and codes of one file, what is known of its tumours, and each slice's pixel spacing in mm."""
    volume, known = CTVolume.load(case.volume), knowledge.get(case.id, "unknown")
    file = tumours / f"segmentation-{case.id}.nii.gz"
    mask = MaskVolume.load(case.segmentation if known == "unknown" else file)
    hu = square(np.moveaxis(volume.hu, 2, 0))
    codes = resize_labels(np.moveaxis(mask.labels, 2, 0), SIZE).numpy()
    if volume.hu.max() <= 255:
        hu[hu < -200] = FAT_HU
    if not codes.any():
        known = "no liver"
    elif known == "unknown":
        codes = hidden_tumours(hu, codes > 0)
    factor = max(volume.shape[:2]) / SIZE
    return hu, codes, known, [tuple(s * factor for s in volume.spacing_mm[:2])] * len(hu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", required=True, help="folder of slices whose label 1 is liver with its tumours")
    parser.add_argument("--tumours", required=True, type=Path, help="folder of those slices' masks with the tumours")
    parser.add_argument("--negatives", required=True, help="folder of slices without liver")
    parser.add_argument("--patients", help="CSV of id,patient, for files that share a patient")
    parser.add_argument("-o", "--output", required=True, help="the .npz file to write")
    options = parser.parse_args()

    knowledge = tumour_knowledge(options.tumours)
    stored = {key: [] for key in ("hu", "labels", "known", "case", "patient", "spacing_mm")}
    for folder in (options.slices, options.negatives):
        for case in find_cases(folder, patients=options.patients):
            hu, codes, known, spacing_mm = slices_of(case, options.tumours, knowledge)
            stored["hu"].append(hu)
            stored["labels"].append(codes)
            stored["known"] += [known] * len(hu)
            stored["case"] += [case.id] * len(hu)
            stored["patient"] += [case.patient] * len(hu)
            stored["spacing_mm"] += spacing_mm
    hu, labels = np.concatenate(stored.pop("hu")), np.concatenate(stored.pop("labels"))
    with atomic_write(options.output) as temporary, temporary.open("wb") as file:
        np.savez(file, hu=hu, labels=labels, **{key: np.array(value) for key, value in stored.items()})
    for known in sorted(set(stored["known"])):
        chosen = np.array(stored["known"]) == known
        patients = len(set(np.array(stored["patient"])[chosen]))
        tumours = int((labels[chosen] == TUMOUR).any(axis=(1, 2)).sum())
        print(f"{known}: {chosen.sum()} slices of {patients} patients, {tumours} with tumour")


if __name__ == "__main__":
    main()
