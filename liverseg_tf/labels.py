"""The one registry of classes: index, name, color, meaning in LiTS."""

from __future__ import annotations

from dataclasses import dataclass

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

    Example:
        >>> color_mask(np.array([[0, 1, 2]])).shape
        (1, 3, 3)
    """
    table = np.array([c.safe_color if safe else c.color for c in CLASSES], np.uint8)
    return table[np.asarray(labels)]
