"""A second model must confirm each tumour."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import liverseg_tf as ls
from liverseg_tf.config import ModelConfig
from liverseg_tf.errors import ModelError
from liverseg_tf.inference.second_look import look_again
from liverseg_tf.labels import LIVER, LIVER_CLASSES, TUMOUR
from liverseg_tf.shipped import shipped_model

SHAPE = (32, 32, 6)


class Darkness:
    """A runtime that calls what is darker than `below` tumour and the rest of the body liver, above air."""

    is_remote, slices_at_once = False, 2

    def __init__(self, below: float, tumour: float = 1.0, class_names=("background", "liver", "tumour")):
        self.config = ModelConfig(image_size=32, class_names=class_names)
        self.below, self.tumour, self.asked = below, tumour, 0

    def probabilities(self, hu: np.ndarray) -> np.ndarray:
        self.asked += len(hu)
        air, dark = hu < -500, (hu < self.below) & (hu >= -500)
        tumour = np.where(dark, self.tumour, 0.0)
        background = np.where(air, 1.0, np.where(hu < 0, 0.8, 0.0))  # fluid below 0 HU is not in the liver
        background = np.where(air, 1.0, background * (1 - tumour))
        return np.stack([background, 1 - background - tumour, tumour], -1).astype(np.float32)

    def labels(self, hu: np.ndarray) -> np.ndarray:
        return self.probabilities(hu).argmax(-1).astype(np.uint8)


@pytest.fixture
def volume():
    """Liver of 100 HU in air, with three dark places: 40, 20 and -20 HU."""
    hu = np.full(SHAPE, -1000, np.int16)
    hu[4:28, 4:28] = 100
    hu[6:12, 6:12, 1:3] = 40
    hu[16:22, 6:12, 2:4] = 20
    hu[16:22, 18:24, 3:5] = -20
    return ls.CTVolume.from_array(hu, spacing_mm=(2.0, 2.0, 4.0))


def test_what_the_second_network_does_not_see_becomes_what_it_sees_instead(volume):
    hu = np.moveaxis(volume.slices(0, 6), 0, 2)
    first, second = Darkness(below=60), Darkness(below=30, tumour=0.5)
    labels = np.moveaxis(first.labels(volume.slices(0, 6)), 0, 2)
    again = look_again(labels.copy(), volume, second.probabilities, LIVER_CLASSES)
    assert (again[hu == 40] == LIVER).all() and (again[hu == 20] == TUMOUR).all()
    assert (again[hu == -1000] == 0).all() and (again[hu == 100] == LIVER).all()
    assert second.asked == 3  # slices 1 to 4 alone hold tumour, and slice 3 confirms that of slice 4
    never = look_again(labels.copy(), volume, Darkness(below=-900).probabilities, LIVER_CLASSES)
    assert not (never == TUMOUR).any() and (never[hu == -20] == 0).all()  # nothing in the body there


def test_thin_slices_are_judged_by_the_nearest_one_shown():
    hu = np.full((32, 32, 11), 100, np.int16)
    hu[6:12, 6:12, 1:8], hu[20:26, 6:12, 9:11] = 40, 20
    volume = ls.CTVolume.from_array(hu, spacing_mm=(2.0, 2.0, 1.0))
    labels = np.where(hu < 60, TUMOUR, LIVER).astype(np.uint8)
    shown = []

    def probabilities(hu):
        shown.append(hu)
        return Darkness(below=30).probabilities(hu)

    again = look_again(labels, volume, probabilities, LIVER_CLASSES, step=3)
    assert (again[hu == 40] == LIVER).all() and (again[hu == 20] == TUMOUR).all()
    # slices 1; 2 to 4; 5 to 7; 9 and 10
    np.testing.assert_array_equal(np.concatenate(shown), volume.slices(0, 11)[[6, 0, 3, 9]])


def test_what_is_confirmed_is_not_shown_again_and_the_labels_are_the_same(monkeypatch):
    random = np.random.default_rng(0)
    hu = np.full((32, 32, 40), 100, np.int16)
    hu[2:8, 2:8, 3:37] = 20
    for place in random.integers((8, 8, 0), (28, 28, 16), (20, 3)):
        row, column, plane = place
        hu[row : row + 4, column : column + 4, plane : plane + 4] = random.choice([20, 40, -20])
    volume = ls.CTVolume.from_array(hu, spacing_mm=(2.0, 2.0, 4.0))
    labels = np.where(hu < 60, TUMOUR, LIVER).astype(np.uint8)
    found, asked = [], []
    for some in (1, 4):  # with 1 all slices are shown
        monkeypatch.setattr("liverseg_tf.inference.second_look._SOME", some)
        second = Darkness(below=30, tumour=0.8)
        found.append(look_again(labels.copy(), volume, second.probabilities, LIVER_CLASSES))
        asked.append(second.asked)
    np.testing.assert_array_equal(*found)
    assert (found[0] == TUMOUR).any() and (labels != found[0]).any()
    assert asked[1] < 0.8 * asked[0]


@pytest.mark.parametrize(("mean", "kept"), [(0.08, False), (0.12, True)])
def test_a_tenth_on_average_confirms(volume, mean, kept):
    labels = np.moveaxis(Darkness(below=60).labels(volume.slices(0, 6)), 0, 2)
    again = look_again(labels, volume, Darkness(below=60, tumour=mean).probabilities, LIVER_CLASSES)
    assert (again == TUMOUR).any() == kept


def test_a_predictor_looks_again(volume):
    first = Darkness(below=60)
    alone = ls.Predictor(first, postprocessing=None).predict(volume)
    both = ls.Predictor(first, postprocessing=None, second_look=Darkness(below=30)).predict(volume)
    hu = np.moveaxis(volume.slices(0, 6), 0, 2)
    assert (alone.canonical_labels[hu == 40] == TUMOUR).all()
    assert (both.canonical_labels[hu == 40] == LIVER).all()
    assert (both.canonical_labels[hu == 20] == TUMOUR).all()


@pytest.mark.slow
def test_the_default_model_has_a_second_look_and_others_have_none():
    default = ls.Predictor()
    assert default.second_look == "liverseg-lite0"
    for same in ("shipped", "liverseg-resnet34", shipped_model()):
        assert ls.Predictor(same).second_look == "liverseg-lite0"
    alone = ls.Predictor(second_look=None)
    assert alone.second_look is None and ls.Predictor("liverseg-lite0").second_look is None
    assert default.sha256 != alone.sha256  # other masks come out: --resume must not keep these
    assert pickle.loads(pickle.dumps(alone)).second_look is None
    assert pickle.loads(pickle.dumps(default)).second_look == "liverseg-lite0"


def test_both_must_have_the_same_classes():
    other = Darkness(below=30, class_names=("background", "liver", "cyst"))
    with pytest.raises(ModelError, match="same classes"):
        ls.Predictor(Darkness(below=60), second_look=other)
