from functools import partial

import numpy as np
import pytest
from scipy import ndimage

import liverseg_tf as ls
from liverseg_tf.config import ModelConfig
from liverseg_tf.inference.postprocessing import PostProcessing, SliceSmoother

SPACING = (2.0, 2.0, 5.0)  # a voxel is 0.02 ml


def volume():
    labels = np.zeros((30, 30, 10), np.uint8)
    labels[5:20, 5:20, 2:8] = 1
    labels[10:14, 10:14, 4:6] = 2
    labels[25:28, 25:28, 2:4] = 1  # a second piece
    return labels


def test_the_largest_piece_is_kept():
    cleaned = PostProcessing()(volume(), SPACING)
    assert not cleaned[25:].any()
    assert (cleaned == 2).sum() == 32


def test_holes_in_three_dimensions_become_liver_and_tunnels_stay():
    labels = volume()
    labels[7, 7, 5] = 0
    labels[17, 17, :] = 0
    cleaned = PostProcessing()(labels, SPACING)
    assert cleaned[7, 7, 5] == 1
    assert not cleaned[17, 17].any()


def test_a_lesion_of_just_the_smallest_volume_stays():
    lesion_ml = 32 * float(np.prod(SPACING)) / 1000
    for smallest_ml, kept in ((lesion_ml, 32), (np.nextafter(lesion_ml, 1), 0)):
        assert (PostProcessing(smallest_lesion_ml=smallest_ml)(volume(), SPACING) == 2).sum() == kept


def test_small_lesions_become_liver_if_asked():
    assert (PostProcessing(smallest_lesion_ml=1.0)(volume(), SPACING) == 2).sum() == 0
    assert (PostProcessing(smallest_lesion_ml=0.5)(volume(), SPACING) == 2).sum() == 32


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_pieces_are_those_of_the_whole_volume_at_once(share):
    """Pieces are found slab by slab: random labels make many that wind through several slabs."""
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((50, 20, 18)) < share, rng.integers(1, 3, (50, 20, 18)), 0).astype(np.uint8)
    expected = labels.copy()
    pieces, _ = ndimage.label(labels > 0)
    expected[pieces != np.bincount(pieces[pieces > 0]).argmax()] = 0
    expected[ndimage.binary_fill_holes(expected > 0) & (expected == 0)] = 1
    pieces, _ = ndimage.label(expected == 2)
    expected[(np.bincount(pieces.ravel()) < 3)[pieces] & (pieces > 0)] = 1
    cleaned = PostProcessing(smallest_lesion_ml=0.05)(labels, SPACING)
    np.testing.assert_array_equal(cleaned, expected)
    assert (cleaned > 0).any()


def test_nothing_found_stays_nothing():
    assert not PostProcessing()(np.zeros((4, 5, 6), np.uint8), SPACING).any()


def test_switched_off_changes_nothing():
    off = PostProcessing(largest_liver=False, fill_holes=False)
    np.testing.assert_array_equal(off(volume(), SPACING), volume())


def test_nothing_to_clean_up():
    full = np.ones((20, 5, 1), np.uint8)
    np.testing.assert_array_equal(PostProcessing(smallest_lesion_ml=1)(full.copy(), SPACING), full)


@pytest.mark.parametrize("sizes", [(9,), (1,) * 9, (4, 4, 1), (2, 7)])
@pytest.mark.parametrize("sigma", [0.4, 1.0, 5.0])
def test_smoothing_is_a_gaussian_over_the_slices_however_they_come(sizes, sigma):
    values = np.random.default_rng(0).random((9, 3, 2, 2)).astype(np.float32)
    smoother = SliceSmoother(sigma)
    parts = [smoother.add(part) for part in np.split(values, np.cumsum(sizes)[:-1])]
    radius = int(np.ceil(3 * sigma))
    gaussian = partial(ndimage.gaussian_filter1d, sigma=sigma, axis=0, mode="constant", radius=radius)
    expected = gaussian(values) / gaussian(np.ones_like(values))  # cut at the ends
    np.testing.assert_allclose(np.concatenate([*parts, smoother.rest()]), expected, atol=1e-6)


class OneSliceOfTumour:
    """Liver everywhere; tumour in one slice, or in all."""

    is_remote = False
    slices_at_once = 1

    config = ModelConfig(image_size=32, backbone="resnet18")

    def probabilities(self, hu):
        tumour = np.where(hu > 0, 0.9, 0.02)
        return np.stack([np.full_like(tumour, 0.01), 0.99 - tumour, tumour], -1).astype(np.float32)

    def labels(self, hu):
        return self.probabilities(hu).argmax(-1).astype(np.uint8)


def test_a_finding_in_one_thin_slice_alone_is_dropped_and_one_in_several_or_a_thick_one_kept():
    def found(slices, thickness_mm, **options):
        hu = np.full((40, 40, 9), -1.0, np.float32)
        hu[..., slices] = 1
        predictor = ls.Predictor(OneSliceOfTumour(), **options)
        labels = predictor.predict(hu, spacing_mm=(10.0, 10.0, thickness_mm)).canonical_labels
        return np.flatnonzero((labels == 2).any((0, 1))).tolist()

    assert found([4], 1.0) == []
    assert found([4], 1.0, batch_size=2) == []
    assert found([4], 1.0, postprocessing=PostProcessing(smoothing_mm=0)) == [4]
    assert found([4], 5.0) == [4]
    assert found([2, 3, 4, 5, 6], 1.0) == [2, 3, 4, 5, 6]


def test_findings_below_a_ball_of_5_mm_are_liver_by_default():
    labels = np.ones((30, 30, 30), np.uint8)
    labels[2:6, 2:6, 2:6] = 2  # 64 voxels of 1 mm: smaller than 65.4
    labels[10:15, 10:15, 10:13] = 2  # 75
    cleaned = PostProcessing()(labels, (1.0, 1.0, 1.0))
    assert (cleaned == 2).sum() == 75 and cleaned[12, 12, 11] == 2
