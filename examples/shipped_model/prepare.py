"""Gather the training slices of the shipped model into one file.

    python prepare.py --slices MSD_SLICES --negatives NEGATIVES --patients patients.csv -o slices.npz

Each folder holds pairs `volume-N.nii.gz`, `segmentation-N.nii.gz`. Every slice is padded to a square, brought to
256x256 by area averaging, and stored as int16 HU. The liver's label hides the real tumours in it, so pixels that are
clearly darker than the patient's liver get a code of their own: what they are is left open (see `train.py`).
"""

from __future__ import annotations

import argparse

import numpy as np
import tensorflow as tf
from scipy import ndimage

from liverseg_tf.channels import SquareResize, resize_labels
from liverseg_tf.data.cases import find_cases
from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.files import atomic_write

SIZE = 256
FAT_HU = -100  # files clipped to 0..255 HU store all below as -1000; fat is what lies around organs
LIVER, OPEN, DARK = (
    1,
    254,
    253,
)  # OPEN: liver or tumour; DARK: the same, and dark enough for a tumour


def square(hu: np.ndarray) -> np.ndarray:
    """(N, H, W) HU -> (N, SIZE, SIZE) int16, air where padded."""
    shifted = tf.constant(hu + 1024.0)[..., None]  # the padding's 0 means air
    return np.round(SquareResize(SIZE)(shifted).numpy()[..., 0] - 1024.0).astype(np.int16)


def hidden_tumours(hu: np.ndarray, liver: np.ndarray) -> np.ndarray:
    """Mark what in one patient's liver may be tumour.

    The liver's density is the mode of the smoothed HU well inside its label; its spread is the median absolute
    deviation of what lies within 30 HU of the mode. Regions 2.5 spreads (12 HU at least) darker are OPEN; regions
    4 spreads (20 HU at least) darker, of 30 pixels or more after opening, neither fat nor at the edge alone, are DARK.

    Args:
        hu: (N, H, W) HU.
        liver: (N, H, W) bool.

    Returns:
        (N, H, W) uint8: 0, LIVER, OPEN, DARK.
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
    maybe = (smooth < mode - max(12.0, 2.5 * spread)) & (distance > 1.5)
    maybe = ndimage.binary_opening(maybe, plane)
    certain = (smooth < mode - max(20.0, 4.0 * spread)) & (distance > 1.5)
    certain = ndimage.binary_opening(certain, plane, iterations=2)
    within_slices = np.zeros((3, 3, 3), bool)
    within_slices[1] = True
    regions, number = ndimage.label(certain, within_slices)
    index = np.arange(1, number + 1)
    area = ndimage.sum_labels(certain, regions, index)
    depth = ndimage.maximum(distance, regions, index) if number else np.zeros(0)
    density = ndimage.median(hu, regions, index) if number else np.zeros(0)  # fat in a fissure is no tumour
    certain = np.isin(
        regions,
        index[(area >= 30) & (np.asarray(depth) > 5) & (np.asarray(density) > 0)],
    )
    codes[liver & (maybe | ndimage.binary_dilation(certain, plane, iterations=2))] = OPEN
    codes[certain] = DARK
    return codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--slices",
        required=True,
        help="folder of slices whose label 1 is liver with its tumours",
    )
    parser.add_argument("--negatives", required=True, help="folder of slices without liver")
    parser.add_argument("--patients", help="CSV of id,patient, for files that share a patient")
    parser.add_argument("-o", "--output", required=True, help="the .npz file to write")
    options = parser.parse_args()

    stored = {"hu": [], "labels": [], "case": [], "patient": [], "spacing_mm": []}
    for folder in (options.slices, options.negatives):
        for case in find_cases(folder, patients=options.patients):
            volume, mask = (
                CTVolume.load(case.volume),
                MaskVolume.load(case.segmentation),
            )
            hu = square(np.moveaxis(volume.hu, 2, 0))
            labels = resize_labels(np.moveaxis(mask.labels, 2, 0), SIZE).numpy()
            if volume.hu.max() <= 255:
                hu[hu < -200] = FAT_HU
            if labels.any():
                labels = hidden_tumours(hu, labels > 0)
            factor = max(volume.shape[:2]) / SIZE
            stored["hu"].append(hu)
            stored["labels"].append(labels)
            stored["case"] += [case.id] * len(hu)
            stored["patient"] += [case.patient] * len(hu)
            stored["spacing_mm"] += [tuple(s * factor for s in volume.spacing_mm[:2])] * len(hu)
    hu, labels = np.concatenate(stored["hu"]), np.concatenate(stored["labels"])
    with atomic_write(options.output) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            hu=hu,
            labels=labels,
            case=np.array(stored["case"], np.int32),
            patient=np.array(stored["patient"]),
            spacing_mm=np.array(stored["spacing_mm"], np.float32),
        )
    liver = labels > 0
    print(
        f"{len(hu)} slices of {len(set(stored['patient']))} patients, {int(liver.any(axis=(1, 2)).sum())} with liver; "
        f"of the liver's pixels {100 * (labels == DARK).sum() / liver.sum():.1f} % are dark, "
        f"{100 * (labels == OPEN).sum() / liver.sum():.1f} % open"
    )


if __name__ == "__main__":
    main()
