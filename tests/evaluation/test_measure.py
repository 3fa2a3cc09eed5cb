"""What is measured of a mask: axes, shape, depth, HU, and the flags that keep a volume from being trusted blindly."""

import csv
import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import liverseg_tf as ls
from liverseg_tf.data.volume import CTVolume, Geometry, MaskVolume
from liverseg_tf.errors import GeometryError
from liverseg_tf.evaluation.lesion_axes import numbered_lesions
from liverseg_tf.evaluation.measure import FLAGS, measure, measurement_tables
from liverseg_tf.evaluation.surface import distances_mm, surface_voxels

SPACING = (2.0, 2.0, 2.0)


def liver_with(*lesions, shape=(60, 60, 60)):
    labels = np.zeros(shape, np.uint8)
    labels[5:-5, 5:-5, 5:-5] = 1
    for box in lesions:
        labels[box] = 2
    return labels


def ball(radius, center, shape):
    places = np.indices(shape)
    return sum((p - c) ** 2 for p, c in zip(places, center, strict=True)) <= radius**2


def test_a_box_has_its_own_edges_depth_and_place():
    found = ls.measure(liver_with(np.s_[20:30, 25:29, 30:32]), spacing_mm=SPACING)
    (lesion,) = found.lesions
    assert lesion.axes.long_axis_mm == pytest.approx(2 * np.hypot(10, 3), rel=0.1)
    assert lesion.axes.short_axis_mm < lesion.axes.long_axis_mm
    assert lesion.distance_to_surface_mm == pytest.approx(2 * 15)  # from row 20 to the liver's first row, 5
    assert lesion.statistics.volume_ml == pytest.approx(10 * 4 * 2 * 8 / 1000)
    assert found.flags == () and not found.volume_is_lower_bound


@pytest.mark.parametrize("tilt", [0.0, 0.8])
def test_depth_is_the_least_distance_to_the_whole_surface(tilt):
    geometry = Geometry((60, 60, 30), np.array([[-1, 0, 0, 0], [0, -1, -tilt, 0], [0, 0, 3.0, 0], [0, 0, 0, 1]]))
    labels = np.zeros((60, 60, 30), np.uint8)
    labels[ball(28, (30, 30, 15), labels.shape)] = 1
    labels[27:33, 27:33, 13:17] = labels[30:34, 52:55, 14:16] = 2
    labels[10, 30, 15] = 2
    mask = MaskVolume(geometry.to_file(labels), geometry)
    organ = labels > 0
    numbered, box = numbered_lesions(labels)
    whole = np.zeros(labels.shape, int)
    whole[box] = numbered
    expected = [
        distances_mm(whole == number, surface_voxels(organ), geometry.steps_mm).min()
        for number in range(1, numbered.max() + 1)
    ]
    assert len(expected) == 3 and min(expected) < 10 < 20 < max(expected)
    found = [lesion.distance_to_surface_mm for lesion in measure(mask).lesions]
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_surface_beyond_the_first_one_found_may_be_nearer():
    labels = np.ones((120, 120, 11), np.uint8)
    labels[60, 60, 5] = 2
    labels[77, 77, 5] = labels[60, 83, 5] = 0  # holes, the second one nearer but less diagonal
    (lesion,) = measure(labels, spacing_mm=(1, 1, 10)).lesions
    assert lesion.distance_to_surface_mm == pytest.approx(22)


def test_measuring_takes_memory_for_the_liver_not_for_the_ct():
    labels = np.zeros((256, 256, 256), np.uint8)
    labels[100:160, 100:160, 40:80] = 1
    labels[120:130, 120:130, 50:60] = 2
    volume = CTVolume.from_array(np.zeros(labels.shape, np.int16), SPACING)
    volume.slices(0, 1), measure(labels[90:170, 90:170, 30:90], spacing_mm=SPACING)  # loads what is loaded once
    tracemalloc.start()
    try:
        measure(labels, volume, spacing_mm=SPACING)
        assert tracemalloc.get_traced_memory()[1] < labels.size  # no array of the CT's size, not even of bools
    finally:
        tracemalloc.stop()


def test_a_ball_is_rounder_than_a_rod():
    labels = liver_with(np.s_[10:14, 10:14, 10:40])
    labels[ball(8, (35, 35, 30), labels.shape)] = 2
    first, second = measure(labels, spacing_mm=SPACING).lesions
    assert first.sphericity > 0.9 > 0.75 > second.sphericity
    assert first.axes.long_axis_mm == pytest.approx(first.axes.largest_diameter_mm, rel=0.05)
    assert second.axes.largest_diameter_mm > 2 * second.axes.long_axis_mm  # the rod lies along the patient


def test_sphericity_of_a_box_is_ibsis():
    (lesion,) = measure(liver_with(np.s_[20:30, 20:24, 20:26]), spacing_mm=SPACING).lesions
    # the mesh cuts half a voxel off each edge: a prism of 1/8 of a voxel's face, at corners a sixth of 1/8
    a, b, c = 10, 4, 6
    prisms = 4 * ((a - 1) + (b - 1) + (c - 1)) / 8 + 8 * (1 / 8 - 1 / 48)
    volume = a * b * c - prisms
    flat = 2 * ((a - 1) * (b - 1) + (a - 1) * (c - 1) + (b - 1) * (c - 1))
    area = flat + 4 * (a + b + c - 3) * np.sqrt(1 / 2) + 8 * np.sqrt(3) / 8
    assert lesion.sphericity == pytest.approx((36 * np.pi * volume**2) ** (1 / 3) / area, rel=1e-5)


