"""Livers laid upon each other: known maps are found, what cannot fit is told."""

import numpy as np
import pytest

from liverseg_tf.followup.registration import RegistrationError, register

from .conftest import LOBES, breathing


def error_mm(found, mask, motion, scene):
    places = scene.inside(mask)
    return np.linalg.norm(found(places) - motion(places), axis=1)


@pytest.mark.slow
def test_breathing_thick_slices_and_another_phase_are_undone_by_the_cts(scene):
    before = scene.mask()
    after = scene.mask(motion=breathing, spacing_mm=(2.6, 2.6, 5.0))
    cts = scene.ct(before), scene.ct(after, breathing, liver_hu=70.0, vessel_hu=-30.0, seed=1)
    found = register(before, after, *cts)
    error = error_mm(found, after, breathing, scene)
    assert error.mean() < 1.5 and np.percentile(error, 95) < 3
    assert found.residual_mm < 1 and found.used_hu and found.to_dict()["by"] == "CT and liver"
    places = scene.inside(before, every=400)
    assert np.abs(found(found.back(places)) - places).max() < 0.05


@pytest.mark.slow
def test_shape_alone_is_enough_for_three_millimetres(scene):
    before, after = scene.mask(), scene.mask(motion=breathing, codes="LAS")
    found = register(before, after)
    assert error_mm(found, after, breathing, scene).mean() < 3 and not found.used_hu


def test_the_same_scan_is_mapped_onto_itself(scene):
    mask = scene.mask()
    found = register(mask, mask)
    assert found.residual_mm == 0 and np.array_equal(found.affine, np.eye(4))
    assert np.array_equal(found(scene.inside(mask)), scene.inside(mask))


def test_the_same_liver_with_other_lesions_is_not_deformed(scene):
    first, second = scene.mask(), scene.mask(balls=())
    found = register(first, second)
    assert found.residual_mm == 0 and found.displacement_mm.size == 24  # the smallest field: nothing was computed


def test_a_resected_lobe_does_not_pull_the_rest_after_it(scene):
    def shift(places):
        return places + (5, -8, 12)

    after = scene.mask(balls=(), lobes=(LOBES[0], LOBES[2]), motion=shift)  # no left lobe
    found = register(scene.mask(balls=()), after)
    assert error_mm(found, after, shift, scene).mean() < 2
    assert found.share_away < 0.2


@pytest.mark.slow
def test_a_flipped_file_and_an_empty_mask_are_told(scene):
    before, after = scene.mask(), scene.mask(motion=breathing)
    after.labels[:] = after.labels[:, ::-1].copy()
    with pytest.raises(RegistrationError, match="left and right are exchanged"):
        register(before, after)
    after.labels[:] = 0
    with pytest.raises(RegistrationError, match="expected a liver"):
        register(before, after)
