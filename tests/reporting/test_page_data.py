"""Volumes inside a page: decoded again, they are what went in."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest

from liverseg_tf.data.volume import CTVolume
from liverseg_tf.reporting.page_data import (
    Grid,
    choose_grid,
    encode_full_slices,
    encode_labels,
    encode_strength,
    encode_volume,
    slices_of,
)


def unpack(text: str) -> np.ndarray:
    """A line of text is a part of the slices."""
    parts = [zlib.decompress(base64.b64decode(line), 31) for line in text.split("\n")]
    return np.frombuffer(b"".join(parts), np.uint8)


def decode_hu(text: str, shape: tuple[int, int, int], step_hu: int) -> np.ndarray:
    """(slices, rows, columns) HU, decoded independently of the page's script."""
    raw = unpack(text).reshape(shape[0], 2, *shape[1:]).astype(np.int32)
    zigzag = raw[:, 0] | (raw[:, 1] << 8)
    return np.cumsum((zigzag >> 1) ^ -(zigzag & 1), axis=2) * step_hu - 1024


def decode_bytes(text: str, shape: tuple[int, int, int]) -> np.ndarray:
    return np.cumsum(unpack(text).reshape(shape), axis=2, dtype=np.uint8)


@pytest.fixture(scope="module")
def hu() -> np.ndarray:
    hu = np.random.default_rng(0).integers(-1024, 3072, (20, 24, 18)).astype(np.int16)
    hu[0, :4, 0] = -1024, 3071, -1024, 3071
    return hu


def test_hu_come_back_bit_for_bit_at_full_resolution(hu):
    volume = CTVolume.from_array(hu, (1, 1, 1))
    grid, text = encode_volume(volume, choose_grid(volume))
    assert (grid.factor, grid.step_hu) == (1, 1)
    assert np.array_equal(decode_hu(text, (18, 20, 24), 1), np.moveaxis(hu, 2, 0))


@pytest.mark.parametrize("step", [2, 4])
def test_hu_in_steps_are_off_by_half_a_step_at_most(hu, step):
    volume = CTVolume.from_array(hu, (1, 1, 1))
    _, text = encode_volume(volume, Grid(volume.shape, volume.spacing_mm, 1, step))
    assert np.abs(decode_hu(text, (18, 20, 24), step) - np.moveaxis(hu, 2, 0)).max() <= step / 2


def test_what_a_page_cannot_show_is_shown_as_its_limit():
    volume = CTVolume.from_array(np.full((8, 8, 1), -3024, np.int16), (1, 1, 1), hu_range=None)
    _, text = encode_volume(volume, Grid(volume.shape, volume.spacing_mm, 1, 4))
    assert (decode_hu(text, (1, 8, 8), 4) == -1024).all()


def test_a_large_volume_gets_coarser_until_it_fits():
    rng = np.random.default_rng(0)
    volume = CTVolume.from_array(rng.normal(0, 60, (300, 280, 6)).astype(np.int16), (1, 1, 1))
    found = {}
    for budget in (10**7, 500_000, 400_000, 120_000, 30_000):
        grid, text = encode_volume(volume, choose_grid(volume, budget), budget)
        found[budget] = (grid.factor, grid.step_hu)
        assert len(base64.b64decode(text)) <= budget
    assert found[10**7] == (1, 1)
    assert list(found.values()) == sorted(found.values())  # first coarser HU, then coarser pixels
    assert found[30_000][0] > 1 and max(step for _, step in found.values()) == 4


def test_pooled_hu_are_means_and_the_edge_repeats():
    hu = np.arange(5 * 5 * 2, dtype=np.int16).reshape(5, 5, 2) * 4
    volume = CTVolume.from_array(hu, (1, 1, 1))
    _, text = encode_volume(volume, Grid(volume.shape, volume.spacing_mm, 2, 1))
    pooled = decode_hu(text, (2, 3, 3), 1)
    assert pooled[0, 0, 0] == hu[:2, :2, 0].mean()
    assert pooled[1, 2, 2] == hu[4, 4, 1]


def test_masks_keep_small_tumours_when_pixels_are_averaged():
    labels = np.zeros((4, 4, 2), np.uint8)
    labels[:2, :2] = [[[1, 1], [2, 2]], [[2, 2], [1, 0]]]
    labels[3, 3, 1] = 1
    assert np.array_equal(decode_bytes(encode_labels(labels, 1), (2, 4, 4)), np.moveaxis(labels, 2, 0))
    pooled = decode_bytes(encode_labels(labels, 2), (2, 2, 2))
    assert pooled[0, 0, 0] == 2 and pooled[1, 0, 0] == 2 and pooled[1, 1, 1] == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
def test_strengths_keep_sixty_four_levels(dtype):
    values = np.random.default_rng(0).random((6, 7, 3))
    given = np.rint(values * 255).astype(np.uint8) if dtype == np.uint8 else values.astype(dtype)
    decoded = decode_bytes(encode_strength(slices_of(given), 3, 1), (3, 6, 7)) / 255
    assert decoded == pytest.approx(np.moveaxis(values, 2, 0), abs=4 / 255)


def test_full_slices_are_taken_in_order_while_they_fit(hu):
    volume = CTVolume.from_array(hu, (1, 1, 1))
    grid = Grid(volume.shape, volume.spacing_mm, 2, 1)
    taken, text = encode_full_slices(volume, grid, [9, 3, 12], 10**6)
    assert taken == [9, 3, 12]
    assert np.array_equal(decode_hu(text, (3, 20, 24), 1), np.moveaxis(hu[..., [9, 3, 12]], 2, 0))
    one = len(base64.b64decode(encode_full_slices(volume, grid, [9], 10**6)[1]))
    assert encode_full_slices(volume, grid, [9, 3, 12], 2 * one + 200)[0] == [9, 3]
    assert encode_full_slices(volume, grid, [9, 3], 10)[0] == []
