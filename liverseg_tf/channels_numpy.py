"""The channel layers in NumPy, for TFLite networks without TensorFlow.

`liverseg_tf.channels` describes the computation; a property test checks that both agree to 1e-6. Images are planes
here, (channels, rows, columns), which NumPy processes twice as fast.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import scipy  # its parts are loaded where they are first used: most CTs need none here

from liverseg_tf.config import ChannelsConfig
from liverseg_tf.hounsfield import AIR_HU
from liverseg_tf.windows import window_bounds

# Integer HU in this range take the histogram by counting; everything else by sorting.
LOWEST_BIN, BINS = -4096, 8192
# Beyond this interpolation would overflow; nothing there differs from the end of a window.
_LARGEST_HU = 1e6


def network_input(
    hu: np.ndarray, config: ChannelsConfig, size: int, box: tuple[slice, slice] | None = None
) -> np.ndarray:
    """The network's input for one slice, as `CTChannels` and `SquareResize` compute it.

    Args:
        hu: (rows, columns) float32 HU of one slice.
        config: how HU become channels.
        size: rows and columns of the whole input, in pixels.
        box: rows and columns of the input to return; None for all.

    Returns:
        (size, size, channels) float32 in [0, 1], or the box's part of it.

    Examples:
        >>> network_input(np.full((4, 2), 30, np.float32), ChannelsConfig(("liver",), histogram=False), 2)[..., 0]
        array([[0.25, 0.25],
               [0.25, 0.25]], dtype=float32)
    """
    side, top, left = _square(*hu.shape)
    if box is not None and (config.histogram or side % size):  # all pixels are needed, or pixels at the edge in part
        return np.ascontiguousarray(network_input(hu, config, size)[box])
    factor = side // size
    rows, columns = (slice(0, side), slice(0, side)) if box is None else (_scaled(part, factor) for part in box)
    hu = hu[_shifted(rows, -top), _shifted(columns, -left)]
    planes = np.zeros((config.count, rows.stop - rows.start, columns.stop - columns.start), np.float32)
    top, left = max(0, top - rows.start), max(0, left - columns.start)
    inside = planes[:, top : top + hu.shape[0], left : left + hu.shape[1]]
    hu = np.where(np.isnan(hu), np.float32(AIR_HU), hu) if np.isnan(hu).any() else hu
    for plane, window in zip(inside, config.windows, strict=False):
        low, high = window_bounds(window)
        np.subtract(hu, np.float32(low), out=plane)
        plane /= np.float32(high - low)
        np.clip(plane, 0, 1, out=plane)
    if config.histogram:
        inside[-1] = histogram_scale(hu, config.histogram_steps, config.histogram_tails)
    for _ in range(2):
        planes = np.swapaxes(_average_rows(planes, size if box is None else planes.shape[1] // factor), 1, 2)
    return np.ascontiguousarray(np.moveaxis(planes, 0, 2))


def _scaled(part: slice, factor: int) -> slice:
    return slice(part.start * factor, part.stop * factor)


def _shifted(part: slice, by: int) -> slice:
    return slice(max(0, part.start + by), max(0, part.stop + by))


def histogram_scale(hu: np.ndarray, steps: int = 100, tails: tuple[float, float] = (0.001, 0.999)) -> np.ndarray:
    """`HistogramScale` in NumPy: (rows, columns) float32 HU without NaN -> the same shape, float32 in [0, 1]."""
    positions = np.floor(np.float32(hu.size) * quantiles(steps, tails)).astype(np.int64)
    lowest, highest = hu.min(), hu.max()
    if lowest >= LOWEST_BIN and highest < LOWEST_BIN + BINS and (np.floor(hu) == hu).all():
        bins = hu.ravel().astype(np.int64) - LOWEST_BIN
        below = np.cumsum(np.bincount(bins, minlength=BINS))
        table = _interpolate(np.arange(BINS), np.searchsorted(below, positions, side="right"))
        return table[bins].reshape(hu.shape)
    values = np.clip(hu, -_LARGEST_HU, _LARGEST_HU)
    return _interpolate(values, np.sort(values, axis=None)[positions])


def quantiles(steps: int, tails: tuple[float, float]) -> np.ndarray:
    """Fractions at which the sorted pixels are broken, in float32 as fastai's `freqhist_bins` computes them."""
    inner = np.arange(steps, dtype=np.float32) / np.float32(steps) + np.float32(0.5 / steps)
    return np.concatenate([tails[:1], inner, tails[1:]], dtype=np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    """(rows, columns, classes) logits -> (classes, rows, columns) float32 probabilities."""
    planes = np.ascontiguousarray(np.moveaxis(logits, 2, 0), np.float32)
    planes -= planes.max(0)
    np.exp(planes, out=planes)
    planes /= planes.sum(0)
    return planes


def restore(probabilities: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """`RestoreSize` in NumPy: (classes, size, size) float32 -> (classes, rows, columns) float32."""
    return _restored(probabilities, rows, columns, (0, rows), (0, columns))


def restore_labels(probabilities: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The most probable class of each pixel of `restore`, computed only where it may differ from the first class.

    Where the first class is the most probable in all four neighbouring pixels of the network, it is so in the pixel
    between them too, because interpolation is their weighted mean.

    Args:
        probabilities: (classes, size, size) float32.
        rows, columns: size of the slice in pixels.

    Returns:
        (rows, columns) uint8.
    """
    labels = np.zeros((rows, columns), np.uint8)
    found = probabilities[1:].max(0) > probabilities[0]
    size, (side, top, left) = found.shape[0], _square(rows, columns)
    boxes = []
    for axis, (start, length) in enumerate(((top, rows), (left, columns))):
        there = np.flatnonzero(found.any(1 - axis))
        if not len(there):
            return labels
        # a pixel of the network weighs in as far as the middles of its neighbours, which lie outside the slice's box
        first, last = (there[0] - 0.5) * side / size - start, (there[-1] + 1.5) * side / size - start
        boxes.append((min(max(math.floor(first), 0), length), min(max(math.ceil(last), 0), length)))
    box = _restored(probabilities, rows, columns, *boxes)
    best, label = box[0], labels[slice(*boxes[0]), slice(*boxes[1])]
    for index, plane in enumerate(box[1:], start=1):
        label[plane > best] = index
        best = np.maximum(best, plane)
    return labels


def _restored(probabilities, rows, columns, row_range, column_range):
    side, top, left = _square(rows, columns)
    size = probabilities.shape[1]
    if size == side:
        return probabilities[
            :, top + row_range[0] : top + row_range[1], left + column_range[0] : left + column_range[1]
        ]
    for axis, (start, stop) in ((1, np.add(row_range, top)), (2, np.add(column_range, left))):
        low, high, share = (values[start:stop] for values in _bilinear(size, side))
        lower, upper = np.take(probabilities, low, axis), np.take(probabilities, high, axis)
        upper -= lower
        upper *= share[:, None] if axis == 1 else share
        upper += lower
        probabilities = upper
    return probabilities


@lru_cache(maxsize=8)
def _bilinear(size: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `side` pixels: the two of `size` pixels around it, and the weight (0 to 1) of the second."""
    places = (np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(size / side) - np.float32(0.5)
    low = np.floor(places)
    share = (places - low).astype(np.float32)
    return np.clip(low, 0, None).astype(np.int64), np.clip(low + 1, None, size - 1).astype(np.int64), share


def _square(rows: int, columns: int) -> tuple[int, int, int]:
    """Side of the padded square, and where the slice begins in it."""
    side = max(rows, columns)
    return side, (side - rows) // 2, (side - columns) // 2


def _average_rows(planes: np.ndarray, size: int) -> np.ndarray:
    """Area averaging of rows: (C, N, M) float32 -> (C, size, M); see `liverseg_tf.channels`."""
    count = planes.shape[1]
    if count % size == 0:
        factor = count // size
        total = planes[:, ::factor].copy()
        for first in range(1, factor):
            total += planes[:, first::factor]
        if factor > 1:
            total *= np.float32(1 / factor)
        return total
    weights = _area_weights(count, size)
    return np.stack([weights @ np.ascontiguousarray(plane) for plane in planes])


@lru_cache(maxsize=8)
def _area_weights(count: int, size: int) -> scipy.sparse.csr_array:
    """Share of each row in each new row, as a sparse matrix, since BLAS would start threads beside the network's."""
    starts, new_starts = np.arange(count) * size, np.arange(size)[:, None] * count
    shared = np.minimum(starts + size, new_starts + count) - np.maximum(starts, new_starts)
    return scipy.sparse.csr_array((np.maximum(shared, 0) / count).astype(np.float32))


def _interpolate(values: np.ndarray, breaks: np.ndarray) -> np.ndarray:
    """Piecewise-linear interpolation from sorted break points to their ranks in [0, 1]; equal points count once."""
    breaks = np.unique(breaks)
    if len(breaks) == 1:
        return np.zeros(values.shape, np.float32)
    return np.interp(values, breaks, np.linspace(0, 1, len(breaks))).astype(np.float32)
