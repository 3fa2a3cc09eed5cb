"""Lesion synthesis: liver becomes tumour and nothing else changes; sizes, densities and places are as stated."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from liverseg_tf.data.lesion_synthesis import LesionSynthesis
from liverseg_tf.errors import ConfigError
from tests.data import reference

PLAIN = {
    "probability": 1.0,
    "max_lesions": 1,
    "hyperdense_probability": 0.0,
    "necrosis_probability": 0.0,
    "rim_probability": 0.0,
    "calcified_probability": 0.0,
    "texture_hu": 0.0,
}


def livers(count=1, side=96, hu=100.0, noise=0.0, seed=0):
    """(count, side, side) slices: a disk of liver on fat, with a slot of background and one of an older tumour."""
    y, x = np.ogrid[:side, :side]
    labels = ((y - side / 2) ** 2 + (x - side / 2) ** 2 < (0.45 * side) ** 2).astype(np.uint8)
    labels[10:16, side // 2 - 3 : side // 2 + 3] = 2
    values = np.where(labels == 1, hu, -100.0) + (labels == 2) * 160.0
    values = values + np.random.default_rng(seed).normal(0, noise, (count, side, side)) if noise else values
    return np.broadcast_to(values, (count, side, side)).astype(np.float32), np.stack([labels] * count)


def test_labels_change_from_liver_to_tumour_only_and_hu_only_in_the_liver():
    hu, labels = livers(16)
    new_hu, new = (a.numpy() for a in LesionSynthesis(probability=1.0)(hu, labels, (0, 0), (1.5, 1.5)))
    changed = new != labels
    assert changed.any(axis=(1, 2)).all()
    assert (labels[changed] == 1).all() and (new[changed] == 2).all()
    np.testing.assert_array_equal(new_hu[labels != 1], hu[labels != 1])
    assert np.isfinite(new_hu).all()


@pytest.mark.parametrize("diameter_mm", [(3.0, 6.0), (10.0, 14.0), (20.0, 24.0), (55.0, 60.0)])
def test_diameters_lie_in_the_stated_range(diameter_mm):
    spacing = 1.2
    hu, labels = livers(12, side=160)
    synthesis = LesionSynthesis(**PLAIN, diameter_mm=diameter_mm, irregularity=0.2, aspect=(0.8, 1.0))
    _, new = synthesis(hu, labels, (0, 1), (spacing, spacing))
    found = (new.numpy() == 2) & (labels == 1)
    for lesion in found:
        ys, xs = np.nonzero(lesion)
        assert len(ys)
        largest = spacing * max(np.hypot(ys[:, None] - ys, xs[:, None] - xs).max(), 1)
        assert largest <= diameter_mm[1] + spacing
        whole = not (ndimage.binary_dilation(lesion) & (labels[0] != 1)).any()  # not cut by the liver's edge
        if whole and diameter_mm[0] > 5:
            assert largest >= 0.8 * diameter_mm[0] - spacing


def test_millimetres_count_not_pixels():
    hu, labels = livers(12, side=160)
    synthesis = LesionSynthesis(**PLAIN, diameter_mm=(20.0, 20.0), aspect=(1.0, 1.0), irregularity=0.0)
    for spacing_mm in ((1.0, 2.0), (2.0, 1.0)):
        found = (synthesis(hu, labels, (0, 2), spacing_mm)[1].numpy() == 2) & (labels == 1)
        extents = [[np.ptp(c) + 1 for c in np.nonzero(lesion)] for lesion in found]
        np.testing.assert_allclose(np.median(extents, axis=0) * spacing_mm, 20.0, atol=2.1)


def test_densities_are_as_stated():
    hu, labels = livers(24)
    new_hu, new = LesionSynthesis(**PLAIN, hypodense_hu=(30.0, 50.0), similarity=0.0)(hu, labels, (0, 3), (2.0, 2.0))
    inside = ndimage.binary_erosion((new.numpy() == 2) & (labels == 1), np.ones((1, 3, 3)), iterations=2)
    values = new_hu.numpy()[inside]
    assert values.size
    assert values.min() >= 49 and values.max() <= 72
    hyper = LesionSynthesis(
        **{**PLAIN, "hyperdense_probability": 1.0},
        hyperdense_hu=(40.0, 40.0),
        similarity=0.0,
    )
    new_hu, new = hyper(hu, labels, (0, 3), (2.0, 2.0))
    inside = ndimage.binary_erosion((new.numpy() == 2) & (labels == 1), np.ones((1, 3, 3)), iterations=2)
    assert new_hu.numpy()[inside].min() > 120


def test_no_density_ends_below_water():
    hu, labels = livers(16, hu=60.0)
    new_hu, _ = LesionSynthesis(probability=1.0, hypodense_hu=(80.0, 80.0))(hu, labels, (0, 4), (1.5, 1.5))
    assert new_hu.numpy()[labels == 1].min() >= -1e-3


def test_a_rim_is_brighter_than_what_it_encloses_and_a_core_darker():
    hu, labels = livers(16, side=128)
    large = {**PLAIN, "diameter_mm": (50.0, 60.0), "irregularity": 0.0}
    plain = LesionSynthesis(**large)(hu, labels, (0, 5), (1.0, 1.0))
    rim = LesionSynthesis(**{**large, "rim_probability": 1.0})(hu, labels, (0, 5), (1.0, 1.0))
    core = LesionSynthesis(**{**large, "necrosis_probability": 1.0})(hu, labels, (0, 5), (1.0, 1.0))
    np.testing.assert_array_equal(plain[1], rim[1])
    lesion = (plain[1].numpy() == 2) & (labels == 1)
    depth = np.stack([ndimage.distance_transform_edt(m) for m in lesion])
    edge, middle = lesion & (depth < 2), depth > 14
    assert (rim[0].numpy() - plain[0].numpy())[edge].mean() > 5
    assert abs((rim[0].numpy() - plain[0].numpy())[middle]).max() < 1
    assert (core[0].numpy() - plain[0].numpy())[middle].mean() < -5


def test_lesions_keep_clear_of_large_vessels_and_of_darker_regions():
    hu, labels = (a.copy() for a in livers(48))
    hu[:, 30:60, 20:45] = 180.0  # a very large vessel
    hu[:, 50:75, 55:80] = 40.0
    tiny = {**PLAIN, "diameter_mm": (3.0, 3.0), "irregularity": 0.0}
    found = (LesionSynthesis(**tiny)(hu, labels, (0, 6), (1.0, 1.0))[1].numpy() == 2) & (labels == 1)
    assert found.any(axis=(1, 2)).all()
    assert not found[:, 33:57, 23:42].any() and not found[:, 53:72, 58:77].any()


def test_a_vessel_ends_at_a_lesion():
    hu, labels = (a.copy() for a in livers(24))
    hu[:, 46:51] = np.where(labels[:, 46:51] == 1, 170.0, hu[:, 46:51])
    new_hu, new = LesionSynthesis(**{**PLAIN, "diameter_mm": (30.0, 40.0)})(hu, labels, (0, 8), (1.0, 1.0))
    inside = ndimage.binary_erosion((new.numpy() == 2) & (labels == 1), np.ones((1, 3, 3)), iterations=3)
    vessel = inside & (hu == 170.0)
    assert vessel.any()
    assert new_hu.numpy()[vessel].mean() < 130


def test_several_lesions_and_the_share_of_slices_with_any():
    hu, labels = livers(300, side=64)
    synthesis = LesionSynthesis(probability=0.6, max_lesions=4, diameter_mm=(3.0, 5.0))
    _, new = synthesis(hu, labels, (0, 7), (1.0, 1.0))
    found = (new.numpy() == 2) & (labels == 1)
    numbers = np.array([ndimage.label(m)[1] for m in found])
    assert 0.5 < (numbers > 0).mean() < 0.7
    assert numbers.max() >= 3 and (numbers == 1).sum() > (numbers == 3).sum() > 0


def test_a_slice_without_liver_stays_as_it_is():
    hu, labels = livers(2)
    labels[0][labels[0] == 1] = 0
    new_hu, new = LesionSynthesis(probability=1.0)(hu, labels, (0, 0), (1.0, 1.0))
    np.testing.assert_array_equal(new_hu[0], hu[0])
    np.testing.assert_array_equal(new[0], labels[0])
    assert (new.numpy()[1] != labels[1]).any()


def test_the_same_seed_gives_the_same_lesions_and_another_gives_others():
    hu, labels = livers(2, noise=10.0)
    synthesis = LesionSynthesis(probability=1.0)
    first, again, other = (synthesis(hu, labels, seed, (1.5, 1.5)) for seed in ((1, 2), (1, 2), (2, 2)))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])
    assert not np.array_equal(first[1][0], first[1][1])


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
def test_it_runs_in_a_dataset_with_sizes_known_or_not(known):
    hu, labels = livers(3, side=64, noise=5.0)
    size = (64, 64) if known else (None, None)
    synthesis = LesionSynthesis(probability=1.0)
    dataset = tf.data.Dataset.from_generator(
        lambda: zip(hu, labels, strict=True),
        output_signature=(
            tf.TensorSpec(size, tf.float32),
            tf.TensorSpec(size, tf.uint8),
        ),
    )
    dataset = dataset.map(lambda x, y: synthesis(x, y, (0, 1), (1.5, 1.5)))
    results = list(dataset.as_numpy_iterator())
    eager = synthesis(hu[0], labels[0], (0, 1), (1.5, 1.5))
    assert len(results) == 3 and results[0][0].shape == (64, 64)
    np.testing.assert_allclose(results[0][0], eager[0], atol=1e-2)
    np.testing.assert_array_equal(results[0][1], eager[1])


@pytest.mark.parametrize("name", ["synthesis", "synthesis_often"])
def test_a_seed_gives_the_same_lesions_in_every_version(name):
    """A training by a recipe can be told to have gone over the same slices."""
    reference.check(name, reference.of_synthesis(**reference.OPTIONS[name]))


def test_parameters_go_through_json_and_wrong_ones_are_named():
    synthesis = LesionSynthesis(diameter_mm=(5.0, 20.0))
    assert LesionSynthesis.from_json(synthesis.to_json()) == synthesis
    for wrong in (
        {"probability": 2.0},
        {"diameter_mm": (10.0, 5.0)},
        {"max_lesions": 0},
        {"aspect": (0.5, 1.5)},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            LesionSynthesis(**wrong)
