"""Learning-rate range test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from liverseg_tf.data.cases import Case
from liverseg_tf.data.slices import explain_read_error
from liverseg_tf.errors import ConfigError, TrainingError
from liverseg_tf.models.losses import build_loss
from liverseg_tf.models.model import Model
from liverseg_tf.models.saving import build_model
from liverseg_tf.training.feeding import recipe_batches, recipe_selection
from liverseg_tf.training.loop import NotFiniteLossError, Phase, Trainer
from liverseg_tf.training.recipes import Recipe, get_recipe

# As fastai's `lr_find`: smoothing of the loss, and how far above its best it may rise before the test ends.
_SMOOTHING, _DIVERGED = 0.98, 4.0


class ExponentialRange(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises from `lowest` to `highest` by a constant factor per step."""

    def __init__(self, lowest: float, highest: float, steps: int):
        self.lowest, self.highest, self.steps = lowest, highest, steps

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        share = keras.ops.cast(step, "float32") / max(1, self.steps - 1)
        return self.lowest * keras.ops.exp(share * math.log(self.highest / self.lowest))

    def get_config(self) -> dict[str, Any]:
        return {"lowest": self.lowest, "highest": self.highest, "steps": self.steps}


@dataclass(frozen=True)
class LearningRateCurve:
    """Result of a range test.

    Attributes:
        rates: rate of each step.
        losses: smoothed loss of each step.
        suggestion: the rate at which the loss falls fastest.
    """

    rates: list[float]
    losses: list[float]
    suggestion: float

    @property
    def still_falling(self) -> bool:
        """Whether the loss is lowest at the highest rate: then the best rate may lie above the range."""
        return int(np.argmin(self.losses)) == len(self.losses) - 1


def find_learning_rate(
    cases: Sequence[Case],
    recipe: str | Recipe = "default",
    *,
    model: keras.Model | None = None,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> LearningRateCurve:
    """Raise the learning rate step by step and watch the loss (Smith, 2017, arXiv 1506.01186).

    The slices are selected and augmented as in `train` with this recipe.

    Args:
        cases: with masks.
        recipe: hyperparameters, except the learning rate.
        model: the model to test, which is not changed; by default a new one by the recipe.
        lowest, highest: ends of the range.
        steps: batches; the test ends early when the loss exceeds four times its best.
        seed: of weights and order.
        on_step: called with each step's number.

    Returns:
        The curve and a suggestion.

    Raises:
        ConfigError: for a range or a number of steps that can't be used.
        TrainingError: if the loss never falls.

    Examples:
        >>> curve = find_learning_rate(find_cases("LiTS"), steps=50)  # doctest: +SKIP
        >>> recipe = replace(RECIPES["default"], learning_rate=curve.suggestion)  # doctest: +SKIP
        >>> run = train(find_cases("LiTS"), "run", recipe)  # doctest: +SKIP
    """
    recipe = get_recipe(recipe)
    if not 0 < lowest < highest or steps < 10:
        raise ConfigError(
            f"range test: expected 0 < lowest < highest and at least 10 steps. Received: {lowest}, {highest}, {steps}"
        )
    keras.utils.set_random_seed(seed)
    if model is None:
        model = build_model(recipe.model_config(), recipe.encoder_weights)
    before, trainable = model.get_weights(), [layer.trainable for layer in model.layers]
    config = Model.of(model).config
    loss = build_loss(recipe.loss, len(config.class_names), recipe.class_weights)
    trainer = Trainer(model, replace(recipe, ema=None), loss)
    schedule = ExponentialRange(lowest, highest, steps)
    trainer.start_phase(Phase("full", 0, 1, highest, 0.5, 1.0), steps, schedule)
    selection = recipe_selection(recipe)
    cases = selection.cases(cases)
    batches = iter(recipe_batches(cases, recipe, config, recipe.batch_size, steps, selection=selection, seed=seed))
    rates, losses, average = [], [], 0.0
    try:
        for step in range(steps):
            rate = float(schedule(step))
            try:
                value = trainer.train_epoch(batches, 1)["loss"]
            except NotFiniteLossError:
                break
            average = _SMOOTHING * average + (1 - _SMOOTHING) * value
            rates.append(rate)
            losses.append(average / (1 - _SMOOTHING ** (step + 1)))
            if on_step is not None:
                on_step(step)
            if losses[-1] > _DIVERGED * min(losses):
                break
    except tf.errors.OpError as error:
        raise explain_read_error(error, cases) from error
    finally:
        model.set_weights(before)
        for layer, flag in zip(model.layers, trainable, strict=True):
            layer.trainable = flag
    return LearningRateCurve(rates, losses, _steepest(rates, losses))


def _steepest(rates: list[float], losses: list[float]) -> float:
    """The rate, before the lowest loss, at which the loss falls fastest over the logarithm of the rate."""
    lowest = int(np.argmin(losses)) if losses else 0
    if lowest < 3:
        raise TrainingError("range test: the loss never falls; expected it to fall at some rate; check the masks")
    slopes = np.gradient(np.array(losses[: lowest + 1]), np.log(rates[: lowest + 1]))
    return rates[int(np.argmin(slopes))]
