"""What fixed seeds have given since figures were measured with them: block means, coarse enough for other machines.

Who changes a phantom's anatomy, the augmentation or the lesions on purpose says so in the changelog and writes the
file anew: `python -m tests.data.reference`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("reference.npz")
# rounding differs between machines: a voxel in a hundred by 1 HU, a few labels on edges
HU_TOLERANCE, LABELS_TOLERANCE = 0.05, 2


def check(name: str, found: dict[str, np.ndarray]) -> None:
    """Compare with the file."""
    with np.load(FILE) as reference:
        for part, values in found.items():
            tolerance = LABELS_TOLERANCE if part == "labels" else HU_TOLERANCE
            np.testing.assert_allclose(
                values, reference[f"{name}_{part}"], rtol=0, atol=tolerance, err_msg=f"{name} {part}"
            )


def blocks(array, reduce=np.mean) -> np.ndarray:
    """(cases, rows, columns, ...) by blocks of 8 x 8 (and 4 along a further axis)."""
    array = np.asarray(array, np.float64)
    sizes = (8, 8, 4)[: array.ndim - 1]
    split = [part for count, size in zip(array.shape[1:], sizes, strict=True) for part in (count // size, size)]
    return reduce(array.reshape(len(array), *split), tuple(range(2, array.ndim * 2, 2)))


def of_slices(hu, labels) -> dict[str, np.ndarray]:
    labels = np.asarray(labels)
    return {
        "hu": blocks(hu).round(2),
        "labels": np.stack([blocks(labels == label, np.sum) for label in (1, 2)]).astype(np.int16),
    }


def of_phantoms(phantoms) -> dict[str, np.ndarray]:
    return {
        **of_slices([p.hu for p in phantoms], [p.labels for p in phantoms]),
        "affine": np.array([p.affine for p in phantoms]).round(3),
        "liver_ml": np.array([p.description["liver_ml"] for p in phantoms]).round(2),
        "lesion_mm": np.array([t["diameter_mm"] for p in phantoms for t in p.description["tumours"]]).round(2),
    }


def slices(count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """(count, 64, 80) HU and labels: a body on a couch, with lungs, noise, a liver and a tumour."""
    y, x = np.mgrid[:64, :80]
    hu = np.full((64, 80), -1000.0)
    hu[((y - 28) / 22) ** 2 + ((x - 40) / 34) ** 2 < 1] = 20.0
    labels = (((y - 27) / 15) ** 2 + ((x - 28) / 17) ** 2 < 1).astype(np.uint8)
    labels[(y - 25) ** 2 + (x - 33) ** 2 < 4**2] = 2
    hu[labels > 0] = 100.0 - 40.0 * (labels[labels > 0] == 2)
    hu[((y - 27) / 10) ** 2 + ((x - 62) / 8) ** 2 < 1] = -850.0
    hu[55:57, 10:70] = 0.0
    return hu + np.random.default_rng(0).normal(0, 10, (count, *hu.shape)), np.stack([labels] * count)


def of_augmentation(**options) -> dict[str, np.ndarray]:
    from liverseg_tf.data.augmentation import Augmentation

    return of_slices(*Augmentation(**options)(*slices(), (3, 4)))


def of_synthesis(**options) -> dict[str, np.ndarray]:
    from liverseg_tf.data.lesion_synthesis import LesionSynthesis

    return of_slices(*LesionSynthesis(**options)(*slices(), (3, 4), (1.5, 1.2)))


OFTEN = dict.fromkeys(
    ("blur_probability", "thick_slice_probability", "couch_removed_probability", "couch_added_probability"), 0.5
)
OPTIONS = {
    "augmentation": {},
    "augmentation_often": {**OFTEN, "elastic": 0.02, "flip_rows": True, "flip_columns": True},
    "synthesis": {},
    "synthesis_often": {
        **{f"{what}_probability": 0.5 for what in ("hyperdense", "necrosis", "rim", "calcified")},
        "probability": 1.0,
        "max_lesions": 3,
    },
}


def main() -> None:
    from liverseg_tf.data.phantom import make_phantom
    from tests.data.test_phantom import PATIENTS, SHAPE

    found = {"phantom": of_phantoms([make_phantom((7, i), SHAPE) for i in range(PATIENTS)])}
    for name, options in OPTIONS.items():
        found[name] = (of_augmentation if name.startswith("augmentation") else of_synthesis)(**options)
    np.savez_compressed(FILE, **{f"{n}_{part}": values for n, parts in found.items() for part, values in parts.items()})


if __name__ == "__main__":
    main()
