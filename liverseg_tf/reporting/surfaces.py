"""Surfaces of liver and lesions as triangles, for the page's view in three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from liverseg_tf.data.volume import MaskVolume
from liverseg_tf.evaluation.lesion_axes import numbered_lesions
from liverseg_tf.evaluation.surface import Box, bounding_box, class_box, within
from liverseg_tf.labels import BACKGROUND, LIVER, TUMOUR
from liverseg_tf.reporting.page_data import gzip, to_text

# A liver of 1500 ml then has about 20,000 triangles.
_LIVER_STEP_MM = 4.0
_STEPS_ALONG_LESION = 20
_FURTHER_STEP_MM = 1.5
# Corners are stored as whole multiples of this.
_CORNER_STEP_MM = 0.1
_MOST_LESIONS = 100


@dataclass(frozen=True, eq=False)
class Surface:
    """A closed surface.

    Attributes:
        lesion: number of the lesion, or 0 for the organ and further structures.
        corners_mm: (N, 3) float32, towards the patient's left, back and head from the middle of the volume.
        triangles: (M, 3) int32 indices of corners, counter-clockwise as seen from outside.
        label: class index.
    """

    lesion: int
    corners_mm: np.ndarray
    triangles: np.ndarray
    label: int = LIVER


def surfaces(mask: MaskVolume) -> list[Surface]:
    """Surfaces of the organ with its lesions, of each lesion (the 100 largest), and of each further structure, by
    marching cubes.

    Examples:
        >>> from liverseg_tf.data.volume import Geometry
        >>> labels = np.zeros((30, 30, 30), np.uint8)
        >>> labels[5:25, 5:25, 5:25] = 1
        >>> [liver] = surfaces(MaskVolume(labels, Geometry.from_spacing(labels.shape, (2, 2, 2))))
        >>> liver.lesion, bool(abs(liver.corners_mm).max().round() <= 20)
        (0, True)
    """
    found = []
    box = bounding_box(mask.organ_labels)
    if box is not None:
        found.append(_surface(0, LIVER, mask.organ_labels[box] != BACKGROUND, box, mask, _LIVER_STEP_MM))
    numbered, lesion_box = numbered_lesions(mask.organ_labels)
    if lesion_box is not None:
        from scipy import ndimage

        for number, own in enumerate(ndimage.find_objects(numbered)[:_MOST_LESIONS], start=1):
            lesion = numbered[own] == number
            longest = max(n * s for n, s in zip(lesion.shape, mask.spacing_mm, strict=True))
            found.append(_surface(number, TUMOUR, lesion, within(lesion_box, own), mask, longest / _STEPS_ALONG_LESION))
    for structure in mask.classes.further:
        box = class_box(mask.labels, structure.index)
        if box is not None:
            region = mask.labels[box] == structure.index
            found.append(_surface(0, structure.index, region, box, mask, _FURTHER_STEP_MM))
    return found


def encode_surfaces(found: list[Surface]) -> tuple[list[dict[str, Any]], str]:
    """Describe surfaces, and put them one after another: corners as int16, then triangles as uint32.

    Returns:
        What each is, and base64 of gzip.
    """
    about, parts = [], []
    for one in found:
        about.append(
            {"lesion": one.lesion, "label": one.label, "corners": len(one.corners_mm), "triangles": len(one.triangles)}
        )
        parts.append(np.rint(one.corners_mm / _CORNER_STEP_MM).clip(-32768, 32767).astype("<i2").tobytes())
        parts.append(one.triangles.astype("<u4").tobytes())
    return about, to_text(gzip(b"".join(parts)))


def pooled(region: np.ndarray, factors: list[int]) -> np.ndarray:
    """Share of each block of voxels that belongs to the region, float32."""
    padded = np.pad(region, [(0, -n % f) for n, f in zip(region.shape, factors, strict=True)])
    shape = [part for n, f in zip(padded.shape, factors, strict=True) for part in (n // f, f)]
    return padded.reshape(shape).mean(axis=(1, 3, 5), dtype=np.float32)


def _surface(lesion: int, label: int, region: np.ndarray, box: Box, mask: MaskVolume, step_mm: float) -> Surface:
    from scipy import ndimage
    from skimage.measure import marching_cubes

    factors = [max(1, round(step_mm / s)) for s in mask.spacing_mm]
    share = ndimage.gaussian_filter(np.pad(pooled(region, factors), 2), 0.6)
    # what is thinner than the grid has no voxel that is half full
    level = 0.5 if share.max() > 0.6 else 0.5 * float(share.max())
    corners, triangles, _, _ = marching_cubes(share, level)
    start = np.array([s.start for s in box])
    index = (corners - 2) * factors + (np.array(factors) - 1) / 2 + start
    places = (index - (np.array(mask.shape) - 1) / 2) @ mask.geometry.steps_mm.T
    # (rows, columns, slices) run to the back, the left and the head; with two axes changed, triangles look outwards
    return Surface(lesion, places[:, [1, 0, 2]].astype(np.float32), triangles.astype(np.int32), label)


def render_front(found: list[Surface], height: int, width: int, colors: Sequence[tuple[float, ...]]) -> np.ndarray:
    """Draw surfaces as seen from anterior, the patient's right on the left: the organ translucent, all else solid.

    Args:
        found: of `surfaces`.
        height, width: of the picture in pixels.
        colors: RGB in [0, 1] by class, from class 1 on.

    Returns:
        (height, width, 3) float32 in [0, 1] on black.
    """
    picture = np.zeros((height, width, 3), np.float32)
    if not found:
        return picture
    whole = np.concatenate([one.corners_mm for one in found if not one.lesion])
    low, high = whole.min(axis=0), whole.max(axis=0)
    middle, extent = (low + high) / 2, np.maximum(high - low, 1e-3)
    scale = 0.86 * min(width / extent[0], height / extent[2])
    organ = [one for one in found if one.label == LIVER]
    for group, opacity in (([one for one in found if one.label != LIVER], 1.0), (organ, 0.45)):
        shade = np.full((height, width), np.nan, np.float32)
        depth = np.full((height, width), np.inf, np.float32)
        label = np.zeros((height, width), np.intp)
        for one in group:
            behind = depth.copy()
            places = (one.corners_mm - middle) * scale
            _rasterise(places[:, 0] + width / 2, height / 2 - places[:, 2], places[:, 1], one, depth, shade)
            label[depth < behind] = one.label - 1
        seen = ~np.isnan(shade)
        own = shade[seen, None] * np.array(colors, np.float32)[label[seen]]
        picture[seen] = (1 - opacity) * picture[seen] + opacity * own
    return picture


def _rasterise(x: np.ndarray, y: np.ndarray, z: np.ndarray, one: Surface, depth: np.ndarray, shade: np.ndarray) -> None:
    """Put points on all triangles, closer together than pixels, and keep the one in front (the smallest z)."""
    corners = np.stack([x, y, z], axis=1)[one.triangles]
    normals = _normals(one)[one.triangles]
    longest = np.abs(corners - np.roll(corners, 1, axis=1))[..., :2].max(axis=(1, 2))
    steps = np.ceil(1.5 * longest).astype(int).clip(1, 60)
    for count in np.unique(steps):
        some = steps == count
        first, second = np.divmod(np.arange((count + 1) ** 2), count + 1)
        weights = np.stack([first, second, count - first - second], axis=1)[first + second <= count] / count
        points = np.einsum("kc,tcd->tkd", weights, corners[some]).reshape(-1, 3)
        turned = np.einsum("kc,tcd->tkd", weights, normals[some]).reshape(-1, 3)
        column, row = np.floor(points[:, :2]).astype(int).T
        inside = (row >= 0) & (row < depth.shape[0]) & (column >= 0) & (column < depth.shape[1])
        row, column, points, turned = row[inside], column[inside], points[inside], turned[inside]
        order = np.argsort(-points[:, 2], kind="stable")  # of those in one pixel the last one stays: the one in front
        row, column, near, turned = row[order], column[order], points[order, 2], turned[order]
        frame = np.full(depth.shape, np.inf, np.float32)
        light = np.zeros(depth.shape, np.float32)
        frame[row, column] = near
        # from the front, a little from above and the right
        towards = turned @ np.array([-0.35, -0.83, 0.43])
        light[row, column] = 0.35 + 0.65 * towards.clip(0, 1)
        closer = frame < depth
        depth[closer], shade[closer] = frame[closer], light[closer]


def _normals(one: Surface) -> np.ndarray:
    """(N, 3) unit vectors that look outwards at the corners."""
    a, b, c = (one.corners_mm[one.triangles[:, i]] for i in range(3))
    of_triangles = np.cross(b - a, c - a)
    normals = np.zeros_like(one.corners_mm)
    for i in range(3):
        np.add.at(normals, one.triangles[:, i], of_triangles)
    return normals / np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-9)
