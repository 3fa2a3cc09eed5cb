import numpy as np

from liverseg_tf.inference.postprocessing import PostProcessing

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


def test_small_lesions_become_liver_if_asked():
    assert (PostProcessing(smallest_lesion_ml=1.0)(volume(), SPACING) == 2).sum() == 0
    assert (PostProcessing(smallest_lesion_ml=0.5)(volume(), SPACING) == 2).sum() == 32


def test_nothing_found_stays_nothing():
    assert not PostProcessing()(np.zeros((4, 5, 6), np.uint8), SPACING).any()


def test_switched_off_changes_nothing():
    off = PostProcessing(largest_liver=False, fill_holes=False)
    np.testing.assert_array_equal(off(volume(), SPACING), volume())
