"""Long and short axes of lesions, their end points, and one numbering for all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liverseg_tf.data.volume import Geometry, MaskVolume
from liverseg_tf.evaluation.lesion_axes import lesion_axes, numbered_lesions, volume_sd
from liverseg_tf.evaluation.statistics import statistics


def ellipsoid(shape, radii, turn=0.0):
    """Voxels of 1 mm; the first two axes turned by `turn`."""
    z = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij"), -1)
    c, s = np.cos(turn), np.sin(turn)
    z = z @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return (np.square(z / radii).sum(-1)) <= 1


def length(ends):
    return np.linalg.norm(np.subtract(*ends))


@pytest.mark.parametrize("turn", [0.0, 0.4, 1.2, 2.5])
def test_axes_of_an_ellipsoid(turn):
    lesion = ellipsoid((50, 50, 21), (20, 10, 6), turn)
    axes = lesion_axes(lesion, Geometry.from_spacing(lesion.shape, (1, 1, 1)))
    assert axes.long_axis_mm == pytest.approx(40, abs=1.2)
    assert axes.short_axis_mm == pytest.approx(20, abs=1.5)
    assert axes.slice == 10
    assert axes.largest_diameter_mm == pytest.approx(40, abs=1.2)
    assert length(axes.long_axis_ends_mm) == pytest.approx(axes.long_axis_mm, abs=0.01)
    assert length(axes.short_axis_ends_mm) == pytest.approx(axes.short_axis_mm, abs=0.01)
    along, across = (np.subtract(*e) for e in (axes.long_axis_ends_mm, axes.short_axis_ends_mm))
    assert along @ across == pytest.approx(0, abs=0.1)


def test_the_largest_diameter_leaves_the_slice():
    lesion = ellipsoid((25, 25, 41), (5, 5, 18))
    axes = lesion_axes(lesion, Geometry.from_spacing(lesion.shape, (1, 1, 2)))
    assert axes.long_axis_mm == pytest.approx(10, abs=1.2)
    assert axes.largest_diameter_mm == pytest.approx(72, abs=2.5)


def test_spacing_offset_and_the_files_coordinates():
    geometry = Geometry((40, 30, 20), np.array([[0, 0, -3, 50.0], [2, 0, 0, -20], [0, -1.5, 0, 9], [0, 0, 0, 1]]))
    lesion = np.zeros(geometry.canonical_shape, bool)
    lesion[4:6, 7:12, 3] = True
    box = np.s_[4:6, 7:12, 3:4]
    whole = lesion_axes(lesion, geometry)
    part = lesion_axes(lesion[box], geometry, (4, 7, 3))
    assert part.short_axis_mm == pytest.approx(whole.short_axis_mm)
    assert (part.slice, part.long_axis_mm) == (whole.slice, whole.long_axis_mm) == (3, pytest.approx(15.13, abs=0.02))
    assert (part.long_axis_ends_mm, part.short_axis_ends_mm) == (whole.long_axis_ends_mm, whole.short_axis_ends_mm)
    inside = np.argwhere(geometry.to_file(lesion)) @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]
    for end in (*whole.long_axis_ends_mm, *whole.short_axis_ends_mm):
        assert np.abs(inside - end).max(axis=1).min() < 1.6


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(-0.4, 0.4))
def test_sheared_grids_are_measured_as_they_lie(seed, shear):
    rng = np.random.default_rng(seed)
    affine = np.diag([-1.0, -1.3, 2.0, 1.0])
    affine[1, 2] = 2 * shear
    geometry = Geometry((6, 6, 6), affine)
    lesion = rng.random((6, 6, 6)) < 0.2
    lesion[2, 2, 2] = True
    axes = lesion_axes(geometry.to_canonical(lesion), geometry)
    from scipy.spatial.distance import pdist

    half = np.eye(3) / 2
    points = (np.argwhere(lesion)[:, None] + np.concatenate([half, -half])).reshape(-1, 3) @ affine[:3, :3].T
    assert axes.largest_diameter_mm == pytest.approx(pdist(points).max(), abs=1e-3)
    assert axes.short_axis_mm <= axes.long_axis_mm + 1e-6 <= axes.largest_diameter_mm + 2e-6


def test_a_single_voxel_is_as_long_as_its_spacing():
    axes = lesion_axes(np.ones((1, 1, 1), bool), Geometry.from_spacing((5, 5, 5), (1.0, 2.0, 5.0)))
    assert (axes.long_axis_mm, axes.short_axis_mm, axes.largest_diameter_mm) == (2.0, 1.0, 5.0)


def test_the_numbers_are_those_of_statistics():
    labels = np.zeros((20, 20, 10), np.uint8)
    labels[2:18, 2:18] = 1
    labels[3:5, 3:5, 2] = 2
    labels[8:13, 8:13, 3:6] = 2
    labels[15, 15, 8] = 2
    numbered, box = numbered_lesions(labels)
    mask = MaskVolume(labels, Geometry.from_spacing(labels.shape, (1, 1, 2)))
    for lesion in statistics(mask).lesions:
        found = numbered == lesion.number
        assert found.sum() * mask.voxel_volume_ml == pytest.approx(lesion.volume_ml)
    none, no_box = numbered_lesions(np.ones((2, 2, 2), np.uint8))
    assert none.shape == (0, 0, 0) and no_box is None
    assert tuple(s.start for s in box) == (3, 3, 2)


@pytest.mark.parametrize("spacing_mm", [(0.8, 0.8, 1.5), (0.8, 0.8, 3.0), (4.0, 1.2, 1.2)])
def test_what_voxels_alone_change_is_told(spacing_mm):
    rng = np.random.default_rng(3)
    spacing, within = np.array(spacing_mm), []
    for _ in range(150):
        radii = rng.uniform(5, 9, 3)
        count = (np.ceil(2 * radii / spacing) + 2).astype(int)
        places = (np.moveaxis(np.indices(count), 0, -1) - count / 2 + rng.random(3)) * spacing
        lesion = ((places / radii) ** 2).sum(axis=-1) <= 1
        off = lesion.sum() * spacing.prod() / (4 / 3 * np.pi * radii.prod()) - 1
        within.append(abs(off) <= 2 * volume_sd(lesion, np.diag(spacing)))
    assert 0.9 <= np.mean(within) < 1  # neither too small nor far too large


def test_one_slice_shows_no_growth():
    disc = np.linalg.norm(np.indices((21, 21)) - 10, axis=0) < 9
    assert volume_sd(disc[..., None], np.diag([0.7, 0.7, 5])) == 1
    assert volume_sd(np.repeat(disc[..., None], 2, axis=2), np.diag([0.7, 0.7, 5])) == 0.14
