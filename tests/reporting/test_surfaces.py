"""Surfaces of liver and lesions: where they are, and which way they look."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest

from liverseg_tf.data.volume import Geometry, MaskVolume
from liverseg_tf.labels import LIVER_CLASSES, ClassSet
from liverseg_tf.reporting.surfaces import encode_surfaces, render_front, surfaces


def mask_of(labels: np.ndarray, spacing_mm: tuple[float, float, float], classes=LIVER_CLASSES) -> MaskVolume:
    geometry = Geometry.from_spacing(labels.shape, spacing_mm)
    return MaskVolume(geometry.to_file(labels), geometry, classes=classes)


def volume_ml(surface) -> float:
    """By the divergence theorem: positive if triangles are counter-clockwise as seen from outside."""
    a, b, c = (surface.corners_mm[surface.triangles[:, i]].astype(float) for i in range(3))
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6000)


@pytest.fixture(scope="module")
def mask() -> MaskVolume:
    rows, columns, slices = np.indices((60, 80, 40))
    labels = (((rows - 30) / 25) ** 2 + ((columns - 30) / 25) ** 2 + ((slices - 20) / 15) ** 2 < 1).astype(np.uint8)
    labels[(rows - 20) ** 2 + (columns - 20) ** 2 + (2 * (slices - 28)) ** 2 < 36] = 2
    return mask_of(labels, (1.5, 1.5, 3.0))


def test_a_surface_encloses_the_volume_of_its_mask(mask):
    liver, lesion = surfaces(mask)
    assert (liver.lesion, lesion.lesion) == (0, 1)
    voxel_ml = mask.voxel_volume_ml
    assert volume_ml(liver) == pytest.approx((mask.labels > 0).sum() * voxel_ml, rel=0.03)
    assert volume_ml(lesion) == pytest.approx((mask.labels == 2).sum() * voxel_ml, rel=0.1)


def test_a_surface_lies_where_its_mask_is(mask):
    liver, lesion = surfaces(mask)
    for surface, region in ((liver, mask.labels > 0), (lesion, mask.labels == 2)):
        row, column, number = np.argwhere(region).mean(axis=0)
        expected = (column - 39.5) * 1.5, (row - 29.5) * 1.5, (number - 19.5) * 3.0  # to the left, the back, the head
        corners = surface.corners_mm
        assert (corners.min(axis=0) + corners.max(axis=0)) / 2 == pytest.approx(expected, abs=1.5)


def test_what_is_one_voxel_small_has_a_surface_too():
    labels = np.zeros((20, 20, 6), np.uint8)
    labels[5:15, 5:15, 1:5] = 1
    labels[9, 9, 2] = 2
    liver, lesion = surfaces(mask_of(labels, (0.7, 0.7, 5.0)))
    assert len(lesion.triangles) > 7 and volume_ml(lesion) > 0
    assert surfaces(mask_of(np.zeros_like(labels), (1, 1, 1))) == []


def test_further_structures_are_drawn_with_the_organ_or_without():
    classes = ClassSet.of("kidney", "kidney_tumour", "ureter")
    labels = np.zeros((60, 60, 40), np.uint8)
    labels[20:40, 10:40, 10:30] = 1
    labels[24:30, 14:20, 14:20] = 2
    labels[28:32, 44:48, 2:30] = 3  # left of the kidney
    whole = mask_of(labels, (1.5, 1.5, 1.5), classes)
    found = surfaces(whole)
    assert [(one.lesion, one.label) for one in found] == [(0, 1), (1, 2), (0, 3)]
    assert volume_ml(found[2]) == pytest.approx((labels == 3).sum() * whole.voxel_volume_ml, rel=0.25)
    blue, orange, green = (0.0, 0.0, 1.0), (1.0, 0.5, 0.0), (0.0, 1.0, 0.0)
    picture = render_front(found, 200, 200, (blue, orange, green))
    pure = (picture[..., 1] > 0.3) & (picture[..., 0] < 0.05) & (picture[..., 2] < 0.05)
    kidney = picture[..., 2] > 0.1
    assert pure.any() and np.nonzero(pure)[1].min() > np.nonzero(kidney)[1].max()
    alone = surfaces(mask_of(np.where(labels == 3, labels, 0), (1.5, 1.5, 1.5), classes))
    assert [(one.lesion, one.label) for one in alone] == [(0, 3)]
    assert render_front(alone, 50, 50, (blue, orange, green)).any()


def test_encoded_surfaces_come_back(mask):
    found = surfaces(mask)
    about, text = encode_surfaces(found)
    raw, at = zlib.decompress(base64.b64decode(text), 31), 0
    for one, words in zip(found, about, strict=True):
        corners = np.frombuffer(raw, "<i2", 3 * words["corners"], at).reshape(-1, 3) / 10
        at += 6 * words["corners"]
        triangles = np.frombuffer(raw, "<u4", 3 * words["triangles"], at).reshape(-1, 3)
        at += 12 * words["triangles"]
        assert np.abs(corners - one.corners_mm).max() <= 0.051 and np.array_equal(triangles, one.triangles)
    assert at == len(raw) and len(text) < 400_000
