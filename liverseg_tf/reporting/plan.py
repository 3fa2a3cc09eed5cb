"""The liver as a coarse grid inside a page, so that a resection can be tried there."""

from __future__ import annotations

from typing import Any

import numpy as np

from liverseg_tf.data.volume import MaskVolume
from liverseg_tf.evaluation.surface import bounding_box
from liverseg_tf.labels import BACKGROUND
from liverseg_tf.reporting.page_data import gzip, to_text
from liverseg_tf.reporting.surfaces import pooled

# Cells of this edge: 100,000 of them in a liver of 1500 ml, summed within a millisecond.
_CELL_MM = 2.5


def encode_plan(mask: MaskVolume) -> tuple[dict[str, Any] | None, str]:
    """Give each cell of a coarse grid the share of it that is liver or tumour, in 255ths.

    Returns:
        The grid: `shape` (I, J, K); `labels`, the class indices of liver and tumour; `first_mm`, the middle of its
        first cell, and `steps_mm`, three steps to the next cells, both towards the patient's left, back and head from
        the middle of the volume; `cell_ml`; `middle_mm` of the liver's box. And base64 of gzip of the shares, uint8, C
        order. None and an empty text without a liver.
    """
    box = bounding_box(mask.organ_labels)
    if box is None:
        return None, ""
    factors = [max(1, round(_CELL_MM / s)) for s in mask.spacing_mm]
    share = np.rint(255 * pooled(mask.organ_labels[box] != BACKGROUND, factors)).astype(np.uint8)
    steps = mask.geometry.steps_mm[[1, 0, 2]]  # to the left, the back, the head
    start, stop = (np.array([getattr(s, name) for s in box]) for name in ("start", "stop"))
    middle = (np.array(mask.shape) - 1) / 2
    first = steps @ (start + (np.array(factors) - 1) / 2 - middle)
    grid = {
        "shape": share.shape,
        "labels": list(mask.classes.organ_indices),
        "first_mm": first.round(4).tolist(),
        "steps_mm": (steps * factors).T.round(6).tolist(),
        "cell_ml": mask.voxel_volume_ml * float(np.prod(factors)),
        "middle_mm": (steps @ ((start + stop - 1) / 2 - middle)).round(3).tolist(),
    }
    return grid, to_text(gzip(share.tobytes()))
