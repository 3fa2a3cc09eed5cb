"""CT windows, histogram scaling and the resize, as Keras layers.

tf.data, training, prediction, SavedModel and TFLite all use them; `liverseg_tf.channels_numpy` has the same
computation in NumPy, for prediction without TensorFlow.
Every layer computes in float32 whatever the precision policy, because float16 loses HU (2048 and up) and the
bottom of a window. No layer clips HU. NaN in the input counts as air, so the output never has NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from liverseg_tf.channels_numpy import BINS as _BINS
from liverseg_tf.channels_numpy import LOWEST_BIN as _LOWEST_BIN
from liverseg_tf.channels_numpy import quantiles as _quantiles
from liverseg_tf.config import ChannelsConfig
from liverseg_tf.errors import ConfigError
from liverseg_tf.hounsfield import AIR_HU
from liverseg_tf.windows import resolve_window, window_bounds


def _without_nan(hu):
    return tf.where(tf.equal(hu, hu), hu, tf.constant(AIR_HU, hu.dtype))


class _Float32Layer(keras.layers.Layer):
    """A layer that computes in float32 under any precision policy, and accepts integers without a cast."""

    def __init__(self, **kwargs: Any):
        kwargs["dtype"] = "float32"
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self.trainable = False

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


@keras.saving.register_keras_serializable("liverseg_tf")
class CTWindow(_Float32Layer):
    """Scale the HU of one CT window to [0, 1].

    `(hu - low) / (high - low)`, clipped, with low = level - width // 2 and high = level + width // 2
    (fastai's `windowed`).

    Args:
        window: a name in `liverseg_tf.WINDOWS`, or (width, level) in HU.

    Input: any shape, HU, any real dtype. Output: the same shape, float32 in [0, 1].

    Raises:
        ConfigError: for an unknown window.

    Examples:
        >>> CTWindow("liver")(np.array([[-45.0, 30.0, 105.0]])).numpy()
        array([[0. , 0.5, 1. ]], dtype=float32)
    """

    def __init__(self, window: str | tuple[float, float] = "liver", **kwargs: Any):
        super().__init__(**kwargs)
        self.window = resolve_window(window)

    def call(self, hu: tf.Tensor) -> tf.Tensor:
        low, high = window_bounds(self.window)
        hu = _without_nan(tf.cast(hu, tf.float32))
        return tf.clip_by_value((hu - low) / (high - low), 0.0, 1.0)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "window": self.window}


@keras.saving.register_keras_serializable("liverseg_tf")
class HistogramScale(_Float32Layer):
    """Scale HU so that each slice's values spread evenly over [0, 1].

    Break points lie at the sorted pixels' positions floor(n * q) for q = 0.001, (i + 0.5) / 100 for i in 0..99,
    and 0.999, made unique; HU are interpolated linearly over them (fastai's `freqhist_bins` and `hist_scaled`).
    A constant slice gives 0.

    Args:
        steps: number of inner break points (100 in the formula above).
        tails: q of the first and of the last break point.
        portable: use only operations that TFLite has as builtins (slower; same result).

    Input: (batch, rows, columns) HU, any real dtype; each slice alone. Output: the same shape, float32 in [0, 1].

    Examples:
        >>> HistogramScale()(np.arange(16.0).reshape(1, 4, 4)).numpy()[0, 3, 3]
        np.float32(1.0)
    """

    def __init__(self, portable: bool = False, steps: int = 100, tails: tuple[float, float] = (0.001, 0.999), **kwargs):
        super().__init__(**kwargs)
        self.portable, self.steps, self.tails = portable, steps, (tails[0], tails[1])
        self._quantiles = _quantiles(steps, self.tails)

    def call(self, hu: tf.Tensor) -> tf.Tensor:
        flat = _flatten(hu)
        scaled = _on_integer_bins_if_possible(
            flat,
            on_bins=lambda bins: _look_up(_histogram_table(bins, self._quantiles, self.portable)[..., None], bins)[
                ..., 0
            ],
            otherwise=lambda values: _scale_sorted(values, self._quantiles, self.portable),
        )
        return tf.reshape(scaled, tf.shape(hu))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "portable": self.portable, "steps": self.steps, "tails": self.tails}


@keras.saving.register_keras_serializable("liverseg_tf")
class CTChannels(_Float32Layer):
    """Turn HU slices into the network's channels: one for each window, then the histogram-scaled one.

    Args:
        windows: names in `liverseg_tf.WINDOWS`, or (width, level) pairs in HU.
        histogram: add `HistogramScale` as the last channel.
        portable, steps, tails: see `HistogramScale`.

    Input: (batch, rows, columns) HU, any real dtype, at the file's own resolution; `within_bins=True` if all are known
    to be integers in `HU_RANGE`, which saves the operations for others. Output: (batch, rows, columns, channels)
    float32 in [0, 1].

    Raises:
        ConfigError: for an unknown window, or no channel at all.

    Examples:
        >>> CTChannels()(np.zeros((2, 8, 8), np.int16)).shape
        TensorShape([2, 8, 8, 3])
    """

    def __init__(
        self,
        windows: Sequence[str | tuple[float, float]] = ("liver", "custom"),
        histogram: bool = True,
        portable: bool = False,
        steps: int = 100,
        tails: tuple[float, float] = (0.001, 0.999),
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if isinstance(windows, str):
            windows = (windows,)
        self.windows = tuple(map(resolve_window, windows))
        bounds = [window_bounds(w) for w in self.windows]
        self.histogram = histogram
        self.portable, self.steps, self.tails = portable, steps, (tails[0], tails[1])
        self._quantiles = _quantiles(steps, self.tails)
        if not bounds and not histogram:
            raise ConfigError("CTChannels needs at least one window or histogram=True. Received: windows=()")
        self._low = np.array([low for low, _ in bounds], np.float32)
        self._width = np.array([high - low for low, high in bounds], np.float32)

    @classmethod
    def from_channels_config(cls, config: ChannelsConfig, portable: bool = False) -> CTChannels:
        return cls(config.windows, config.histogram, portable, config.histogram_steps, config.histogram_tails)

    @property
    def channels(self) -> int:
        return len(self.windows) + int(self.histogram)

    def call(self, hu: tf.Tensor, within_bins: bool = False) -> tf.Tensor:
        flat = _flatten(hu)
        if within_bins:
            channels = self._on_bins(tf.cast(flat, tf.int32) - _LOWEST_BIN)
        elif not self.histogram and not flat.dtype.is_integer:
            channels = self._windowed(_without_nan(tf.cast(flat, tf.float32)))
        else:
            channels = _on_integer_bins_if_possible(flat, on_bins=self._on_bins, otherwise=self._on_values)
        static = hu.shape
        channels = tf.reshape(channels, tf.concat([tf.shape(hu), [self.channels]], 0))
        channels.set_shape([*static, self.channels])
        return channels

    def _windowed(self, values):
        """(B, N) float32 -> (B, N, windows)."""
        return tf.clip_by_value((values[..., None] - self._low) / self._width, 0.0, 1.0)

    def _on_bins(self, bins):
        """All channels by one look-up table per slice: one gather per pixel for any number of channels."""
        windowed = self._windowed(tf.range(_LOWEST_BIN, _LOWEST_BIN + _BINS, dtype=tf.float32)[None])
        if not self.histogram:
            return tf.gather_nd(windowed[0], bins[..., None])
        scaled = _histogram_table(bins, self._quantiles, self.portable)
        windowed = tf.tile(windowed, [tf.shape(scaled)[0], 1, 1])
        return _look_up(tf.concat([windowed, scaled[..., None]], -1), bins)

    def _on_values(self, values):
        parts = [self._windowed(values)] if self.windows else []
        if self.histogram:
            parts.append(_scale_sorted(values, self._quantiles, self.portable)[..., None])
        return tf.concat(parts, -1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*input_shape, self.channels)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "windows": self.windows,
            "histogram": self.histogram,
            "portable": self.portable,
            "steps": self.steps,
            "tails": self.tails,
        }


@keras.saving.register_keras_serializable("liverseg_tf")
class SquareResize(_Float32Layer):
    """Pad slices to a square with 0, equally on both sides, and resize them by area averaging.

    Averaging is anti-aliased; for whole factors it is mean pooling. `RestoreSize` is the inverse. All operations are
    TFLite builtins (the area method of `tf.image.resize` is not).

    Args:
        size: rows and columns of the result, in pixels.

    Input: (batch, rows, columns, channels) float32. Output: (batch, size, size, channels) float32.

    Examples:
        >>> SquareResize(2)(np.ones((1, 4, 2, 1), "float32"))[0, :, :, 0].numpy()
        array([[0.5, 0.5],
               [0.5, 0.5]], dtype=float32)
    """

    def __init__(self, size: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.size = int(size)

    def call(self, images: tf.Tensor) -> tf.Tensor:
        rows, columns = images.shape[1:3]
        images = _pad_to_square(images)
        if rows is not None and columns is not None and max(rows, columns) % self.size == 0:
            return _pool(images, max(rows, columns) // self.size)
        for _ in range(2):  # rows, then columns
            images = tf.transpose(_average_rows(images, self.size), [0, 2, 1, 3])
        return images

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (input_shape[0], self.size, self.size, input_shape[3])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "size": self.size}


@keras.saving.register_keras_serializable("liverseg_tf")
class RestoreSize(_Float32Layer):
    """Undo `SquareResize`: resize bilinearly to the padded square, and crop to a slice's own size.

    Input: probabilities (batch, size, size, classes) float32, and `rows_columns=(rows, columns)`, two integers.
    Output: (batch, rows, columns, classes) float32.

    Examples:
        >>> RestoreSize()(np.ones((1, 2, 2, 3), "float32"), rows_columns=(4, 2)).shape
        TensorShape([1, 4, 2, 3])
    """

    def call(self, probabilities: tf.Tensor, rows_columns: tf.Tensor) -> tf.Tensor:
        rows, columns = rows_columns
        side, top, left = _square(rows, columns)
        if not (isinstance(side, int) and probabilities.shape[1] == side):
            probabilities = tf.image.resize(probabilities, (side, side), method="bilinear")
        if isinstance(side, int) and rows == columns:
            return probabilities
        return probabilities[:, top : top + rows, left : left + columns]


def resize_labels(labels: tf.Tensor, size: int, classes: int = 3) -> tf.Tensor:
    """Resize masks to the network's size, as `SquareResize` resizes images.

    Each class is averaged separately and the class with the largest share is taken, so that edges of mask and image
    coincide.

    Args:
        labels: (batch, rows, columns) integer, values 0 to classes - 1.
        size: rows and columns of the result, in pixels.
        classes: number of classes, background included.

    Returns:
        (batch, size, size) uint8.
    """
    # A plane for each class except the background, whose share is the remainder: padding with 0 means background.
    planes = tf.stack([tf.equal(labels, tf.cast(index, labels.dtype)) for index in range(1, classes)])
    rows, columns = (labels.shape[i] if labels.shape[i] is not None else tf.shape(labels)[i] for i in (1, 2))
    shares = SquareResize(size)(tf.reshape(tf.cast(planes, tf.float32), [-1, rows, columns, 1]))
    shares = tf.unstack(tf.reshape(shares, [classes - 1, -1, size, size]))
    largest = 1.0 - tf.add_n(shares)
    label = tf.zeros_like(largest, tf.uint8)
    for index, share in enumerate(shares, start=1):  # tf.argmax, ten times as fast on a few classes
        label = tf.where(share > largest, tf.constant(index, tf.uint8), label)
        largest = tf.maximum(largest, share)
    return label


def _square(rows, columns):
    """Side of the padded square, and the slice's first row and column in it; Python integers if the sizes are."""
    side = max(rows, columns) if isinstance(rows, int) and isinstance(columns, int) else tf.maximum(rows, columns)
    return side, (side - rows) // 2, (side - columns) // 2


def _pad_to_square(images):
    rows, columns = images.shape[1:3]
    if rows is not None and rows == columns:
        return images
    if rows is None or columns is None:
        rows, columns = tf.shape(images)[1], tf.shape(images)[2]
    side, top, left = _square(rows, columns)
    return tf.pad(images, [[0, 0], [top, side - rows - top], [left, side - columns - left], [0, 0]])


def _pool(images, factor: int):
    """Mean of blocks of factor x factor pixels, (B, N, N, C) -> (B, N / factor, N / factor, C).

    Without oneDNN, `tf.nn.avg_pool2d` takes ten times as long.
    """
    if factor == 1:
        return images
    size, channels = images.shape[1] // factor, images.shape[3]
    rows = tf.reduce_sum(tf.reshape(images, [-1, size, factor, size * factor * channels]), 2)
    # the columns by a matrix, since sums over a short axis are slow; of ones, so that sums of whole numbers are exact
    ones = np.kron(np.ones((factor, 1)), np.eye(channels)).astype(np.float32)
    total = tf.matmul(tf.reshape(rows, [-1, factor * channels]), ones)
    return tf.reshape(total * np.float32(1 / factor**2), [-1, size, size, channels])


def _average_rows(images, size: int):
    """Area averaging of rows: (B, N, M, C) float32 -> (B, size, M, C).

    Each block of N / gcd(N, size) rows becomes size / gcd(N, size) new rows by the same small matrix: the exact share
    of each row in each new row.
    """
    count, columns = (images.shape[i] if images.shape[i] is not None else tf.shape(images)[i] for i in (1, 2))
    if isinstance(count, int):
        blocks = math.gcd(count, size)
    else:
        blocks = tf.gather(tf.constant([math.gcd(rest, size) for rest in range(size)]), count % size)
    old, new = count // blocks, size // blocks
    starts, new_starts = tf.range(old) * new, tf.range(new)[:, None] * old
    shared = tf.minimum(starts + new, new_starts + old) - tf.maximum(starts, new_starts)
    weights = tf.cast(tf.maximum(shared, 0), tf.float32) / tf.cast(old, tf.float32)
    channels = images.shape[3]
    blocked = tf.matmul(weights[None], tf.reshape(images, [-1, old, columns * channels]))
    return tf.reshape(blocked, [-1, size, columns, channels])


def _flatten(hu):
    hu = tf.convert_to_tensor(hu)
    if hu.dtype.is_integer:
        hu = tf.cast(hu, tf.int32)
    elif hu.dtype != tf.float32:
        hu = tf.cast(hu, tf.float32)
    rows, columns = hu.shape[1:3]
    pixels = rows * columns if rows is not None and columns is not None else -1
    if pixels != -1:
        return tf.reshape(hu, [-1, pixels])
    return tf.reshape(hu, [tf.shape(hu)[0], -1])


def _on_integer_bins_if_possible(flat, on_bins, otherwise):
    """Call `on_bins` with bin numbers if all pixels are integer HU within the bins, else `otherwise` with their values.

    Args:
        flat: (B, N) float32 or int32 HU.
    """

    def values():
        # Beyond 1e6 HU interpolation would overflow; nothing there differs from the end of a window.
        return tf.clip_by_value(_without_nan(tf.cast(flat, tf.float32)), -1e6, 1e6)

    lowest, highest = tf.reduce_min(flat), tf.reduce_max(flat)
    in_range = (lowest >= flat.dtype.as_numpy_dtype(_LOWEST_BIN)) & (
        highest < flat.dtype.as_numpy_dtype(_LOWEST_BIN + _BINS)
    )
    if flat.dtype.is_integer:
        possible = in_range
    else:
        possible = in_range & tf.reduce_all(tf.equal(tf.floor(flat), flat))
    return tf.cond(
        possible, lambda: on_bins(tf.cast(flat, tf.int32) - _LOWEST_BIN), lambda: otherwise(values())
    )  # fmt: skip


def _break_positions(pixels, quantiles):
    """Positions of the break points among `pixels` sorted values: floor(n * q), in float32 as fastai has it."""
    return tf.cast(tf.floor(tf.cast(pixels, tf.float32) * quantiles), tf.int32)


def _breaks_to_ranks(breaks):
    """(B, 102) sorted break points -> each one's height in [0, 1], equal break points counted once."""
    new = tf.cast(breaks[:, 1:] > breaks[:, :-1], tf.float32)
    ranks = tf.pad(tf.cumsum(new, axis=1), [[0, 0], [1, 0]])
    return ranks / tf.maximum(ranks[:, -1:], 1.0)


def _places(bins):
    """(B, N) bin numbers -> (B, N) positions in the tables of all slices laid end to end."""
    return bins + _BINS * tf.range(tf.shape(bins)[0])[:, None]


def _look_up(tables, bins):
    """(B, bins, C) tables, (B, N) bin numbers -> (B, N, C). Twice as fast as `tf.gather` with its batch dimension."""
    return tf.gather_nd(tf.reshape(tables, [-1, tables.shape[-1]]), _places(bins)[..., None])


def _histogram_table(bins, quantiles, portable: bool):
    """(B, N) bin numbers -> (B, bins) float32: what each integer HU is scaled to."""
    batch = tf.shape(bins)[0]
    positions = tf.tile(_break_positions(tf.shape(bins)[1], quantiles)[None], [batch, 1])
    if not portable:
        below = tf.cumsum(_counts(bins, batch), axis=1)
        return _interpolate_bins(tf.searchsorted(below, positions, side="right"), batch)
    every_bin = tf.tile(tf.range(_BINS, dtype=tf.float32)[None], [batch, 1])
    places = tf.reshape(_places(bins), [-1])
    ones = tf.cast(places >= 0, tf.int32)  # computed, since a constant would put a megabyte into the file
    counts = tf.scatter_nd(places[:, None], ones, [batch * _BINS])
    below = tf.cumsum(tf.reshape(counts, [batch, _BINS]), axis=1)
    breaks = tf.reduce_sum(tf.cast(below[:, None] <= positions[..., None], tf.float32), axis=-1)
    rises, widths = _segments(breaks)
    parts = tf.clip_by_value((every_bin[:, None] - breaks[:, :-1, None]) / widths[..., None], 0.0, 1.0)
    return tf.reduce_sum(parts * rises[..., None], axis=1)


def _counts(bins, batch):
    """(B, N) bin numbers -> (B, bins) int32: how often each occurs."""
    # one row of bins for all slices: the operation is slower on rows of their own, and with float counts
    counts = tf.raw_ops.DenseBincount(
        input=tf.reshape(_places(bins), [-1]), size=batch * _BINS, weights=tf.zeros([0], tf.int32)
    )
    return tf.reshape(counts, [batch, _BINS])


def _interpolate_bins(breaks, batch):
    """`_interpolate` of every bin number, (B, bins) float32, over breaks (B, K) that are sorted bin numbers.

    A bin's segment is found by counting the breaks below it, which takes half the time of a search.
    """
    last = breaks.shape[1] - 2
    left = tf.clip_by_value(tf.cumsum(_counts(breaks, batch), axis=1) - 1, 0, last)
    breaks = tf.cast(breaks, tf.float32)
    ranks, (rises, widths) = _breaks_to_ranks(breaks), _segments(breaks)
    segments = tf.stack([breaks[:, :-1], ranks[:, :-1], rises / widths, ranks[:, 1:]], -1)
    places = left + (last + 1) * tf.range(batch)[:, None]
    x0, y0, slope, y1 = tf.unstack(tf.gather_nd(tf.reshape(segments, [-1, 4]), places[..., None]), axis=-1)
    return tf.clip_by_value(y0 + slope * (tf.range(_BINS, dtype=tf.float32) - x0), y0, y1)


def _segments(breaks):
    """Rise and width of each segment between the break points (B, K): two tensors (B, K - 1)."""
    ranks = _breaks_to_ranks(breaks)
    return ranks[:, 1:] - ranks[:, :-1], tf.maximum(breaks[:, 1:] - breaks[:, :-1], 1e-6)


def _interpolate(values, breaks):
    """Piecewise-linear interpolation of `values` (B, N) over sorted `breaks` (B, K) onto their ranks in [0, 1]."""
    ranks = _breaks_to_ranks(breaks)
    left = tf.clip_by_value(tf.searchsorted(breaks, values, side="right") - 1, 0, breaks.shape[1] - 2)
    x0, x1 = (tf.gather(breaks, left + i, batch_dims=1) for i in (0, 1))
    y0, y1 = (tf.gather(ranks, left + i, batch_dims=1) for i in (0, 1))
    # Past the last break x1 = x0 may hold; the numerator is then at least 0 and the result is clipped to y1.
    slope = (y1 - y0) / tf.maximum(x1 - x0, 1e-6)
    return tf.clip_by_value(y0 + slope * (values - x0), y0, y1)


def _scale_sorted(values, quantiles, portable: bool):
    """Histogram scaling of any finite values (B, N) float32, by sorting them."""
    pixels = values.shape[1] if values.shape[1] is not None else tf.shape(values)[1]
    if not portable:
        return _interpolate(values, tf.gather(tf.sort(values, axis=1), _break_positions(pixels, quantiles), axis=1))
    # TFLite has neither sort nor searchsorted: add up what each segment contributes
    breaks = tf.gather(-tf.math.top_k(-values, k=pixels).values, _break_positions(pixels, quantiles), axis=1)
    rises, widths = _segments(breaks)

    def add_segment(i, total):
        low, width, rise = (tf.gather(x, [i], axis=1) for x in (breaks, widths, rises))
        return i + 1, total + tf.clip_by_value((values - low) / width, 0.0, 1.0) * rise

    segments = len(quantiles) - 1
    zeros = tf.nn.relu(-tf.abs(values))  # computed, since a constant would put a megabyte into the file
    return tf.while_loop(lambda i, _: i < segments, add_segment, [0, zeros])[1]
