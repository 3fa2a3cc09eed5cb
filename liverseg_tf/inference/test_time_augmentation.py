"""Test-time augmentation: slices are shifted, rotated, scaled and brightened, and the probabilities moved back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from liverseg_tf.config import Config
from liverseg_tf.errors import ConfigError
from liverseg_tf.hounsfield import AIR_HU
from liverseg_tf.labels import BACKGROUND


@dataclass(frozen=True)
class TestTimeAugmentation(Config):
    """Amounts of test-time augmentation. No flips: the network was not trained with any.

    Each amount is a maximum; a variation draws from [-amount, amount], the same for all slices of a volume.

    Attributes:
        count: number of variations, the unchanged volume included; at least 3.
        shift_mm: shift along rows and along columns.
        rotation_degrees: in-plane rotation.
        scale: magnification, as a fraction.
        hu_shift: added to all HU.
        hu_scale: HU scaled by 1 plus this.
        seed: of the random variations.

    Raises:
        ConfigError: for too few variations or a negative amount.

    Examples:
        >>> TestTimeAugmentation(count=4).shift_mm
        5.0
    """

    count: int = 8
    shift_mm: float = 5.0
    rotation_degrees: float = 6.0
    scale: float = 0.06
    hu_shift: float = 10.0
    hu_scale: float = 0.04
    seed: int = 0
    __test__ = False  # keeps pytest from collecting it as a test

    def __post_init__(self) -> None:
        if self.count < 3:
            raise ConfigError(f"variations: expected at least 3. Received: {self.count}")
        amounts = (self.shift_mm, self.rotation_degrees, self.scale, self.hu_shift, self.hu_scale)
        if min(amounts) < 0 or self.scale >= 0.5:
            raise ConfigError(f"variations: expected amounts of at least 0 and a scale below 0.5. Received: {self}")

    def draw(self) -> np.ndarray:
        """(count, 6) float64: row shift (mm), column shift (mm), rotation (radians), log scale, HU shift, HU factor."""
        amounts = [self.shift_mm] * 2 + [math.radians(self.rotation_degrees), math.log1p(self.scale)]
        drawn = np.random.default_rng(self.seed).uniform(-1, 1, (self.count, 6))
        drawn *= [*amounts, self.hu_shift, self.hu_scale]
        drawn[0] = 0
        drawn[:, 5] += 1
        return drawn

    def probabilities(
        self, network: Callable[[np.ndarray], np.ndarray], hu: np.ndarray, spacing_mm: tuple[float, ...]
    ) -> Iterator[np.ndarray]:
        """The network's probabilities of each variation of slices, moved back to the original position.

        Args:
            network: (B, rows, columns) float32 HU -> (B, rows, columns, classes) probabilities.
            hu: (B, rows, columns) HU.
            spacing_mm: (row, column, ...) distances.

        Yields:
            `count` arrays (B, rows, columns, classes) float32, the first of the unchanged slices.
        """
        for i, parameters in enumerate(self.draw()):
            varied = hu * np.float32(parameters[5]) + np.float32(parameters[4])
            if i == 0:
                yield network(varied)
                continue
            matrix = _pixel_matrix(parameters, hu.shape[1:3], spacing_mm)
            found = _warp(network(_warp(varied[..., None], matrix, AIR_HU)[..., 0]), np.linalg.inv(matrix), 0.0)
            found[..., BACKGROUND] += 1 - found.sum(axis=-1)  # outside the moved slice is background
            yield found


def _pixel_matrix(parameters: np.ndarray, size: tuple[int, int], spacing_mm: tuple[float, ...]) -> np.ndarray:
    """(3, 3) from (column, row, 1) of the varied slice to that of the original slice, about its centre."""
    row_mm, column_mm, angle, log_scale = parameters[:4]
    cosine, sine = math.exp(log_scale) * math.cos(angle), math.exp(log_scale) * math.sin(angle)
    in_mm = np.array([[cosine, -sine, column_mm], [sine, cosine, row_mm], [0, 0, 1]])
    to_mm = np.diag([spacing_mm[1], spacing_mm[0], 1.0])
    to_mm[:2, 2] = -(size[1] - 1) / 2 * spacing_mm[1], -(size[0] - 1) / 2 * spacing_mm[0]
    return np.linalg.inv(to_mm) @ in_mm @ to_mm


def _warp(images: np.ndarray, matrix: np.ndarray, fill: float) -> np.ndarray:
    """(B, rows, columns, C) float32, bilinear, `fill` outside."""
    import tensorflow as tf

    return tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.convert_to_tensor(images, tf.float32),
        transforms=tf.constant(matrix.ravel()[None, :8] / matrix[2, 2], tf.float32),
        output_shape=tf.constant(images.shape[1:3]),
        fill_value=fill,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    ).numpy()
