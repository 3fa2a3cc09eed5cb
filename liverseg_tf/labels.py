"""The one registry of classes: index, name, color, meaning in LiTS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from liverseg_tf.errors import LabelError

if TYPE_CHECKING:  # the command line's help reads the classes, and loads nothing heavy
    import numpy as np


@dataclass(frozen=True)
class LabelClass:
    """One class of a segmentation.

    Attributes:
        index: value in a mask, 0 to 255.
        name: short lower-case name, as the command line takes it.
        color: RGB, 0 to 255 each.
        safe_color: RGB of a color-blind-safe alternative (Okabe and Ito).
        meaning: what LiTS means by it.
    """

    index: int
    name: str
    color: tuple[int, int, int]
    safe_color: tuple[int, int, int]
    meaning: str


# The colors are viridis at 0, 1/2 and 1: what the original's plots showed.
CLASSES: tuple[LabelClass, ...] = (
    LabelClass(0, "background", (68, 1, 84), (0, 0, 0), "neither liver nor tumour"),
    LabelClass(1, "liver", (33, 145, 140), (86, 180, 233), "healthy liver tissue"),
    LabelClass(2, "tumour", (253, 231, 37), (230, 159, 0), "liver tumour; counts as liver too"),
)
CLASS_NAMES: tuple[str, ...] = tuple(c.name for c in CLASSES)
BACKGROUND, LIVER, TUMOUR = (c.index for c in CLASSES)


def color_mask(labels: np.ndarray, safe: bool = False) -> np.ndarray:
    """Turn class indices into colors.

    Args:
        labels: any shape, integer, values 0 to 2.
        safe: use the color-blind-safe colours.

    Returns:
        The shape of `labels` plus a last axis of 3, uint8 RGB.

    Raises:
        LabelError: for other values.

    Examples:
        >>> import numpy as np
        >>> color_mask(np.array([[0, 1, 2]])).shape
        (1, 3, 3)
    """
    import numpy as np

    table = np.array([c.safe_color if safe else c.color for c in CLASSES], np.uint8)
    return table[to_labels(np.asarray(labels), "mask")]


def to_labels(values: np.ndarray, name: str) -> np.ndarray:
    """Turn stored mask values into uint8 class indices.

    Args:
        values: any shape and real dtype; within 0.001 of 0, 1 or 2.
        name: what errors call it.

    Raises:
        LabelError: with the values that are no class, and how often they occur.
    """
    import numpy as np

    if values.dtype.kind in "iub":
        if values.size and values.min() >= 0 and values.max() < len(CLASSES):  # no copies of a large mask
            return values.astype(np.uint8, copy=False)
        rounded, wrong = values, (values < 0) | (values >= len(CLASSES))
    else:
        with np.errstate(invalid="ignore"):
            rounded = np.rint(values)
            wrong = ~((np.abs(values - rounded) <= 1e-3) & (rounded >= 0) & (rounded < len(CLASSES)))
    if wrong.any():
        found, counts = np.unique(values[wrong], return_counts=True)
        listed = ", ".join(f"{v:g} ({c} voxels)" for v, c in zip(found[:5].tolist(), counts[:5].tolist(), strict=True))
        expected = ", ".join(f"{c.index} {c.name}" for c in CLASSES)
        raise LabelError(f"{name}: expected labels {expected}; got {listed}{', ...' if len(found) > 5 else ''}")
    return rounded.astype(np.uint8)
