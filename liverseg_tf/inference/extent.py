"""What is segmented: slices that can hold the liver, of thin slices some only, and of these what lies around it."""

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
# Parts of images that a network can take begin and end at multiples of these numbers of pixels.
_STEP_OF_PLACES, _STEP_OF_LENGTHS = 8, 32
# Shares of an image's side around the liver that the network sees too: the first that changes little.
MARGINS = (1 / 16, 1 / 8)
# If the network, shown a part only, changes more than this share of the liver found before, it needs to see more.
MOST_CHANGED = 0.006
# If it changes more than this, no margin is enough.
FAR_TOO_MUCH_CHANGED = 0.06


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


def likely_extent(areas: Sequence[float]) -> tuple[int, int] | None:
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


def box_around(masks: np.ndarray, margin: float) -> tuple[slice, slice]:
    """Rows and columns that hold the liver in any slice with a margin.

    Args:
        masks: (n, S, S) bool, not all false.
        margin: at least this share of the image's side on each side.

    Examples:
        >>> masks = np.zeros((1, 256, 256), bool)
        >>> masks[0, 70:150, 40:130] = True
        >>> box_around(masks, 1 / 8)
        (slice(32, 192, None), slice(8, 168, None))
    """
    size = masks.shape[-1]
    rows, columns = (_wider(np.flatnonzero(masks.any((0, axis))), size, margin) for axis in (2, 1))
    return rows, columns


def _wider(there: np.ndarray, size: int, margin: float) -> slice:
    beside = math.ceil(size * margin)
    first = max(0, int(there[0]) - beside) // _STEP_OF_PLACES * _STEP_OF_PLACES
    after = min(size, int(there[-1]) + 1 + beside)
    length = min(size, -(-(after - first) // _STEP_OF_LENGTHS) * _STEP_OF_LENGTHS)
    spare = (first + length - after) // 2 // _STEP_OF_PLACES * _STEP_OF_PLACES
    first = min(max(0, first - spare), size - length)
    return slice(first, first + length)


def share_changed(whole: np.ndarray, part: np.ndarray) -> float:
    """Pixels whose labels (n, S, S) change when the network sees a part of the slices only, by pixels of liver."""
    return float(np.count_nonzero(whole != part) / np.count_nonzero(whole))


def reaches_edge(found: np.ndarray, box: tuple[slice, slice]) -> bool:
    """Tell whether a finding (S, S) bool reaches an edge of the box within the image: it may continue beyond it.

    Examples:
        >>> reaches_edge(np.eye(64, dtype=bool), (slice(0, 32), slice(0, 64)))
        True
    """
    size, (rows, columns) = len(found), box
    lines = [found[line] for line in (rows.start, rows.stop - 1) if 0 < line < size - 1]
    lines += [found[:, line] for line in (columns.start, columns.stop - 1) if 0 < line < size - 1]
    return any(line.any() for line in lines)
