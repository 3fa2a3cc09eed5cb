"""The picture of a result that fits a slide."""

from __future__ import annotations

import numpy as np
import pytest

from liverseg_tf.data.volume import CTVolume, MaskVolume
from liverseg_tf.evaluation.statistics import statistics
from liverseg_tf.reporting.preview import preview
from liverseg_tf.reporting.surfaces import render_front, surfaces


@pytest.fixture(scope="module")
def result() -> tuple[CTVolume, MaskVolume]:
    labels = np.zeros((64, 64, 20), np.uint8)
    labels[10:50, 6:40, 2:18] = 1
    labels[20:30, 12:22, 12:16] = 2
    hu = np.array([-200, 100, 60], np.int16)[labels]
    volume = CTVolume.from_array(hu, spacing_mm=(4.0, 4.0, 8.0))
    return volume, MaskVolume(volume.geometry.to_file(labels), volume.geometry)


@pytest.mark.slow
def test_it_fits_a_slide_and_tells_slices_sides_and_volumes(result):
    volume, mask = result
    figure = preview(volume, mask, statistics(mask, volume))
    width, height = figure.get_size_inches()
    assert width / height == pytest.approx(16 / 9, rel=0.01)
    assert sum(a.get_title().startswith("slice ") for a in figure.axes) == 6
    words = figure.axes[-1].texts[0].get_text()
    assert "1 lesion\n" in words and f"liver {(mask.labels > 0).sum() * volume.voxel_volume_ml:.0f} ml" in words
    assert "L 100 HU" in figure.get_suptitle()
    empty = MaskVolume(np.zeros_like(mask.labels), volume.geometry)
    figure = preview(volume, empty, statistics(empty, volume))
    assert "no lesion found" in figure.axes[-1].texts[0].get_text()
    assert not figure.legends[0].get_texts()  # nothing is drawn, so nothing is named


def test_the_liver_is_drawn_from_the_front_with_the_patients_right_on_the_left(result):
    mask = result[1]
    blue, orange = (0.0, 0.0, 1.0), (1.0, 0.5, 0.0)
    picture = render_front(surfaces(mask), 240, 280, (blue, orange))
    rows, columns = np.nonzero(picture[..., 0] > 0.15)  # the lesion, seen through the liver
    liver_rows, liver_columns = np.nonzero(picture[..., 2] > 0.1)
    # in the liver of 34 columns the lesion takes 6 to 16 from the right, and of 16 slices 10 to 14 from below
    share = (columns.mean() - liver_columns.min()) / np.ptp(liver_columns)
    assert share == pytest.approx(11 / 34, abs=0.04)
    up = (liver_rows.max() - rows.mean()) / np.ptp(liver_rows)
    assert up == pytest.approx(12 / 16, abs=0.05)
    assert np.ptp(liver_columns) / np.ptp(liver_rows) == pytest.approx(34 * 4 / (16 * 8), rel=0.05)
    assert not render_front([], 10, 10, (blue, orange)).any()
