"""Time and peak memory of scoring one large pair of masks: 512 x 512 x 600 voxels with 30 lesions.

Run: python benchmarks/evaluation.py [--folder DIR] [--shift VOXELS]

The masks are made first and written as .nii.gz; then a fresh process scores the two files, including the start of
Python, imports and reading. Peak memory is that process's largest resident set.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (512, 512, 600)
SPACING_MM = (0.75, 0.75, 1.0)
LESIONS = 30


def liver_mask(rng: np.random.Generator, shift: tuple[int, int, int] = (0, 0, 0), scale: float = 1.0) -> np.ndarray:
    """A liver (an ellipsoid of 2.8 l) with 30 separate balls of 3 to 14 mm radius in it, (512, 512, 600) uint8."""
    labels = np.zeros(SHAPE, np.uint8)
    center, radii_mm = np.array([210, 250, 330]) + shift, np.array([100, 70, 95])
    _fill_ellipsoid(labels, center, radii_mm * scale, 1)
    places, radii = [], []
    while len(places) < LESIONS:
        direction = rng.normal(size=3)
        place = direction / np.linalg.norm(direction) * rng.uniform(0.1, 0.85) * radii_mm
        radius = rng.uniform(3, 14)
        if all(np.linalg.norm(place - p) > radius + r + 3 for p, r in zip(places, radii, strict=True)):
            places.append(place)
            radii.append(radius)
            _fill_ellipsoid(labels, center + place / SPACING_MM, np.full(3, radius * scale), 2)
    return labels


def _fill_ellipsoid(labels: np.ndarray, center: np.ndarray, radii_mm: np.ndarray, value: int) -> None:
    radii = radii_mm / SPACING_MM
    box = tuple(slice(max(0, int(c - r)), int(c + r) + 2) for c, r in zip(center, radii, strict=True))
    grid = np.ogrid[box]
    distance = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, center, radii, strict=True))
    labels[box][distance <= 1] = value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="keep the masks here (default: a temporary folder)")
    parser.add_argument("--shift", type=int, default=4, help="voxels that the prediction is shifted by along each axis")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        affine = np.diag([*SPACING_MM, 1.0])
        for name, shift, scale in (("truth", 0, 1.0), ("prediction", args.shift, 0.97)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            labels = liver_mask(np.random.default_rng(0), (shift,) * 3, scale)  # one seed: the same lesions, moved
            nib.save(nib.Nifti1Image(labels, affine), folder / name / "segmentation-0.nii.gz")
        code = (
            "import sys; from liverseg_tf.evaluation.evaluate import evaluate; "
            "e = evaluate(truth=sys.argv[1], prediction=sys.argv[2]); r = e.cases[0]; "
            "print(f\"liver Dice {r['liver_dice']:.3f}, HD95 {r['liver_hd95_mm']:.2f} mm, \""
            "f\"{r['lesions_truth']} and {r['lesions_prediction']} lesions, \""
            "f\"{r['lesions_detected_overlap_above_0.5']} found\")"
        )
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, str(folder / "truth"), str(folder / "prediction")], check=True)
        seconds = time.perf_counter() - start
        peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"{'x'.join(map(str, SHAPE))} voxels: {seconds:.1f} s, {peak_mb:.0f} MB")


if __name__ == "__main__":
    main()
