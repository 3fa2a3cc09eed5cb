from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from liverseg_tf.evaluation.surface import (
    bounding_box,
    class_box,
    enclosing_box,
    surface_distances,
    surface_voxels,
)


def box_mask(shape, *slices):
    mask = np.zeros(shape, bool)
    mask[slices] = True
    return mask


def test_bounding_box_of_a_mask_and_of_an_empty_one():
    mask = np.zeros((5, 6, 7), bool)
    assert bounding_box(mask) is None
    mask[1, 2, 3] = mask[3, 2, 6] = True
    assert bounding_box(mask) == (slice(1, 4), slice(2, 3), slice(3, 7))
    assert enclosing_box([(slice(1, 2),), (slice(4, 9),)]) == (slice(1, 9),)


@pytest.mark.parametrize("order", ["C", "F", "turned"])
def test_class_box_in_any_order_of_memory(order):
    labels = np.zeros((5, 6, 7), np.uint8, order="C" if order == "turned" else order)
    if order == "turned":
        labels = labels.transpose(1, 2, 0)[::-1]
    labels[0, 0, 0] = labels[-1, -1, -1] = 1
    assert class_box(labels, 2) is None
    labels[1, 2, 3] = labels[3, 2, 4] = 2
    assert class_box(labels, 2) == (slice(1, 4), slice(2, 3), slice(3, 5)) == bounding_box(labels == 2)
    labels[2, 5, 1] = 2
    assert class_box(labels, 2) == bounding_box(labels == 2)


def test_surface_takes_neighbors_by_edge_and_the_border_of_the_array():
    solid = np.ones((4, 4, 4), bool)
    assert surface_voxels(solid).sum() == 64 - 8  # only the 2 x 2 x 2 core is inside
    dented = np.ones((5, 5, 5), bool)
    dented[1, 1, 2] = False  # an edge neighbour of the centre
    assert surface_voxels(dented)[2, 2, 2]
    cornered = np.ones((5, 5, 5), bool)
    cornered[1, 1, 1] = False  # only a corner neighbour of the centre
    assert not surface_voxels(cornered)[2, 2, 2]


def test_two_voxels_with_anisotropic_spacing():
    truth, prediction = np.zeros((2, 4, 5, 6), bool)
    truth[1, 1, 1] = True
    prediction[1, 4, 5] = True
    distances = surface_distances(truth, prediction, (0.7, 1.0, 2.5))
    expected = np.hypot(3 * 1.0, 4 * 2.5)
    for figure in (distances.assd(), distances.rmsd(), distances.msd(), distances.hd95()):
        assert figure == pytest.approx(expected, rel=1e-6)
    assert distances.surface_dice(10.4) == 0
    assert distances.surface_dice(10.45) == 1


def test_symmetric_means_go_over_the_voxels_of_both_surfaces():
    truth = box_mask((1, 1, 8), 0, 0, 0)
    prediction = box_mask((1, 1, 8), 0, 0, slice(0, 4))  # at 0, 1, 2 and 3 mm
    distances = surface_distances(truth, prediction, (1.0, 1.0, 1.0))
    assert distances.assd() == pytest.approx((0 + 0 + 1 + 2 + 3) / 5)
    assert distances.rmsd() == pytest.approx(np.sqrt((1 + 4 + 9) / 5))
    assert distances.msd() == 3
    assert distances.hd95() == pytest.approx(2.85)  # of 0, 1, 2, 3
    assert distances.surface_dice(1) == pytest.approx(3 / 5)


def test_a_distance_equal_to_the_tolerance_is_within_it():
    truth, prediction = np.zeros((2, 1, 1, 4), bool)
    truth[0, 0, 0] = prediction[0, 0, 1] = True
    assert surface_distances(truth, prediction, (1.0, 1.0, float(np.float32(2.0000001)))).surface_dice(2) == 1


def test_an_empty_mask_has_no_distances():
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert surface_distances(empty, full, (1, 1, 1)) is None
    assert surface_distances(full, empty, (1, 1, 1)) is None
    assert surface_distances(empty, empty, (1, 1, 1)) is None


def random_pair(seed):
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.random((22, 25, 14)), 1.5)
    other = 0.6 * field + 0.4 * ndimage.gaussian_filter(rng.random(field.shape), 1.5)
    return field > np.quantile(field, 0.8), other > np.quantile(other, 0.75), tuple(rng.uniform(0.5, 4, 3))


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_medpy_on_random_masks(seed):
    medpy = pytest.importorskip("medpy.metric.binary")
    truth, prediction, spacing_mm = random_pair(seed)
    ours = surface_distances(truth, prediction, spacing_mm)
    options = {"voxelspacing": spacing_mm, "connectivity": 2}
    there, back = medpy.asd(truth, prediction, **options), medpy.asd(prediction, truth, **options)
    sizes = surface_voxels(truth).sum(), surface_voxels(prediction).sum()
    assert ours.truth_mm.mean() == pytest.approx(there, rel=1e-5)
    assert ours.prediction_mm.mean() == pytest.approx(back, rel=1e-5)
    assert ours.assd() == pytest.approx((there * sizes[0] + back * sizes[1]) / sum(sizes), rel=1e-5)
    assert ours.msd() == pytest.approx(medpy.hd(truth, prediction, **options), rel=1e-5)
    pooled = np.percentile(np.concatenate([ours.truth_mm, ours.prediction_mm]), 95)
    assert pooled == pytest.approx(medpy.hd95(truth, prediction, **options), rel=1e-5)
    assert ours.hd95() >= pooled * (1 - 1e-9)  # which lies between the two directions'


@pytest.mark.parametrize("seed", range(3))
def test_surface_dice_is_near_that_of_the_surface_distance_package(seed):
    surface_distance = pytest.importorskip("surface_distance")
    truth, prediction, spacing_mm = random_pair(seed)
    theirs = surface_distance.compute_surface_distances(truth, prediction, spacing_mm)
    ours = surface_distances(truth, prediction, spacing_mm)
    for tolerance in (1, 2, 3):
        expected = surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance)
        # theirs weighs by area, and its surface lies between voxels
        assert ours.surface_dice(tolerance) == pytest.approx(expected, abs=0.1)
