"""The contact sheet: which slices it takes, and what it draws on them."""

from __future__ import annotations

import numpy as np
import pytest

from liverseg_tf.data.volume import CTVolume
from liverseg_tf.drawing import liver_window
from liverseg_tf.errors import ConfigError
from liverseg_tf.reporting.montage import informative_slices, montage


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    mask = np.zeros((32, 32, 40), np.uint8)
    mask[4:28, 4:20, 10:35] = 1
    mask[6:9, 6:9, 12] = 2  # small
    mask[15:25, 8:18, 30:33] = 2  # large
    mask[14:26, 8:18, 31] = 2
    return mask


def test_every_lesions_largest_slice_is_shown_and_nothing_outside_the_liver(labels):
    chosen = informative_slices(labels, 40, 8)
    assert {12, 31} <= set(chosen)
    assert len(chosen) == 8 == len(set(chosen)) and chosen == sorted(chosen)
    assert min(chosen) >= 10 and max(chosen) <= 34
    assert np.diff(chosen).min() >= 2  # no two neighbours, which look alike
    assert informative_slices(labels, 40, 40) == list(range(10, 35))


def test_a_single_slice_is_the_largest_lesions(labels):
    assert informative_slices(labels, 40, 1) == [31]


def test_an_empty_mask_spreads_slices_over_the_volume():
    assert informative_slices(np.zeros((4, 4, 40), np.uint8), 40, 4) == [5, 15, 25, 35]
    assert informative_slices(None, 3, 12) == [0, 1, 2]


def test_montage_draws_prediction_and_reference_where_they_are(labels):
    volume = CTVolume.from_array(np.zeros(labels.shape, np.int16), spacing_mm=(1, 1, 5))
    figure = montage(volume, labels, truth=np.roll(labels, 2, axis=1), count=6, columns=3)
    titles = [a.get_title() for a in figure.axes]
    assert "slice 13 of 40" in titles and "slice 32 of 40" in titles and len(titles) == 6
    assert {"prediction", "reference", "tumour"} <= {t.get_text() for t in figure.legends[0].get_texts()}
    panel = figure.axes[titles.index("slice 32 of 40")]
    assert len(panel.collections) == 4  # liver and tumour of each mask, as lines
    left = [c.get_paths()[0].vertices[:, 0].min() for c in panel.collections]
    assert left == pytest.approx([3.5, 7.5, 5.5, 9.5])


@pytest.mark.parametrize("liver_hu", [55, 110, 160])
def test_the_window_follows_the_liver_and_shows_its_vessels(labels, liver_hu):
    hu = np.full(labels.shape, -1000, np.int16)
    hu[labels >= 1] = liver_hu
    hu[labels == 2] = liver_hu - 40
    volume = CTVolume.from_array(hu, spacing_mm=(1, 1, 5))
    width, level = liver_window(volume, labels)
    assert (width, level) == (240, liver_hu)
    figure = montage(volume, labels, count=2)
    low, high = figure.axes[0].images[0].get_clim()
    assert low < liver_hu - 60 and high > liver_hu + 90  # neither lesions are black nor vessels white
    assert f"L {liver_hu} HU" in figure.get_suptitle()
    assert liver_window(volume, np.zeros_like(labels)) == liver_window(volume, None)


def test_every_slice_has_its_sides_and_a_scale(labels):
    figure = montage(CTVolume.from_array(np.zeros(labels.shape, np.int16), (1, 2, 5)), labels, count=4)
    for panel in figure.axes:
        texts = {t.get_text() for t in panel.texts}
        assert {"R", "L", "A", "P"} < texts
        (length,) = (int(t.removesuffix(" mm")) for t in texts if t.endswith(" mm"))
        bar = np.ptp(panel.lines[0].get_xdata()) * np.ptp(panel.get_xlim()) * 2  # columns are 2 mm wide
        assert bar == pytest.approx(length) and length <= 64 / 3
    assert "largest lesions" in figure.get_suptitle()
    assert [t.get_text() for t in figure.legends[0].get_texts()][:2] == ["liver", "tumour"]  # what is drawn alone


def test_montage_leaves_air_out():
    hu = np.full((100, 100, 4), -1000, np.int16)
    hu[40:60, 30:70] = 40
    figure = montage(CTVolume.from_array(hu, (1, 1, 1)), count=1)
    assert figure.axes[0].images[0].get_array().shape == (36, 56)  # 8 mm around 20 x 40


def test_a_count_below_one_is_an_error():
    with pytest.raises(ConfigError, match="count=0"):
        montage(CTVolume.from_array(np.zeros((8, 8, 8)), (1, 1, 1)), count=0)
