"""Text in every figure: contrast of 4.5 to 1, and legible at half size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure

from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.evaluation.statistics import statistics
from liverseg_tf.explanation.explain import RegionExplanation
from liverseg_tf.explanation.faithfulness import FRACTIONS, DeletionInsertion
from liverseg_tf.explanation.figure import explanation_figure
from liverseg_tf.explanation.regions import find_regions
from liverseg_tf.reporting import figures
from liverseg_tf.reporting.montage import montage
from liverseg_tf.reporting.preview import preview
from tests.legibility import contrast, illegible


def explanation(volume: CTVolume, labels: np.ndarray) -> Figure:
    region = find_regions(labels, volume.geometry)[0]
    curve = np.linspace(1, 0, len(FRACTIONS))
    curves = DeletionInsertion(np.array(FRACTIONS), curve, curve[::-1], curve[None] / 2, curve[None] / 3)
    maps = np.where(np.moveaxis(region.mask, 2, 0), 1, 0.2).astype(np.float16)
    return explanation_figure(volume, labels, RegionExplanation(region, maps, 0.9, curves, 0.1, 0.2, 0.8))


def summary(volume: CTVolume, labels: np.ndarray) -> Figure:
    mask = MaskVolume(volume.geometry.to_file(labels), volume.geometry)
    return preview(volume, mask, statistics(mask, volume))


def history(volume: CTVolume, labels: np.ndarray) -> Figure:
    row = {"loss": 1.0, "val_loss": 1.2, "lr": 1e-3, "val_case_liver_dice": 0.8, "val_case_tumour_dice": 0.4}
    return figures.history_figure([{"epoch": 1, **row}, {"epoch": 2, **row}], "training")


FIGURES: dict[str, Callable[[CTVolume, np.ndarray], Figure]] = {
    "sample": figures.sample_figure,
    "channels": lambda volume, labels: figures.channels_figure(volume.slices(5, 6)[0]),
    "prediction": lambda volume, labels: figures.prediction_figure(
        volume.slices(5, 6)[0], labels[..., 5], labels[..., 6]
    ),
    "history": history,
    "rate": lambda volume, labels: figures.learning_rate_figure([1e-4, 1e-3, 1e-2], [1, 0.5, 2], 1e-3),
    "montage": lambda volume, labels: montage(volume, labels, labels),
    "preview": summary,
    "explanation": explanation,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_text_is_legible(name, scan):
    assert illegible(FIGURES[name](*scan)) == []


def test_contrast_is_wcags():
    assert contrast("black", "white") == pytest.approx(21)
    assert contrast("#767676", "white") == pytest.approx(4.54, abs=0.01)


def test_pale_and_small_texts_are_found():
    figure = Figure()
    figure.text(0.5, 0.5, "pale", color="0.6")
    figure.text(0.5, 0.2, "small", fontsize=8)
    assert [line.split(":")[0] for line in illegible(figure)] == ["'pale'", "'small'"]
