"""Uncertainty by test-time augmentation: the spread of predictions over slightly changed copies of a volume."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from liverseg_tf.data.volume import CTVolume
from liverseg_tf.inference.predictor import Prediction, Predictor
from liverseg_tf.inference.test_time_augmentation import TestTimeAugmentation
from liverseg_tf.labels import BACKGROUND, LIVER_CLASSES, TUMOUR, ClassSet
from liverseg_tf.ownership import save_image, sign


@dataclass(eq=False)
class Uncertainty:
    """How much a segmentation changes under irrelevant changes of the image. It is not a confidence interval.

    Attributes:
        volume: the CT.
        entropy: (rows, columns, slices) uint8, 255 times the entropy of the mean probabilities over its largest
            possible value: 0 is certain, 255 means equal probability of all classes.
        liver_volumes_ml, tumour_volumes_ml: (variations,) float64, the unchanged volume first; liver with tumours.
        variations: the amounts of augmentation.
        classes: the model's classes; for another organ, "liver" and "tumour" mean that organ and its lesions.
    """

    volume: CTVolume
    entropy: np.ndarray = field(repr=False)
    liver_volumes_ml: np.ndarray
    tumour_volumes_ml: np.ndarray
    variations: TestTimeAugmentation
    classes: ClassSet = LIVER_CLASSES

    @property
    def liver_range_ml(self) -> tuple[float, float]:
        """Smallest and largest volume of the liver over the variations."""
        return float(self.liver_volumes_ml.min()), float(self.liver_volumes_ml.max())

    @property
    def tumour_range_ml(self) -> tuple[float, float]:
        """Smallest and largest volume of the tumours over the variations."""
        return float(self.tumour_volumes_ml.min()), float(self.tumour_volumes_ml.max())

    @property
    def image(self) -> nib.Nifti1Image:
        """The entropy as a nibabel image in the input's grid: uint8, scaled to 0..1 by its header."""
        image = self.volume.image_like(self.entropy)
        image.header.set_slope_inter(1 / 255, 0)
        return sign(image, "uncertainty")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able figures."""
        figures = {
            "variations": self.variations.to_dict(),
            "liver_range_ml": list(self.liver_range_ml),
            "tumour_range_ml": list(self.tumour_range_ml),
            "liver_volumes_ml": self.liver_volumes_ml.tolist(),
            "tumour_volumes_ml": self.tumour_volumes_ml.tolist(),
        }
        has_lesion = self.classes.lesion is not None
        return {self.classes.named(k): v for k, v in figures.items() if has_lesion or not k.startswith("tumour")}

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the entropy as .nii or .nii.gz, whole or not at all.

        Raises:
            OutputError: if it must not or can't be written.
        """
        inputs = [self.volume.path] if self.volume.path else []
        save_image(self.image, path, "uncertainty", inputs=inputs, overwrite=overwrite)


def measure_uncertainty(
    source: Any,
    model: Any = None,
    variations: TestTimeAugmentation | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Uncertainty:
    """Segment a volume under small shifts, rotations, scalings and HU changes, and measure the spread.

    Each variation's probabilities are moved back before they are averaged (Wang et al. 2019, arXiv 1807.07356). 3-D
    post-processing is not applied.

    Args:
        source: a NIfTI file, a nibabel image, a `CTVolume`, or a `Prediction`.
        model: as `Predictor` takes it, or a `Predictor`.
        variations: amounts of augmentation; by default `TestTimeAugmentation()`.
        progress: called with the number of slices done and their total.

    Returns:
        The `Uncertainty`. Its ranges show how much the result depends on irrelevant changes. They are not confidence
            intervals: errors that all variations share are not in them.

    Raises:
        LiverSegError: for a volume or model that can't be used.

    Examples:
        >>> found = measure_uncertainty("LiTS/volume-0.nii.gz", "run")
        >>> found.entropy.shape, found.entropy.dtype, len(found.liver_volumes_ml)
        ((64, 64, 12), dtype('uint8'), 8)
    """
    predictor = model if isinstance(model, Predictor) else Predictor(model)
    volume = source.volume if isinstance(source, Prediction) else predictor.read(source)
    variations = variations or TestTimeAugmentation()
    slices, classes = volume.shape[2], predictor.config.classes
    entropy = np.zeros(volume.shape, np.uint8)
    counts = np.zeros((2, variations.count), np.int64)
    batch = predictor.batch_slices(volume)
    for first in range(0, slices, batch):
        last = min(first + batch, slices)
        total: float | np.ndarray = 0.0
        for i, found in enumerate(
            variations.probabilities(predictor.network_probabilities, volume.slices(first, last), volume.spacing_mm)
        ):
            labels = found.argmax(axis=-1)
            organ = classes.organ_part(labels.astype(np.uint8))
            counts[:, i] += np.count_nonzero(organ != BACKGROUND), np.count_nonzero(organ == TUMOUR)
            total = total + found
        entropy[..., first:last] = np.moveaxis(_entropy(np.asarray(total) / variations.count), 0, 2)
        if progress is not None:
            progress(last, slices)
    volumes = counts * volume.voxel_volume_ml
    return Uncertainty(volume, entropy, volumes[0], volumes[1], variations, classes)


def expected_calibration_error(probabilities: np.ndarray, truth: np.ndarray, bins: int = 15) -> float:
    """Mean gap between a network's confidence and its accuracy (Guo et al. 2017).

    Args:
        probabilities: (N, classes) float, sum 1.
        truth: (N,) class indices.
        bins: equal bins of the highest probability.

    Returns:
        0 (calibrated) to 1.

    Examples:
        >>> expected_calibration_error(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
        0.5
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(index, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(truth))


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    """(..., classes) float -> (...) uint8, 255 at the largest entropy there is."""
    p = np.clip(probabilities, 1e-12, 1)
    return np.rint(255 * -(p * np.log(p)).sum(axis=-1) / math.log(p.shape[-1])).clip(0, 255).astype(np.uint8)
