"""3-D clean-up of predicted labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from liverseg_tf.config import Config
from liverseg_tf.labels import BACKGROUND, LIVER, TUMOUR


@dataclass(frozen=True)
class PostProcessing(Config):
    """What is done to a predicted volume.

    Attributes:
        largest_liver: keep the largest connected piece of liver and tumour together; a patient has one liver.
        fill_holes: make background that liver encloses in 3-D liver.
        smallest_lesion_ml: smaller connected pieces of tumour become liver; 0 keeps all.
    """

    largest_liver: bool = True
    fill_holes: bool = True
    smallest_lesion_ml: float = 0.0

    def __call__(self, labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
        """Clean labels up.

        Args:
            labels: (rows, columns, slices) uint8, changed in place.
            spacing_mm: distances along those axes, in mm.

        Returns:
            `labels`.
        """
        liver = labels != BACKGROUND
        box = next(iter(ndimage.find_objects(liver.view(np.uint8))), None)
        if box is None:
            return labels
        cropped, liver = labels[box], liver[box]
        if self.largest_liver:
            pieces, count = ndimage.label(liver)
            if count > 1:
                sizes = _sizes(pieces, count)
                sizes[0] = 0
                cropped[liver & (pieces != sizes.argmax())] = BACKGROUND
                liver = cropped != BACKGROUND
        if self.fill_holes:
            cropped[ndimage.binary_fill_holes(liver) & ~liver] = LIVER
        if self.smallest_lesion_ml > 0:
            pieces, count = ndimage.label(cropped == TUMOUR)
            sizes = _sizes(pieces, count)
            sizes_ml = sizes * float(np.prod(spacing_mm)) / 1000
            small = sizes_ml < self.smallest_lesion_ml
            small[0] = False
            cropped[small[pieces]] = LIVER
        return labels


def _sizes(pieces: np.ndarray, count: int) -> np.ndarray:
    """Voxels of each piece; block by block, because NumPy counts a 64-bit copy of what it is given."""
    return sum(np.bincount(block.ravel(), minlength=count + 1) for block in np.array_split(pieces, 16))
