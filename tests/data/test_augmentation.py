"""Augmentation: masks follow the image, everything is a function of the seed, and it runs in tf.data."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from liverseg_tf.data.augmentation import Augmentation
from liverseg_tf.errors import ConfigError
from liverseg_tf.hounsfield import AIR_HU
from tests.data import reference

STILL = {
    "rotation_degrees": 0.0,
    "scale": (1.0, 1.0),
    "anisotropy": 0.0,
    "shift": 0.0,
    "hu_shift": 0.0,
    "hu_scale": 0.0,
    "contrast": 0.0,
    "noise_hu": 0.0,
    "blur_probability": 0.0,
    "thick_slice_probability": 0.0,
    "couch_removed_probability": 0.0,
    "couch_added_probability": 0.0,
}
GEOMETRY = {
    name: value for name, value in STILL.items() if name not in ("rotation_degrees", "scale", "anisotropy", "shift")
}


def disks(rows=72, columns=96):
    """A slice whose HU are 1000 times its labels: a disk of liver with a disk of tumour in it, off centre."""
    y, x = np.ogrid[:rows, :columns]
    labels = ((y - 30) ** 2 + (x - 40) ** 2 < 22**2).astype(np.uint8)
    labels[(y - 26) ** 2 + (x - 45) ** 2 < 8**2] = 2
    return labels * 1000.0, labels


def test_nothing_chosen_changes_nothing():
    hu, labels = disks()
    new_hu, new_labels = Augmentation(**STILL)(hu, labels, (0, 0))
    np.testing.assert_array_equal(new_hu, hu)
    np.testing.assert_array_equal(new_labels, labels)


@pytest.mark.parametrize("options", [{}, {"elastic": 0.03}, {"flip_rows": True, "flip_columns": True}])
@pytest.mark.parametrize("seed", range(4))
def test_the_mask_follows_the_image(options, seed):
    _, labels = disks()
    inside = 1000.0 * (labels > 0)  # an image equal to its mask
    hu, new = Augmentation(**GEOMETRY, **options)(inside, labels, (seed, 5))
    from_image, from_mask = hu.numpy() > 500.0, new.numpy() > 0
    edge = tf.nn.max_pool2d(tf.cast(from_mask, tf.float32)[None, ..., None], 3, 1, "SAME").numpy()[0, ..., 0] > 0
    edge &= tf.nn.max_pool2d(tf.cast(~from_mask, tf.float32)[None, ..., None], 3, 1, "SAME").numpy()[0, ..., 0] > 0
    assert not np.array_equal(from_mask, labels > 0)  # it did move
    assert from_mask.any()
    np.testing.assert_array_equal(from_image[~edge], from_mask[~edge])
    assert (from_image != from_mask).sum() <= 0.02 * from_mask.sum()  # interpolation against the nearest pixel
    assert set(np.unique(new)) <= {0, 1, 2}


def test_where_a_shifted_slice_ends_there_is_air_and_background():
    hu, labels = np.full((64, 64), 50.0), np.ones((64, 64), np.uint8)
    shifting = Augmentation(**{**STILL, "shift": 0.5})
    new_hu, new_labels = (a.numpy() for a in shifting(np.stack([hu] * 4), np.stack([labels] * 4), (1, 2)))
    assert (new_labels == 0).any()
    assert (new_hu[new_labels == 1] > AIR_HU).all()
    assert (new_hu[:, ::63, ::63] == AIR_HU).any()


def test_a_rotation_turns_about_the_center_by_the_stated_angle_at_most():
    hu = np.zeros((101, 101), np.float32)
    hu[50, 85:88] = 1000.0  # 36 pixels right of the centre
    batch = np.stack([hu] * 64)
    rotated, _ = Augmentation(**{**STILL, "rotation_degrees": 20.0})(batch, np.zeros(batch.shape, np.uint8), (0, 3))
    weights = np.clip(rotated.numpy(), 0, None)
    y = (weights * (np.arange(101) - 50.0)[None, :, None]).sum((1, 2)) / weights.sum((1, 2))
    x = (weights * (np.arange(101) - 50.0)[None, None, :]).sum((1, 2)) / weights.sum((1, 2))
    angles = np.degrees(np.arctan2(y, x))
    np.testing.assert_allclose(np.hypot(x, y), 36.0, atol=0.3)
    assert np.abs(angles).max() < 20.5
    assert angles.max() > 10 and angles.min() < -10


def test_the_same_seed_gives_the_same_slices_and_another_gives_others():
    hu, labels = disks()
    augmentation = Augmentation(elastic=0.02, blur_probability=1.0, thick_slice_probability=1.0)
    first, again, other = (augmentation(hu, labels, seed) for seed in ((3, 4), (3, 4), (3, 5)))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_slices_of_a_batch_vary_independently():
    hu, labels = disks()
    new_hu, new_labels = Augmentation()(np.stack([hu, hu]), np.stack([labels, labels]), (0, 0))
    assert not np.array_equal(new_labels[0], new_labels[1])
    assert new_hu.shape == (2, 72, 96)


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
def test_it_runs_in_a_dataset_with_sizes_known_or_not(known):
    hu, labels = (np.stack([a] * 3) for a in disks())
    size = (72, 96) if known else (None, None)
    dataset = tf.data.Dataset.from_generator(
        lambda: zip(hu.astype("f4"), labels, strict=True),
        output_signature=(
            tf.TensorSpec(size, tf.float32),
            tf.TensorSpec(size, tf.uint8),
        ),
    )
    augmentation = Augmentation(elastic=0.01, couch_added_probability=1.0, couch_removed_probability=1.0)
    dataset = dataset.enumerate().map(lambda i, pair: augmentation(*pair, tf.stack([tf.cast(i, tf.int32), 7])))
    results = list(dataset.as_numpy_iterator())
    assert len(results) == 3
    assert all(x.shape == (72, 96) and x.dtype == np.float32 and y.dtype == np.uint8 for x, y in results)
    assert not np.array_equal(results[0][1], results[1][1])
    eager = augmentation(hu[0], labels[0], (0, 7))
    np.testing.assert_allclose(results[0][0], eager[0], atol=1e-2)
    np.testing.assert_array_equal(results[0][1], eager[1])


def test_density_changes_keep_order_and_stay_within_their_bounds():
    hu = np.tile(np.linspace(-100, 200, 64, dtype=np.float32), (40, 64, 1))
    augmentation = Augmentation(**{**STILL, "hu_shift": 10.0, "hu_scale": 0.1, "contrast": 0.3})
    new = augmentation(hu, np.zeros(hu.shape, np.uint8), (0, 0))[0].numpy()
    assert (np.diff(new, axis=2) > 0).all()
    assert np.abs(new[:, 0, 0] - hu[:, 0, 0]).max() <= 10 + 10 + 1e-3
    assert np.abs(new[:, 0, -1] - hu[:, 0, -1]).max() <= 10 + 1.1 * 0.3 * 160 + 0.1 * 200 + 1e-3
    assert new[:, 0, -1].std() > 5


def test_noise_has_the_stated_strength_and_blur_removes_it():
    hu, labels = np.zeros((64, 64, 64), np.float32), np.zeros((64, 64, 64), np.uint8)
    noisy = Augmentation(**{**STILL, "noise_hu": 20.0})(hu, labels, (0, 1))[0].numpy()
    levels = noisy.std(axis=(1, 2))
    assert levels.max() < 21 and levels.min() < 4 and levels.max() > 15
    blurred = Augmentation(**{**STILL, "blur_probability": 1.0, "blur_pixels": 1.5})(noisy, labels, (0, 2))[0].numpy()
    assert (blurred.std(axis=(1, 2)) <= levels + 1e-3).all()
    assert blurred.std() < 0.8 * noisy.std()
    np.testing.assert_allclose(blurred.mean(), noisy.mean(), atol=0.1)


def test_thick_slices_lose_detail_but_no_density():
    hu = np.tile((np.arange(64) % 8 < 4) * 100.0, (16, 64, 1)).astype(np.float32)
    thick = Augmentation(**{**STILL, "thick_slice_probability": 1.0, "thick_slice_pixels": 3.0})
    new = thick(hu, np.zeros(hu.shape, np.uint8), (0, 0))[0].numpy()
    assert np.abs(np.diff(new, axis=2)).mean() < np.abs(np.diff(hu, axis=2)).mean()
    np.testing.assert_allclose(new.mean(), hu.mean(), rtol=0.05)


def body_on_a_couch(side=128):
    y, x = np.mgrid[:side, :side]
    hu = np.full((side, side), -1000.0)
    hu[((y - 55) / 38) ** 2 + ((x - 64) / 50) ** 2 < 1] = 40.0
    lungs = ((y - 55) / 20) ** 2 + ((x - 64) / 30) ** 2 < 1
    hu[lungs] = -850.0
    couch = (y >= 105) & (y < 108)
    hu[couch] = 0.0
    return hu, lungs, couch


def test_a_couch_is_removed_and_the_body_kept():
    hu, lungs, couch = body_on_a_couch()
    remove = Augmentation(**{**STILL, "couch_removed_probability": 1.0})
    new = remove(hu, np.zeros(hu.shape, np.uint8), (0, 0))[0].numpy()
    assert (new[couch] == AIR_HU).all()
    np.testing.assert_array_equal(new[hu == 40.0], 40.0)
    np.testing.assert_array_equal(new[lungs], -850.0)


def test_a_couch_is_added_below_the_body_and_nowhere_else():
    hu, _, couch = body_on_a_couch()
    hu[couch] = -1000.0
    add = Augmentation(**{**STILL, "couch_added_probability": 1.0})
    new = add(hu, np.zeros(hu.shape, np.uint8), (0, 0))[0].numpy()
    changed = new != hu
    assert changed.sum() > 40
    assert (hu[changed] == -1000.0).all()
    assert np.argwhere(changed)[:, 0].min() > 60


def test_the_label_for_ignore_survives():
    hu, labels = disks()
    labels[labels == 2] = 255
    assert 255 in Augmentation(**GEOMETRY)(hu, labels, (0, 0))[1].numpy()


@pytest.mark.parametrize("name", ["augmentation", "augmentation_often"])
def test_a_seed_gives_the_same_slices_in_every_version(name):
    """A training by a recipe can be told to have gone over the same slices."""
    reference.check(name, reference.of_augmentation(**reference.OPTIONS[name]))


def test_parameters_go_through_json_and_wrong_ones_are_named():
    augmentation = Augmentation(scale=(0.9, 1.1), flip_columns=True)
    assert Augmentation.from_json(augmentation.to_json()) == augmentation
    for wrong in (
        {"noise_hu": -1.0},
        {"blur_probability": 1.5},
        {"scale": (1.2, 0.8)},
        {"elastic_nodes": 1},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Augmentation(**wrong)
