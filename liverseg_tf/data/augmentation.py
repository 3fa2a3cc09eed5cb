"""Augmentation of HU slices and their masks, in graph operations.

All random numbers are functions of the seed pair, so that (seed, epoch, step) gives the same slices on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from liverseg_tf.config import Config
from liverseg_tf.errors import ConfigError
from liverseg_tf.hounsfield import AIR_HU, BODY_HU
from liverseg_tf.labels import BACKGROUND

# HU of unenhanced parenchyma; contrast agent raises soft tissue above it.
_UNENHANCED_HU = 40.0
_BLUR_TAPS = 3


@dataclass(frozen=True)
class Augmentation(Config):
    """Vary a slice as scanners, protocols and patients vary; the mask is moved by the same coordinates.

    One composed warp moves the slice (HU bilinear, labels nearest; air and background outside), then HU are changed.
    Unless said otherwise, an amount is a maximum: a slice draws uniformly from [-amount, amount]. 0 turns a variation
    off.

    Attributes:
        rotation_degrees: in-plane rotation.
        scale: (smallest, largest) magnification, drawn log-uniformly.
        anisotropy: difference in scale of rows and columns, as a fraction.
        shift: shift along rows and along columns, as a fraction of the longer side.
        elastic: displacement of a smooth random field, as a fraction of the longer side.
        elastic_nodes: nodes of that field along each axis.
        flip_rows: mirror front and back in half the slices. Off, as anatomy is not symmetric.
        flip_columns: mirror left and right in half the slices. Off for the same reason.
        hu_shift: added to all HU.
        hu_scale: HU scaled by 1 plus this.
        contrast: HU above unenhanced tissue (40 HU) are stretched by 1 plus this: more or less contrast agent.
        noise_hu: standard deviation of white noise, drawn from [0, noise_hu].
        blur_pixels: standard deviation of a Gaussian blur, drawn from [0, blur_pixels].
        blur_probability: share of slices that are blurred.
        thick_slice_pixels: how far structures move within a simulated thick slice, as the mean of three shifted copies.
        thick_slice_probability: share of slices made thick.
        couch_removed_probability: share of slices in which thin structures outside the body become air.
        couch_added_probability: share of slices that get a curved couch below the body.

    Raises:
        ConfigError: for a negative amount, a probability outside [0, 1], or an impossible scale.

    Examples:
        >>> import tensorflow as tf
        >>> hu, labels = tf.zeros((64, 64)), tf.ones((64, 64), tf.uint8)
        >>> hu, labels = Augmentation()(hu, labels, seed=(0, 1))
        >>> hu.shape, labels.dtype
        (TensorShape([64, 64]), tf.uint8)
    """

    rotation_degrees: float = 12.0
    scale: tuple[float, float] = (0.8, 1.25)
    anisotropy: float = 0.06
    shift: float = 0.08
    elastic: float = 0.0
    elastic_nodes: int = 6
    flip_rows: bool = False
    flip_columns: bool = False
    hu_shift: float = 15.0
    hu_scale: float = 0.05
    contrast: float = 0.2
    noise_hu: float = 12.0
    blur_pixels: float = 1.0
    blur_probability: float = 0.2
    thick_slice_pixels: float = 1.5
    thick_slice_probability: float = 0.15
    couch_removed_probability: float = 0.1
    couch_added_probability: float = 0.1

    def __post_init__(self) -> None:
        for name in (
            "rotation_degrees",
            "anisotropy",
            "shift",
            "elastic",
            "hu_shift",
            "hu_scale",
            "contrast",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(f"augmentation: {name} must not be negative. Received: {getattr(self, name)}")
        for name in ("noise_hu", "blur_pixels", "thick_slice_pixels"):
            if getattr(self, name) < 0:
                raise ConfigError(f"augmentation: {name} must not be negative. Received: {getattr(self, name)}")
        for name in (f for f in self.__dataclass_fields__ if f.endswith("_probability")):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augmentation: expected {name} from 0 to 1. Received: {getattr(self, name)}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"augmentation: expected scale as (smallest, largest) above 0. Received: {self.scale}")
        if self.elastic_nodes < 2:
            raise ConfigError(f"augmentation: elastic_nodes must be at least 2. Received: {self.elastic_nodes}")

    def __call__(self, hu: Any, labels: Any, seed: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Augment slices.

        Args:
            hu: (H, W) or (B, H, W) HU, any real dtype; H and W static or not.
            labels: the same shape, integer class indices (255, "ignore", is treated like any other).
            seed: two integers, or an int tensor of shape (2,). Slices of one batch vary independently.

        Returns:
            hu float32 and labels uint8, in the shapes of the input.
        """
        hu, labels, single = as_batch(hu, labels)
        seeds = tf.unstack(tf.random.split(tf.convert_to_tensor(seed, tf.int32), num=9))
        hu = self._couch(hu, seeds[0])
        hu, labels = self._warp(hu, labels, seeds[1])
        hu = self._thick_slices(hu, seeds[3])
        hu = self._densities(hu, seeds[4])
        hu = self._blur(hu, seeds[5])
        if self.noise_hu:
            level = _draw(hu, seeds[6], 0.0, self.noise_hu)
            hu = hu + level * tf.random.stateless_normal(tf.shape(hu), seeds[7])
        return (hu[0], labels[0]) if single else (hu, labels)

    def _warp(self, hu, labels, seed):
        if not (
            self.rotation_degrees
            or self.scale != (1.0, 1.0)
            or self.anisotropy
            or self.shift
            or self.elastic
            or self.flip_rows
            or self.flip_columns
        ):
            return hu, labels
        seeds = tf.unstack(tf.random.split(seed, num=8))
        shape = tf.shape(hu)
        rows, columns = tf.cast(shape[1], tf.float32), tf.cast(shape[2], tf.float32)
        side = tf.maximum(rows, columns)
        angle = _draw(hu, seeds[0], -self.rotation_degrees, self.rotation_degrees) * (3.14159265 / 180.0)
        low, high = tf.math.log(self.scale[0]), tf.math.log(self.scale[1])
        magnification = tf.exp(_draw(hu, seeds[1], low, high))
        apart = tf.sqrt(1.0 + _draw(hu, seeds[2], -self.anisotropy, self.anisotropy))
        row_factor, column_factor = 1.0 / (magnification * apart), apart / magnification
        if self.flip_rows:
            row_factor *= _sign(hu, seeds[3])
        if self.flip_columns:
            column_factor *= _sign(hu, seeds[4])
        y = tf.range(rows)[None, :, None] - (rows - 1) / 2 - side * _draw(hu, seeds[5], -self.shift, self.shift)
        x = tf.range(columns)[None, None, :] - (columns - 1) / 2 - side * _draw(hu, seeds[6], -self.shift, self.shift)
        # Where each output pixel comes from: rotate back, then scale back.
        sine, cosine = tf.sin(angle), tf.cos(angle)
        from_y = row_factor * (cosine * y + sine * x) + (rows - 1) / 2
        from_x = column_factor * (cosine * x - sine * y) + (columns - 1) / 2
        if self.elastic:
            field = smooth_noise(shape, self.elastic_nodes, seeds[7], channels=2)
            from_y += self.elastic * side * field[..., 0]
            from_x += self.elastic * side * field[..., 1]
        return _sample(hu, labels, from_y, from_x)

    def _thick_slices(self, hu, seed):
        if not (self.thick_slice_pixels and self.thick_slice_probability):
            return hu
        seeds = tf.unstack(tf.random.split(seed, num=3))
        length = _draw(hu, seeds[0], 0.0, self.thick_slice_pixels)
        chosen = _chosen(hu, seeds[1], self.thick_slice_probability)
        angle = _draw(hu, seeds[2], 0.0, 3.14159265)
        step_y, step_x = length * tf.sin(angle), length * tf.cos(angle)

        def thick():
            # both at once: half as many operations to trace
            both = tf.concat([hu, hu], 0), tf.concat([step_y, -step_y], 0), tf.concat([step_x, -step_x], 0)
            ahead, behind = tf.split(_moved(*both), 2)
            return tf.where(chosen, (ahead + hu + behind) / 3.0, hu)

        return tf.cond(tf.reduce_any(chosen), thick, lambda: hu)

    def _densities(self, hu, seed):
        seeds = tf.unstack(tf.random.split(seed, num=3))
        if self.contrast:
            hu = hu + _draw(hu, seeds[0], -self.contrast, self.contrast) * tf.nn.relu(hu - _UNENHANCED_HU)
        if self.hu_scale or self.hu_shift:
            gain = 1.0 + _draw(hu, seeds[1], -self.hu_scale, self.hu_scale)
            hu = gain * hu + _draw(hu, seeds[2], -self.hu_shift, self.hu_shift)
        return hu

    def _blur(self, hu, seed):
        if not (self.blur_pixels and self.blur_probability):
            return hu
        seeds = tf.unstack(tf.random.split(seed, num=2))
        sigma = _draw(hu, seeds[0], 0.05, tf.maximum(self.blur_pixels, 0.05))
        chosen = _chosen(hu, seeds[1], self.blur_probability)

        def blurred():
            offsets = tf.range(-_BLUR_TAPS, _BLUR_TAPS + 1, dtype=tf.float32)
            taps = tf.nn.softmax(-0.5 * tf.square(offsets / sigma[:, :, 0]), axis=1)[:, :, None, None]
            taps = tf.unstack(taps, axis=1)  # 7 of (B, 1, 1)
            result, size = hu, tf.shape(hu)
            for axis in (1, 2):
                padding = [[0, 0], [0, 0], [0, 0]]
                padding[axis] = [_BLUR_TAPS, _BLUR_TAPS]
                padded = tf.pad(result, padding, "SYMMETRIC")
                starts = ([0, i, 0] if axis == 1 else [0, 0, i] for i in range(len(taps)))
                result = tf.add_n([tap * tf.slice(padded, at, size) for tap, at in zip(taps, starts, strict=True)])
            return tf.where(chosen, result, hu)

        return tf.cond(tf.reduce_any(chosen), blurred, lambda: hu)

    def _couch(self, hu, seed):
        if not (self.couch_removed_probability or self.couch_added_probability):
            return hu
        seeds = tf.unstack(tf.random.split(seed, num=6))
        remove = _chosen(hu, seeds[0], self.couch_removed_probability)
        add = _chosen(hu, seeds[1], self.couch_added_probability)

        def changed():
            body = _body(hu)
            result = tf.where(remove & ~body, AIR_HU, hu)
            rows, columns = (
                tf.cast(tf.shape(hu)[1], tf.float32),
                tf.cast(tf.shape(hu)[2], tf.float32),
            )
            y, x = (
                tf.range(rows)[None, :, None],
                tf.range(columns)[None, None, :] / columns - 0.5,
            )
            lowest = tf.reduce_max(tf.where(body, y, 0.0), axis=(1, 2), keepdims=True)
            top = lowest + 2.0 + _draw(hu, seeds[2], 0.0, 0.04) * rows
            top -= _draw(hu, seeds[3], 0.0, 0.6) * rows * tf.square(x)  # it rises at both sides
            thickness = _draw(hu, seeds[4], 1.5, 5.0)
            couch = add & (y >= top) & (y < top + thickness) & ~body & (lowest > 0.0)
            return tf.where(couch, _draw(hu, seeds[5], -150.0, 150.0), result)

        return tf.cond(tf.reduce_any(remove | add), changed, lambda: hu)


