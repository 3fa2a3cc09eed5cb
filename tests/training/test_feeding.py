"""What a recipe feeds a network on: the same in training and in the learning-rate finder."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

import liverseg_tf as ls
from liverseg_tf.config import ChannelsConfig, ModelConfig
from liverseg_tf.models.model import Model
from liverseg_tf.training import feeding
from liverseg_tf.training import find_learning_rate as finder
from liverseg_tf.training import train as training
from liverseg_tf.training.recipes import Recipe

RECIPE = Recipe(
    name="odd",
    image_size=64,
    batch_size=3,
    backbone="tiny",
    channels=ChannelsConfig(("lungs", (99, 3)), histogram=False),
    clip_hu=False,
    augmentation=True,
    lesion_synthesis=True,
    proportions=(0.5, 0.3, 0.2),
    every_volume=2,
    every_slice=3,
    order="name",
    only_liver=True,
)


class FedError(Exception):
    pass


class Network:
    """Stands for a Keras model: what is fed is asked for before anything is computed."""

    layers = ()

    def __init__(self, config, encoder_weights="none"):
        Model(self, config).to_keras()

    def get_weights(self):
        return []


class NoTrainer:
    def __init__(self, *arguments):
        pass

    start_phase = __init__


@pytest.fixture
def feed_of(monkeypatch):
    """Call something until it asks for batches; give what it asked for."""
    asked = []

    def batches(*arguments, **options):
        asked.append((arguments, options))
        raise FedError

    monkeypatch.setattr(feeding, "training_batches", batches)
    monkeypatch.setattr(training._Training, "run", lambda self: self._batches(0))
    monkeypatch.setattr(finder, "build_model", Network)
    monkeypatch.setattr(finder, "Trainer", NoTrainer)

    def call(function, *arguments, **options):
        with pytest.raises(FedError):
            function(*arguments, **options)
        arguments, options = asked.pop()
        for name in ("augmentation", "synthesis"):
            options[name] = type(options[name]).__name__
        return arguments, options

    return call


def test_finder_and_training_feed_on_the_same(feed_of, phantom_folder, tmp_path):
    cases = ls.find_cases(phantom_folder)
    chosen = feeding.recipe_selection(RECIPE).cases(cases)
    arguments, options = feed_of(ls.find_learning_rate, cases, RECIPE, steps=17, seed=4)
    (fed, *rest), trained = feed_of(
        ls.train, cases, tmp_path / "run", RECIPE, steps_per_epoch=17, seed=4, validation_cases=cases[:1]
    )
    assert [case.id for case in fed] == [case.id for case in arguments[0]] == [case.id for case in chosen]
    assert len(chosen) == 3 and rest == list(arguments[1:]) == [64, 3, 17]
    assert {k: v for k, v in trained.items() if k not in ("first_epoch", "deterministic")} == options
    assert options["channels"] == RECIPE.channels and options["hu_range"] is None
    assert options["proportions"] == RECIPE.proportions
    assert (options["augmentation"], options["synthesis"]) == ("Augmentation", "LesionSynthesis")
    assert (options["selection"].every_volume, options["selection"].every_slice) == (1, 3)
    assert options["selection"].only_liver


def test_a_given_models_configuration_decides_what_the_finder_feeds(feed_of, phantom_folder):
    config = ModelConfig(32, "tiny", channels=ChannelsConfig(("brain",)), hu_range=(-200.0, 300.0))
    recipe = dataclasses.replace(RECIPE, augmentation=False, lesion_synthesis=False)
    arguments, options = feed_of(ls.find_learning_rate, ls.find_cases(phantom_folder), recipe, model=Network(config))
    assert arguments[1] == 32
    assert (options["channels"], options["hu_range"]) == (config.channels, config.hu_range)
    assert (options["augmentation"], options["synthesis"]) == ("NoneType", "NoneType")


def test_large_data_sets_are_not_kept_in_memory(feed_of, phantom_folder, monkeypatch):
    cases = ls.find_cases(phantom_folder)
    assert feed_of(ls.find_learning_rate, cases, RECIPE)[1]["cache"] == "memory"
    monkeypatch.setattr(feeding, "_CACHE_BYTES", 1000)
    assert feed_of(ls.find_learning_rate, cases, RECIPE)[1]["cache"] is None


def test_a_model_to_start_from_keeps_its_configuration(monkeypatch, phantom_folder, tmp_path):
    config = ModelConfig(
        32, "tiny", ("background", "leber", "herd"), ChannelsConfig(("brain",)), hu_range=(-200.0, 300.0)
    )
    monkeypatch.setattr(training, "open_model", lambda path: Model(Network(config), config))
    monkeypatch.setattr(training._Training, "run", lambda self: self)
    started = ls.train(
        ls.find_cases(phantom_folder), tmp_path / "run", RECIPE, from_model="model.keras", steps_per_epoch=1
    )
    assert started.config == dataclasses.replace(config, image_size=64)
    assert json.loads(json.dumps(started.settings()))["model"]["class_names"] == ["background", "leber", "herd"]


def test_undefined_figures_survive_json():
    rows = [{"epoch": 1, "val_tumour_dice": None}, {"epoch": 2, "val_tumour_dice": 0.5}]
    first, second = training._undefined_as_nan(rows)
    assert first["epoch"] == 1 and math.isnan(first["val_tumour_dice"]) and second == rows[1]
    assert training._undefined_as_nan(None) is None
