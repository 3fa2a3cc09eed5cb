"""Tests of maps: a right map passes, a wrong one fails."""

from __future__ import annotations

import numpy as np
import pytest

from liverseg_tf.explanation.faithfulness import deletion_insertion, randomized_model, rank_correlation
from liverseg_tf.explanation.seg_grad_cam import SegGradCam
from liverseg_tf.inference.runtimes import KerasRuntime
from liverseg_tf.models.unet import build_unet


def curves(heatmap, dark_is_tumour, lesions, **options):
    volume, labels = lesions
    plane = labels[..., 3]
    runtime = KerasRuntime(dark_is_tumour)
    hu = volume.slices(3, 4)[0]
    return deletion_insertion(runtime.probabilities, hu, heatmap, plane == 2, plane >= 1, 2, (8, 8), **options)


def test_the_lesion_itself_beats_random_and_its_opposite_does_not(dark_is_tumour, lesions):
    lesion = (lesions[1][..., 3] == 2).astype(np.float32)
    right, wrong = (curves(m, dark_is_tumour, lesions) for m in (lesion, 1 - lesion))
    assert right.beats_random and not wrong.beats_random
    assert right.deletion_area < right.random_deletion_areas.min()
    assert right.insertion_area > right.random_insertion_areas.max()
    assert wrong.deletion_area > wrong.random_deletion_areas.max()


def test_curves_begin_and_end_with_the_untouched_and_the_filled_slice(dark_is_tumour, lesions):
    found = curves(np.zeros((64, 64)), dark_is_tumour, lesions, random_maps=3, steps=4)
    assert found.fractions == pytest.approx([0, 1 / 16, 1 / 4, 9 / 16, 1])
    for deletion, insertion in zip(found.random_deletion, found.random_insertion, strict=True):
        assert deletion[0] == insertion[-1] == found.deletion[0] > 0.9
        assert deletion[-1] == insertion[0] == found.insertion[0] < 0.2
    assert found.to_dict()["random_maps"] == 3


def test_an_empty_map_does_as_random_does(dark_is_tumour, lesions):
    found = [curves(np.zeros((64, 64)), dark_is_tumour, lesions, seed=s) for s in range(4)]
    random = np.concatenate([f.random_deletion_areas for f in found])
    assert random.min() <= np.median([f.deletion_area for f in found]) <= random.max()


def test_same_seed_same_curves(dark_is_tumour, lesions):
    heat = np.random.default_rng(0).random((64, 64))
    first, second = (curves(heat, dark_is_tumour, lesions, seed=5, random_maps=2, steps=3) for _ in range(2))
    assert first.to_dict() == second.to_dict()


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


def test_maps_depend_on_what_the_head_has_learned(dark_is_tumour, lesions):
    volume, labels = lesions
    hu, region = volume.slices(3, 4), labels[None, ..., 3] == 2
    own = SegGradCam(dark_is_tumour)(hu, region, 2)[0]
    found = []
    for seed in range(6):
        other = randomized_model(dark_is_tumour, seed)
        again = SegGradCam(other, dark_is_tumour.liverseg_config)(hu, region, 2)[0]
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
    deletion_insertion(bright, hu, np.eye(16), np.eye(16) > 0, np.ones((16, 16), bool), label=1, grid=(4, 4))
    assert max(sizes) <= 16 and sum(sizes) == 2 + 2 * 7 * 11