def as_batch(hu: Any, labels: Any) -> tuple[tf.Tensor, tf.Tensor, bool]:
    """Convert one slice or a batch to (B, H, W) float32 and uint8; also returns whether it was one slice."""
    hu = tf.cast(tf.convert_to_tensor(hu), tf.float32)
    labels = tf.cast(tf.convert_to_tensor(labels), tf.uint8)
    single = hu.shape.rank == 2
    return (hu[None], labels[None], True) if single else (hu, labels, False)


def smooth_noise(shape, nodes: int, seed, channels: int = 1):
    """Random fields that vary smoothly: uniform noise in [-1, 1] on a coarse grid, interpolated linearly.

    Args:
        shape: (B, H, W), a tensor.
        nodes: nodes of the grid along each axis.
        seed: int tensor of shape (2,).
        channels: independent fields for each slice.

    Returns:
        (B, H, W, channels) float32 in [-1, 1].
    """
    grid = uniform([shape[0], nodes, nodes, channels], seed) * 2.0 - 1.0
    return tf.image.resize(grid, shape[1:3], method="bilinear")


def uniform(shape, seed):
    """The numbers of `tf.random.stateless_uniform` in [0, 1) with a third of its operations: tracing takes seconds."""
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    algorithm = tf.random.Algorithm.AUTO_SELECT.value
    return tf.raw_ops.StatelessRandomUniformV2(shape=shape, key=key, counter=counter, alg=algorithm)


