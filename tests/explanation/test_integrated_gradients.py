"""Integrated gradients of networks whose reasons are known."""

from __future__ import annotations

import numpy as np
import pytest

from liverseg_tf.errors import ConfigError, ModelError
from liverseg_tf.explanation.faithfulness import without_region
from liverseg_tf.explanation.integrated_gradients import IntegratedGradients
from liverseg_tf.explanation.methods import METHODS, make_explainer
from liverseg_tf.models.unet import build_unet


def test_heat_lies_where_the_difference_is_made(dark_is_tumour, lesions):
    volume, labels = lesions
    hu, tumour = volume.slices(3, 4)[0], labels[..., 3] == 2
    filled = without_region(hu, labels[..., 3], tumour, 2)
    heat = IntegratedGradients(dark_is_tumour).slice_map(hu, tumour, 2, filled)
    assert heat.shape == (64, 64) and heat.dtype == np.float32 and heat.min() >= 0
    assert heat[tumour].sum() > 0.8 * heat.sum()
    # nothing differs from the slice to start from: nothing made a difference
    assert not IntegratedGradients(dark_is_tumour).slice_map(filled, tumour, 2, filled).any()


def test_a_class_that_the_dark_speaks_against_has_no_heat_there(dark_is_tumour, lesions):
    volume, labels = lesions
    hu, tumour = volume.slices(3, 4)[0], labels[..., 3] == 2
    filled = without_region(hu, labels[..., 3], tumour, 2)
    explainer = IntegratedGradients(dark_is_tumour)
    own, liver = (explainer.slice_map(hu, tumour, label, filled)[tumour].sum() for label in (2, 1))
    assert liver < 0.05 * own


def test_methods_are_made_by_name(dark_is_tumour, lesions):
    volume, labels = lesions
    hu, tumour = volume.slices(3, 4)[0], labels[..., 3] == 2
    assert METHODS[0] == "integrated-gradients" and make_explainer(dark_is_tumour, METHODS[0]).layer is None
    heat = make_explainer(dark_is_tumour, "segxrescam").slice_map(hu, tumour, 2, hu)
    assert heat.shape == (64, 64) and heat.any()
    with pytest.raises(ConfigError, match="integrated-gradients, occlusion, gradcam"):
        make_explainer(dark_is_tumour, "magic")
    with pytest.raises(ModelError, match="no configuration"):
        IntegratedGradients(build_unet(32, "resnet18"))
