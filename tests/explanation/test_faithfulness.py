"""Tests of maps: a right map passes, a wrong one fails."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from liverseg_tf.explanation.faithfulness import (
    RANDOM_MAPS,
    DeletionInsertion,
    SliceTest,
    body_of,
    randomized_model,
    rank_correlation,
    without_region,
)
from liverseg_tf.explanation.layers import stages
from liverseg_tf.explanation.seg_grad_cam import SegGradCam
from liverseg_tf.inference.runtimes import KerasRuntime
from liverseg_tf.models.model import Model
from liverseg_tf.models.unet import build_unet


@pytest.fixture(scope="module")
def test(dark_is_tumour, lesions):
    volume, labels = lesions
    hu, plane = volume.slices(3, 4)[0], labels[..., 3]
    filled = without_region(hu, plane, plane == 2, 2)
    return SliceTest(KerasRuntime(dark_is_tumour).probabilities, hu, filled, 2, plane == 2)


def areas(own: float, random: list[float]) -> DeletionInsertion:
    """Straight lines of these areas; insertion is the opposite of deletion."""
    ends, random = np.array([0.0, 1.0]), np.array(random)[:, None]
    flat = np.ones(2)
    return DeletionInsertion(ends, own * flat, (1 - own) * flat, random * flat, (1 - random) * flat)


def test_the_lesion_itself_beats_random_and_its_opposite_does_not(test, lesions):
    lesion = lesions[1][..., 3] == 2
    right, wrong = (test.curves(m.astype(np.float32), lesion) for m in (lesion, ~lesion))
    assert right.beats_random and not wrong.beats_random
    assert right.deletion_beats == right.insertion_beats == 1 and wrong.deletion_beats == wrong.insertion_beats == 0


def test_95_percent_of_20_random_maps_must_be_beaten_on_both_curves():
    assert areas(0.5, [0.6] * 19 + [0.4]).beats_random
    assert not areas(0.5, [0.6] * 18 + [0.4] * 2).beats_random  # the median is beaten, as half of all maps do
    assert not areas(0.5, [0.6] * (RANDOM_MAPS - 1)).beats_random and RANDOM_MAPS == 20
    one_sided = areas(0.5, [0.6] * 20)
    one_sided.random_insertion[:] = 0.9
    assert one_sided.deletion_beats == 1 and one_sided.insertion_beats == 0 and not one_sided.beats_random


def test_curves_begin_and_end_with_the_untouched_and_the_filled_slice(test, lesions):
    lesion = lesions[1][..., 3] == 2
    found = test.curves(np.zeros((64, 64)), lesion)
    assert found.fractions[0] == 0 and found.fractions[-1] == 1 and (np.diff(found.fractions) > 0).all()
    for deletion, insertion in zip(found.random_deletion, found.random_insertion, strict=True):
        assert deletion[0] == insertion[-1] == found.deletion[0] > 0.9
        assert deletion[-1] == insertion[0] == found.insertion[0] < 0.2
    probability, fall_inside = test.counterfactual(lesion)
    assert probability < 0.2
    assert fall_inside > 0.99  # this network looks at nothing else
    assert found.to_dict()["random_maps"] == 20


def test_a_network_that_looks_elsewhere_falls_elsewhere():
    """One that says tumour in a square on the right as long as another on the left is dark."""
    left, right = np.zeros((2, 32, 32), bool)
    left[8:16, 4:12] = right[8:16, 20:28] = True
    hu = np.where(left, 20.0, 100.0)

    def network(pictures):
        dark = (pictures[:, left].mean(axis=1) < 60)[:, None, None]
        tumour = (dark & (left | right)).astype(float)
        return np.stack([1 - tumour, tumour], -1)

    test = SliceTest(network, hu, np.full((32, 32), 100.0), label=1, watched=left)
    assert test.counterfactual(left) == (0.0, 0.5)


def test_an_empty_map_is_a_random_one(test, lesions):
    found = test.curves(np.zeros((64, 64)), lesions[1][..., 3] == 2)
    assert found.random_deletion_areas.min() <= found.deletion_area <= found.random_deletion_areas.max()


def test_random_maps_cover_the_body_never_air_and_are_run_once():
    hu = np.full((48, 48), -1000.0, np.float32)
    hu[4:44, 4:44] = 50
    hu[20:24, 20:24] = -900  # gas
    region = np.zeros((48, 48), bool)
    region[8:12, 8:12] = True
    seen = []

    def record(pictures):
        seen.extend(pictures)
        return np.zeros((*pictures.shape, 3), np.float32)

    test = SliceTest(record, hu, np.full_like(hu, 7), 2, region, random_maps=3)
    changed = np.array(seen) != hu
    assert (changed.any(axis=0) == body_of(hu)).all() and not changed[:, 20:24, 20:24].any()
    # ends, and three steps of deletion and insertion for each random map
    assert len(seen) == 2 + 3 * 6
    test.curves(np.zeros((48, 48)), region)
    assert len(seen) == 2 + 4 * 6


@pytest.mark.parametrize("seed", range(12))
def test_steps_that_decide_nothing_are_left_out_and_the_verdict_stays(seed):
    rng = np.random.default_rng(seed)
    hu = np.full((32, 32), 100.0)
    region = np.zeros((32, 32), bool)
    region[8:16, 8:16] = True
    hu[region] = 20
    weights = rng.random((32, 32)) * (1 + 30 * region)  # the region matters most, and all else a little
    pictures = []

    def network(batch):
        pictures.extend(batch)
        marked = np.abs(batch - 100) * weights
        tumour = np.broadcast_to((marked.sum((1, 2)) / (80 * weights[region].sum()))[:, None, None], batch.shape)
        return np.stack([1 - tumour, tumour.clip(0, 1)], -1)

    filled = np.where(region, 100.0, 100 + 20 * rng.standard_normal((32, 32)))
    heatmaps = [region * 1.0, region + 3 * rng.random((32, 32)), rng.random((32, 32)), np.zeros((32, 32))]
    for heatmap in heatmaps:
        found, runs = [], []
        for whole in (True, False):
            pictures.clear()
            found.append(SliceTest(network, hu, filled, 1, region, 20, seed, whole).curves(heatmap, region))
            runs.append(len(pictures))
        whole, short = found
        assert not np.isnan(whole.random_deletion).any() and runs[0] == 2 + 21 * 6
        assert whole.deletion_beats == short.deletion_beats and whole.insertion_beats == short.insertion_beats
        assert whole.deletion_area == short.deletion_area
        known = ~np.isnan(short.random_insertion)
        np.testing.assert_array_equal(short.random_insertion[known], whole.random_insertion[known])
        assert runs[1] <= runs[0]
        if heatmap is heatmaps[0]:
            assert runs[1] < 0.6 * runs[0] and None in short.to_dict()["deletion_areas_random"]


def test_same_seed_same_curves(dark_is_tumour, lesions):
    plane, heat = lesions[1][..., 3], np.random.default_rng(0).random((64, 64))
    runtime, hu = KerasRuntime(dark_is_tumour), lesions[0].slices(3, 4)[0]
    first, again, other = (
        SliceTest(runtime.probabilities, hu, np.full_like(hu, 105), 2, plane == 2, 2, seed).curves(heat, plane == 2)
        for seed in (5, 5, 6)
    )
    assert first.to_dict() == again.to_dict() != other.to_dict()


def test_the_body_is_without_air_and_couch():
    hu = np.full((32, 32), -1000.0)
    hu[4:20, 4:28] = 40
    hu[8:10, 8:10] = -950  # gas in the bowel
    hu[26, 2:30] = 100  # couch
    body = body_of(hu)
    assert body.sum() == 16 * 24 - 4 and not body[26].any() and not body[8, 8]


def test_without_its_tumour_a_slice_is_liver_there_and_without_its_liver_body():
    labels = np.zeros((32, 32), np.uint8)
    labels[8:24, 8:24], labels[12:16, 12:16], labels[18:20, 18:20] = 1, 2, 2
    hu = np.where(labels == 2, 30.0, np.where(labels == 1, 110.0, -80.0))
    hu[:2] = -1000
    lesion = np.zeros((32, 32), bool)
    lesion[12:16, 12:16] = True
    filled = without_region(hu, labels, lesion, 2)
    assert (filled[labels >= 1] == 110).all() and (filled[:2] == -1000).all()
    assert filled[4:, :][labels[4:] == 0] == pytest.approx(-80, abs=1e-3)
    assert (without_region(hu, labels, labels >= 1, 1)[labels >= 1] == -80).all()


@pytest.mark.slow
def test_a_randomized_model_keeps_the_encoder_and_draws_the_rest_anew():
    model = build_unet(32, "resnet18")
    first, again, other = randomized_model(model, 1), randomized_model(model, 1), randomized_model(model, 2)

    def weights(m, name):
        return m.get_layer(name).get_weights()[0]

    assert np.array_equal(weights(first, "stage1_unit1_conv1"), weights(model, "stage1_unit1_conv1"))
    for name in ("decoder_stage0a_conv", "decoder_stage4b_conv", "final_conv"):
        assert not np.array_equal(weights(first, name), weights(model, name))
        assert np.array_equal(weights(first, name), weights(again, name))
        assert not np.array_equal(weights(first, name), weights(other, name))
    assert weights(first, "final_conv").std() == pytest.approx(np.sqrt(2 / (9 * 16)), rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0", "tiny"])
def test_a_network_that_is_randomised_in_place_is_the_copy(backbone):
    model = build_unet(32, backbone)
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.random(w.shape).astype(w.dtype) for w in model.get_weights()])  # as if trained
    copies = [[w.copy() for w in randomized_model(model, seed).get_weights()] for seed in (3, 4)]
    into = randomized_model(model, 3)
    again = randomized_model(model, 4, into=into).get_weights()
    for seed, copy in zip((3, 4), copies, strict=True):
        assert randomized_model(model, seed, into=model) is model
        for own, expected in zip(model.get_weights(), copy, strict=True):
            np.testing.assert_array_equal(own, expected)
    for own, expected in zip(again, copies[1], strict=True):
        np.testing.assert_array_equal(own, expected)


def test_the_decoder_is_found_whatever_its_layers_are_called():
    image = keras.Input((8, 8, 3))
    down = keras.layers.Conv2D(4, 2, strides=2, name="a")(image)
    up = keras.layers.Conv2DTranspose(4, 2, strides=2, name="b")(down)
    model = keras.Model(image, keras.layers.Conv2D(3, 1, name="c")(keras.layers.ReLU(name="d")(up)))
    assert stages(model) == {"bottleneck": "a", "decoder0": "d"}
    other = randomized_model(model, 0)
    same = {n: np.array_equal(model.get_layer(n).get_weights()[0], other.get_layer(n).get_weights()[0]) for n in "abc"}
    assert same == {"a": True, "b": False, "c": False}


def test_maps_depend_on_what_the_head_has_learned(dark_is_tumour, lesions):
    volume, labels = lesions
    hu, region = volume.slices(3, 4), labels[None, ..., 3] == 2
    own = SegGradCam(dark_is_tumour)(hu, region, 2)[0]
    found = []
    for seed in range(6):
        other = randomized_model(dark_is_tumour, seed)
        again = SegGradCam(other, Model.of(dark_is_tumour).config)(hu, region, 2)[0]
        found.append(rank_correlation(own, again, np.ones_like(own, bool)))
    assert np.mean(found) < 0.5 and min(found) <= 0


def test_rank_correlation_looks_at_the_domain_alone():
    a, b = np.arange(16.0).reshape(4, 4), -np.arange(16.0).reshape(4, 4)
    domain = np.ones((4, 4), bool)
    assert rank_correlation(a, b, domain) == pytest.approx(-1)
    b[:2] = a[:2]
    domain[2:] = False
    assert rank_correlation(a, b, domain) == pytest.approx(1)
    assert rank_correlation(a, np.zeros((4, 4)), domain) == 0


def test_small_slices_do_not_make_large_batches():
    sizes = []

    def bright(hu):
        sizes.append(len(hu))
        return np.stack([hu > 60, hu <= 60], -1).astype(float)

    hu = np.where(np.eye(16, dtype=bool), 20.0, 100.0)
    SliceTest(bright, hu, np.full_like(hu, 100), 1, np.eye(16) > 0)
    assert max(sizes) <= 16 and sum(sizes) == 2 + 6 * 20