def slices_in(batch) -> int | tf.Tensor:
    """B of (B, H, W); a Python integer if it is known."""
    return tf.shape(batch)[0] if batch.shape[0] is None else batch.shape[0]


def _draw(hu, seed, low, high):
    """One uniform number for each slice of the batch, shape (B, 1, 1)."""
    return uniform([slices_in(hu), 1, 1], seed) * (high - low) + low


def _chosen(hu, seed, probability):
    return _draw(hu, seed, 0.0, 1.0) < probability


def _sign(hu, seed):
    return tf.where(_chosen(hu, seed, 0.5), 1.0, -1.0)


def _bilinear(hu, y, x):
    """HU at fractional pixel positions, air outside. One gather fetches all four neighbours."""
    shape = tf.shape(hu)
    batch, rows, columns = tf.unstack(shape)
    padded = tf.pad(hu, [[0, 0], [1, 2], [1, 2]], constant_values=AIR_HU)
    size = shape + [0, 2, 2]
    corners = [tf.slice(padded, [0, i, j], size) for i in (0, 1) for j in (0, 1)]
    neighbors = tf.reshape(tf.stack(corners, -1), [batch, -1, 4])
    y = tf.clip_by_value(y + 1.0, 0.0, tf.cast(rows + 1, tf.float32))
    x = tf.clip_by_value(x + 1.0, 0.0, tf.cast(columns + 1, tf.float32))
    y0, x0 = tf.floor(y), tf.floor(x)
    index = tf.cast(y0, tf.int32) * (columns + 2) + tf.cast(x0, tf.int32)
    values = tf.gather(neighbors, tf.reshape(index, [batch, -1]), batch_dims=1)
    values = tf.reshape(values, tf.concat([tf.shape(index), [4]], 0))
    dy, dx = y - y0, x - x0
    upper = values[..., 0] + dx * (values[..., 1] - values[..., 0])
    lower = values[..., 2] + dx * (values[..., 3] - values[..., 2])
    return tf.ensure_shape(upper + dy * (lower - upper), hu.shape)


