"""Encode volumes as text for a page: averaged to fewer pixels, in HU steps, as differences from the left neighbour,
gzipped, in base64.

A line of text holds `SLICES_A_LINE` slices, so that a browser can show one before it has decoded the others.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from liverseg_tf.data.volume import CTVolume
from liverseg_tf.evaluation.surface import Box
from liverseg_tf.hounsfield import AIR_HU, HIGHEST_HU

# Bytes of gzip; base64 makes a third more of them, and the page must stay under 25 MB.
VOLUME_BYTES = 14_200_000
PICTURE_BYTES = 16_500_000  # with the slices at full resolution
# Tried in this order until the volume fits: first coarser HU, then coarser pixels.
_STEPS_HU = (1, 2, 4)
_LARGEST_IN_PLANE = (None, 256, 192, 128, 96, 64)
SLICES_A_LINE = 16
_SAMPLED_SLICES = 6
# Slices from the first number up to the second, (rows, columns, slices): whole volumes of strengths take much memory.
Slices = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class Grid:
    """What a page shows of a volume.

    Attributes:
        shape: (rows, columns, slices) of the volume.
        spacing_mm: along them.
        factor: how many pixels are averaged along rows, and along columns.
        step_hu: HU are rounded to -1024 plus a multiple of this.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    factor: int
    step_hu: int

    @property
    def coarse_shape(self) -> tuple[int, int]:
        """Rows and columns after averaging."""
        return -(-self.shape[0] // self.factor), -(-self.shape[1] // self.factor)


def choose_grid(volume: CTVolume, budget_bytes: int = VOLUME_BYTES) -> Grid:
    """Choose the finest grid whose volume takes up to `budget_bytes`, by compressing a few slices.

    Args:
        volume: the CT.
        budget_bytes: of gzip.
    """
    slices = volume.shape[2]
    sample = np.unique(np.linspace(0, slices - 1, min(slices, _SAMPLED_SLICES)).round().astype(int))
    hu = np.concatenate([volume.slices(i, i + 1) for i in sample])
    grids = _grids(volume)
    for grid in grids:
        packed = len(gzip(_encode_steps(_pool_mean(hu, grid.factor), grid.step_hu)))
        if packed * slices / len(sample) <= 0.97 * budget_bytes:
            return grid
    return grids[-1]


def _grids(volume: CTVolume) -> list[Grid]:
    largest = max(volume.shape[:2])
    pairs = []
    for limit in _LARGEST_IN_PLANE:
        factor = 1 if limit is None else -(-largest // limit)
        for step in _STEPS_HU if limit is None or limit == 256 else _STEPS_HU[-1:]:
            if (factor, step) not in pairs:
                pairs.append((factor, step))
    return [Grid(volume.shape, volume.spacing_mm, factor, step) for factor, step in pairs]


def encode_volume(volume: CTVolume, grid: Grid, budget_bytes: int = VOLUME_BYTES) -> tuple[Grid, str]:
    """Encode HU; takes a coarser grid where the chosen one turns out too large.

    Returns:
        The grid taken, and base64 text.
    """
    coarser = [g for g in _grids(volume) if (g.factor, g.step_hu) > (grid.factor, grid.step_hu)]
    for candidate in [grid, *coarser]:
        text = _to_lines(
            _encode_steps(_pool_mean(volume.slices(a, b), candidate.factor), candidate.step_hu)
            for a, b in _batches(volume.shape[2])
        )
        if packed_bytes({"hu": text}) <= budget_bytes:
            break
    return candidate, text


def encode_layers(
    volume: CTVolume, masks: dict[str, np.ndarray], strengths: dict[str, Slices], budget_bytes: int = VOLUME_BYTES
) -> tuple[Grid, dict[str, str]]:
    """Encode HU and what is laid over them, on one grid; a coarser one where all of it turns out too large.

    Args:
        volume: the CT.
        masks: uint8 labels of its shape.
        strengths: by name; as `encode_strength` takes them.
        budget_bytes: of gzip, for the HU.

    Returns:
        The grid, and base64 texts by name; of the HU: "hu".
    """
    most_bytes = budget_bytes + PICTURE_BYTES - VOLUME_BYTES
    while True:
        grid, hu = encode_volume(volume, choose_grid(volume, budget_bytes), budget_bytes)
        texts = {"hu": hu}
        texts |= {key: encode_labels(mask, grid.factor) for key, mask in masks.items()}
        texts |= {key: encode_strength(given, volume.shape[2], grid.factor) for key, given in strengths.items()}
        excess = packed_bytes(texts) - most_bytes
        if excess <= 0 or grid == _grids(volume)[-1]:
            return grid, texts
        budget_bytes = min(budget_bytes, len(hu) * 3 // 4) - excess


def packed_bytes(texts: dict[str, str]) -> int:
    """Bytes behind base64 texts."""
    return sum(map(len, texts.values())) * 3 // 4


def encode_full_slices(volume: CTVolume, grid: Grid, indices: list[int], budget_bytes: int) -> tuple[list[int], str]:
    """Encode slices at full resolution, in the order given, as many as fit.

    Returns:
        Indices of those taken, and base64 text of their HU, a line each.
    """
    lines, used = [], 0
    for index in indices:
        line = to_text(gzip(_encode_steps(volume.slices(index, index + 1), grid.step_hu)))
        used += packed_bytes({"hu": line})
        if used > budget_bytes:
            break
        lines.append(line)
    return indices[: len(lines)], "\n".join(lines)


def encode_labels(labels: np.ndarray, factor: int, slices_a_line: int = SLICES_A_LINE) -> str:
    """Encode a mask (rows, columns, slices) uint8, by the class with most pixels where pixels are averaged."""
    return _encode_bytes(slices_of(labels), labels.shape[2], lambda planes: _pool_labels(planes, factor), slices_a_line)


def encode_numbers(numbered: np.ndarray, box: Box | None, shape: tuple[int, ...], factor: int) -> str:
    """Encode lesions' numbers, given in a box of the volume; the highest of a block, and none above 255."""
    whole = np.zeros(shape, np.uint8, order="F")  # slices without lesions take no memory
    if box is not None:
        whole[box] = np.where(numbered <= 255, numbered, 0)
    return _encode_bytes(
        slices_of(whole),
        shape[2],
        lambda planes: planes if factor == 1 else _blocks(planes, factor).max(axis=(2, 4)),
    )


def slices_of(volume: np.ndarray) -> Slices:
    """Those of an array (rows, columns, slices) in memory."""
    return lambda first, last: volume[..., first:last]


def encode_strength(given: Slices, slices: int, factor: int) -> str:
    """Encode uint8, or float in [0, 1]; 64 levels are kept, since a picture shows no more."""

    def pooled(planes: np.ndarray) -> np.ndarray:
        planes = planes.astype(np.float32) * (1.0 if planes.dtype == np.uint8 else 255.0)
        return (np.rint(_pool_mean(planes, factor) / 4).clip(0, 63) * 4).astype(np.uint8)

    return _encode_bytes(given, slices, pooled)


def gzip(content: bytes) -> bytes:
    """Compress, reproducibly."""
    # "filtered" is for what a predictor left over: 6 % smaller than the default here
    packer = zlib.compressobj(7, zlib.DEFLATED, 31, 9, zlib.Z_FILTERED)
    return packer.compress(content) + packer.flush()


def to_text(packed: bytes) -> str:
    """Base64."""
    return base64.b64encode(packed).decode("ascii")


def _to_lines(parts: Iterable[bytes]) -> str:
    return "\n".join(to_text(gzip(part)) for part in parts)


def _encode_bytes(
    given: Slices, slices: int, pooled: Callable[[np.ndarray], np.ndarray], slices_a_line: int = SLICES_A_LINE
) -> str:
    def parts() -> Iterator[bytes]:
        for first, last in _batches(slices, slices_a_line):
            planes = pooled(np.ascontiguousarray(np.moveaxis(given(first, last), 2, 0)))
            yield np.diff(planes, axis=2, prepend=planes.dtype.type(0)).tobytes()

    return _to_lines(parts())


def _encode_steps(hu: np.ndarray, step_hu: int) -> bytes:
    """(slices, rows, columns) HU -> for each slice the low bytes, then the high bytes of zigzag-coded differences."""
    parts = []
    for plane in hu:  # one at a time stays in the processor's cache
        above = np.clip(plane, AIR_HU, HIGHEST_HU) - AIR_HU
        whole = step_hu == 1 and np.issubdtype(above.dtype, np.integer)
        steps = (above if whole else np.rint(above / step_hu)).astype(np.int16)
        difference = np.diff(steps, axis=1, prepend=np.int16(0))
        zigzag = ((difference << 1) ^ (difference >> 15)).view(np.uint16)
        parts += [(zigzag & 255).astype(np.uint8).tobytes(), (zigzag >> 8).astype(np.uint8).tobytes()]
    return b"".join(parts)


def _batches(slices: int, size: int = SLICES_A_LINE) -> Iterator[tuple[int, int]]:
    for first in range(0, slices, size):
        yield first, min(first + size, slices)


def _blocks(planes: np.ndarray, factor: int) -> np.ndarray:
    """(B, rows, columns) -> (B, rows / factor, factor, columns / factor, factor); the last row and column repeat."""
    rows, columns = planes.shape[1:]
    padding = ((0, 0), (0, -rows % factor), (0, -columns % factor))
    padded = np.pad(planes, padding, mode="edge")
    return padded.reshape(len(planes), padded.shape[1] // factor, factor, padded.shape[2] // factor, factor)


def _pool_mean(planes: np.ndarray, factor: int) -> np.ndarray:
    return planes if factor == 1 else _blocks(planes, factor).mean(axis=(2, 4), dtype=np.float32)


def _pool_labels(labels: np.ndarray, factor: int) -> np.ndarray:
    if factor == 1:
        return labels
    blocks = _blocks(labels, factor)
    # ties go to the higher class: a small tumour should rather be seen
    highest = int(labels.max(initial=0))
    counts = np.stack([(blocks == label).sum(axis=(2, 4), dtype=np.uint16) for label in range(highest, -1, -1)])
    return (highest - counts.argmax(axis=0)).astype(np.uint8)
