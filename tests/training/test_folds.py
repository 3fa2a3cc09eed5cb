"""Training by folds, and the ensemble that its models are."""

import dataclasses
import json

import numpy as np
import pytest

import liverseg_tf as ls
from tests.training.runs import RECIPE, options

pytestmark = pytest.mark.slow


def test_folds_and_their_ensemble(cases, tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=1, frozen_epochs=0)
    best = ls.train(cases, tmp_path / "cv", recipe, folds=2, **options(steps_per_epoch=1))
    rows = json.loads((tmp_path / "cv" / "folds.json").read_text())
    assert [row["fold"] for row in rows] == [0, 1]
    assert best.output.parent == tmp_path / "cv"
    predictor = ls.Predictor(tmp_path / "cv", postprocessing=None)
    assert len(predictor.runtimes) == 2
    hu = np.random.default_rng(0).normal(0, 200, (40, 36, 2))
    mean = sum(runtime.probabilities(np.moveaxis(hu, 2, 0).astype(np.float32)) for runtime in predictor.runtimes) / 2
    labels = predictor.predict(hu, spacing_mm=(2, 2, 5)).canonical_labels
    np.testing.assert_array_equal(labels, np.moveaxis(mean.argmax(-1), 0, 2))