def _sample(hu, labels, y, x):
    """HU bilinearly and labels by the nearest pixel, both at the same positions."""
    rows, columns = tf.shape(hu)[1], tf.shape(hu)[2]
    row, column = tf.cast(tf.round(y), tf.int32), tf.cast(tf.round(x), tf.int32)
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    index = tf.clip_by_value(row, 0, rows - 1) * columns + tf.clip_by_value(column, 0, columns - 1)
    batch = tf.shape(hu)[0]
    picked = tf.gather(tf.reshape(labels, [batch, -1]), tf.reshape(index, [batch, -1]), batch_dims=1)
    picked = tf.where(inside, tf.reshape(picked, tf.shape(index)), tf.constant(BACKGROUND, tf.uint8))
    return _bilinear(hu, y, x), tf.ensure_shape(picked, labels.shape)


def _moved(hu, step_y, step_x):
    """The slices moved by a fraction of a pixel or more, (B, 1, 1) each; the border repeats."""
    rows, columns = (
        tf.cast(tf.shape(hu)[1], tf.float32),
        tf.cast(tf.shape(hu)[2], tf.float32),
    )
    zero = tf.zeros_like(hu)
    y = tf.clip_by_value(tf.range(rows)[None, :, None] + step_y + zero, 0.0, rows - 1.0)
    x = tf.clip_by_value(tf.range(columns)[None, None, :] + step_x + zero, 0.0, columns - 1.0)
    return _bilinear(hu, y, x)


def _body(hu):
    """(B, H, W) bool: tissue without thin structures such as the couch's shell (morphological opening)."""

    def dilated(mask, size):
        mask = tf.nn.max_pool2d(mask, (size, 1), 1, "SAME")
        return tf.nn.max_pool2d(mask, (1, size), 1, "SAME")

    tissue = tf.cast(hu > BODY_HU, tf.float32)[..., None]
    # So that lungs and bowel gas count as body: dilate, fill by rows and columns, erode.
    closed = 1.0 - dilated(1.0 - tissue, 9)
    core = dilated(closed, 13) > 0.5
    core = core[..., 0]
    between_rows = tf.math.cumsum(tf.cast(core, tf.int32), 1) * tf.math.cumsum(tf.cast(core, tf.int32), 1, reverse=True)
    between_columns = tf.math.cumsum(tf.cast(core, tf.int32), 2) * tf.math.cumsum(
        tf.cast(core, tf.int32), 2, reverse=True
    )
    return core | ((between_rows > 0) & (between_columns > 0))
