"""Occlusion of a network whose reasons are known."""

from __future__ import annotations

import numpy as np

from liverseg_tf.explanation.faithfulness import without_region
from liverseg_tf.explanation.methods import make_explainer
from liverseg_tf.explanation.occlusion import Occlusion, body_patches


def test_heat_lies_where_covering_makes_a_difference(dark_is_tumour, lesions):
    volume, labels = lesions
    hu, tumour = volume.slices(3, 4)[0], labels[..., 3] == 2
    filled = without_region(hu, labels[..., 3], tumour, 2)
    explainer = make_explainer(dark_is_tumour, "occlusion")
    assert isinstance(explainer, Occlusion) and explainer.layer is None
    heat = explainer.slice_map(hu, tumour, 2, filled)
    assert heat.shape == (64, 64) and heat.dtype == np.float32 and heat.min() >= 0
    assert heat[tumour].sum() > 0.8 * heat.sum() > 0
    assert not explainer.slice_map(filled, tumour, 2, filled).any()


def test_patches_of_a_slice_that_is_no_square_lie_where_its_pixels_do(dark_is_tumour):
    hu = np.full((64, 40), 105.0, np.float32)
    tumour = np.zeros((64, 40), bool)
    tumour[24:40, 0:16] = True
    hu[tumour] = 10
    heat = Occlusion(dark_is_tumour).slice_map(hu, tumour, 2, np.full_like(hu, 105))
    assert heat.shape == (64, 40)
    rows, columns = (np.average(axis, weights=heat) for axis in np.indices(heat.shape))
    assert abs(rows - 31.5) < 2 and abs(columns - 7.5) < 2


def test_patches_without_body_are_not_covered(dark_is_tumour):
    air = np.full((64, 64), -1000.0, np.float32)
    assert not body_patches(air)
    air[:4, :4] = 40
    assert list(body_patches(air)) == [(0, 0)]