def test_hu_and_contrast_are_the_cts():
    labels = liver_with(np.s_[20:30, 20:30, 20:30])
    hu = np.where(labels == 2, 60.0, np.where(labels == 1, 100.0, -50.0)).astype(np.float32)
    hu[20:25, 20:30, 20:30] = 40.0
    (lesion,) = measure(labels, hu, spacing_mm=SPACING).lesions
    assert lesion.hu["mean"] == pytest.approx(50) and lesion.hu["sd"] == pytest.approx(10)
    assert (lesion.hu["p5"], lesion.hu["p95"]) == (40, 60)
    assert lesion.contrast_hu == pytest.approx(-50)  # liver alone, not the fat around it


def test_without_a_ct_hu_is_unknown_not_zero():
    (lesion,) = measure(liver_with(np.s_[20:30, 20:30, 20:30]), spacing_mm=SPACING).lesions
    assert lesion.hu is None and lesion.contrast_hu is None and lesion.to_dict()["hu_mean"] is None


@pytest.mark.parametrize("cut", [np.s_[:, :, 20:], np.s_[:, :, :40], np.s_[:, 30:, :]])
def test_a_liver_that_goes_on_beyond_the_ct_is_a_lower_bound(cut):
    found = measure(liver_with()[cut], spacing_mm=SPACING)
    assert found.flags == ("cut_by_field_of_view",) and found.volume_is_lower_bound
    assert found.to_dict()["volume_is_lower_bound"] is True
    assert "lower bound" in found.to_dict()["flags"]["cut_by_field_of_view"]


def test_a_rim_on_the_last_slice_is_no_cut():
    labels = liver_with()
    labels[30:35, 30:35, -5:] = 1
    assert measure(labels, spacing_mm=SPACING).flags == ()


def test_nothing_small_gaps_and_strays_are_flagged():
    empty = np.zeros((20, 20, 20), np.uint8)
    assert measure(empty, spacing_mm=SPACING).flags == ("no_liver",)
    assert measure(liver_with(shape=(30, 30, 30)), spacing_mm=(1, 1, 1)).flags == ("small_liver",)
    unknown = MaskVolume(liver_with(), Geometry((60, 60, 60), np.eye(4)))
    assert "identity_affine" in measure(unknown).flags
    gap = liver_with()
    gap[..., 30:33] = 0
    assert measure(gap, spacing_mm=SPACING).flags == ("gap_in_liver",)
    stray = liver_with()
    stray[:2, :2, :2] = 2
    assert "tumour_beside_liver" in measure(stray, spacing_mm=SPACING).flags
    assert set(FLAGS) >= {"no_liver", "sheared_grid"}


@settings(max_examples=10, deadline=None)
@given(st.one_of(st.just(0.0), st.floats(1, 30), st.floats(-30, -1)), st.integers(2, 6))
def test_a_tilted_grid_keeps_volumes_and_lengths(degrees, radius):
    """A ball in mm, cut by tilted slices: its axes are its diameter, its volume the ball's."""
    shape, step = (32, 32, 32), 1.0
    affine = np.diag([-step, -step, step, 1.0])
    affine[1, 2] = -np.tan(np.radians(degrees)) * step
    geometry = Geometry(shape, affine)
    canonical = np.indices(shape).reshape(3, -1).T @ geometry.steps_mm.T
    center = np.array([15, 15, 15]) @ geometry.steps_mm.T
    labels = np.ones(shape, np.uint8)
    labels[(np.square(canonical - center).sum(axis=1) <= radius**2).reshape(shape)] = 2
    found = measure(MaskVolume(geometry.to_file(labels), geometry))
    (lesion,) = found.lesions
    assert lesion.statistics.volume_ml == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.3)
    assert lesion.axes.largest_diameter_mm == pytest.approx(2 * radius, abs=1.5)
    assert ("sheared_grid" in found.flags) == (degrees != 0)


def test_tables_have_a_row_a_case_and_a_row_a_lesion():
    measured = [measure(liver_with(*boxes), spacing_mm=SPACING) for boxes in ((), (np.s_[20:24, 20:24, 20:24],))]
    cases, lesions = (list(csv.DictReader(io.StringIO(text))) for text in measurement_tables(measured))
    assert [row["lesion_count"] for row in cases] == ["0", "1"]
    assert len(lesions) == 1 and float(lesions[0]["long_axis_mm"]) > 8
    assert measurement_tables([])[1].strip() == "case"


def test_a_ct_of_another_grid_is_refused():
    volume = CTVolume.from_array(np.zeros((10, 10, 10), np.float32), spacing_mm=SPACING)
    with pytest.raises(GeometryError):
        measure(liver_with(), volume, spacing_mm=SPACING)
