"""Which slices are segmented: those that can hold the liver, and of thin slices some only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# The network segments slices at most this far apart; docs/scaling.md has what other distances did to masks.
_MOST_APART_MM = 3.25
# Thinner slices are noisier; so what is segmented is their average over this thickness.
_LEAST_THICKNESS_MM = 1.6
# An adult's liver is 10 to 20 cm high, so several of these slices show it.
_STEP_MM = 20.0
# If findings elsewhere are larger than this share of the liver, the result of the first pass is uncertain.
_MOST_ELSEWHERE = 0.25


def slice_step(spacing_mm: float) -> int:
    """Every how many slices the network segments one, for slices `spacing_mm` apart.

    Examples:
        >>> [slice_step(spacing_mm) for spacing_mm in (0.8, 1.0, 1.5, 2.0, 5.0)]
        [4, 3, 2, 1, 1]
    """
    return max(1, int(_MOST_APART_MM / spacing_mm))


def slab_weights(spacing_mm: float) -> np.ndarray:
    """Weights of a slice and its neighbours, for the average over a thickness of at least 1.6 mm.

    Returns:
        (n,) float32 with n odd and the slice itself in the middle; their sum is 1.

    Examples:
        >>> [slab_weights(spacing_mm).tolist() for spacing_mm in (0.8, 1.6)]
        [[0.25, 0.5, 0.25], [1.0]]
    """
    half_mm = max(_LEAST_THICKNESS_MM, spacing_mm) / 2
    beside = max(0, math.ceil(half_mm / spacing_mm - 0.5 - 1e-6))
    positions_mm = np.arange(-beside, beside + 1) * spacing_mm
    ends_mm = np.minimum(positions_mm + spacing_mm / 2, half_mm), np.maximum(positions_mm - spacing_mm / 2, -half_mm)
    overlaps_mm = ends_mm[0] - ends_mm[1]
    return (overlaps_mm / overlaps_mm.sum()).astype(np.float32)


def coarse_slices(count: int, spacing_mm: float, step: int = 1) -> range:
    """The slices to look at first: one every 20 mm, among each `step`-th from the first on."""
    coarse_step = step * max(1, round(_STEP_MM / spacing_mm / step))
    return range(coarse_step // 2 // step * step, count, coarse_step)


def likely_extent(areas: Sequence[int]) -> tuple[int, int] | None:
    """Which of the coarse slices show the liver.

    Args:
        areas: pixels found in each slice.

    Returns:
        The first and the last one; None if that is uncertain: if the liver was found in no slice or in a single one, or
        if findings elsewhere exceed a quarter of the largest piece (a liver cut in two by a gap). An end of the volume
        is certain: beyond it there is nothing.

    Examples:
        >>> likely_extent([0, 0, 40, 90, 70, 0, 3, 0])
        (2, 4)
        >>> likely_extent([40, 90, 70, 0])
        (0, 2)
        >>> likely_extent([0, 40, 0, 0, 70, 20, 0]) is None
        True
    """
    found = np.asarray(areas) > 0
    edges = np.flatnonzero(np.diff(np.concatenate([[False], found, [False]]).astype(np.int8)))
    pieces = [(int(first), int(after) - 1) for first, after in edges.reshape(-1, 2)]
    if not pieces:
        return None
    sizes = [sum(areas[first : last + 1]) for first, last in pieces]
    first, last = pieces[int(np.argmax(sizes))]
    elsewhere = sum(sizes) - max(sizes)
    if first == last or elsewhere > _MOST_ELSEWHERE * max(sizes):
        return None
    return first, last
