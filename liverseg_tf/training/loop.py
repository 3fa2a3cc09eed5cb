"""The one training loop: one device or several, with or without XLA and mixed precision."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from liverseg_tf.errors import ConfigError
from liverseg_tf.labels import ClassSet
from liverseg_tf.models.losses import Loss
from liverseg_tf.models.metrics import confusion_matrices, mean_dice, metrics_from_confusion
from liverseg_tf.models.model import Model
from liverseg_tf.models.unet import is_encoder
from liverseg_tf.training.optimizer import GroupedAdamW, OneCycle, decays, rate_factors
from liverseg_tf.training.recipes import Recipe
from liverseg_tf.training.strategies import gather, worker_index

# Interval of the checks for a loss that is not finite: each check waits for the device.
_CHECK_EVERY = 10


class NotFiniteLossError(Exception):
    """The loss became NaN or infinite at a step of the epoch, counted from 0."""

    def __init__(self, step: int):
        super().__init__(f"loss is not finite at step {step}")
        self.step = step


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one optimizer.

    Attributes:
        name: "frozen" or "full".
        first_epoch: number of its first epoch.
        epochs: how many it has.
        learning_rate: highest rate.
        warmup: share of the phase in which the rate rises.
        start_factor: the first rate, relative to the highest.
    """

    name: str
    first_epoch: int
    epochs: int
    learning_rate: float
    warmup: float
    start_factor: float


def phases(recipe: Recipe, pretrained: bool) -> list[Phase]:
    """The recipe's phases; without the frozen phase if the encoder starts with random weights."""
    frozen = recipe.frozen_epochs if pretrained else 0
    result = []
    if frozen:
        result.append(
            Phase("frozen", 0, frozen, recipe.learning_rate, recipe.frozen_warmup, recipe.frozen_start_factor)
        )
    if recipe.epochs:
        rate = recipe.learning_rate * recipe.unfrozen_factor
        result.append(Phase("full", frozen, recipe.epochs, rate, recipe.warmup, recipe.start_factor))
    return result


class Trainer:
    """Trains and validates a model, an epoch at a time.

    Args:
        model: of `build_unet`, made under `strategy`.
        recipe: hyperparameters.
        loss: of `build_loss`.
        strategy: where it runs; the default is one device.
        xla: compile the step with XLA.

    Raises:
        ConfigError: for a combination that is known to crash or to be wrong.
    """

    def __init__(
        self,
        model: keras.Model,
        recipe: Recipe,
        loss: Loss,
        strategy: tf.distribute.Strategy | None = None,
        xla: bool = False,
    ):
        self.model, self.recipe, self.loss = model, recipe, loss
        self.strategy = strategy or tf.distribute.get_strategy()
        self.replicas = self.strategy.num_replicas_in_sync
        self.xla = xla
        self.mixed = any(layer.compute_dtype == "float16" for layer in model.layers)
        self._check_combination()
        self.classes = model.output_shape[-1]
        with self.strategy.scope():
            # per replica; summed when read
            options = {"trainable": False, "synchronization": tf.VariableSynchronization.ON_READ}
            self.confusion = tf.Variable(
                tf.zeros((self.classes, self.classes), tf.int64), aggregation=tf.VariableAggregation.SUM, **options
            )
            # per replica, and the same on each
            options["aggregation"] = tf.VariableAggregation.ONLY_FIRST_REPLICA
            self.loss_sum = tf.Variable(0.0, dtype=tf.float64, **options)
            self.first_bad_step = tf.Variable(-1, dtype=tf.int64, **options)
            self.averaged = [tf.Variable(v.numpy(), **options) for v in model.weights] if recipe.ema else []
        self.optimizer: keras.optimizers.Optimizer | None = None
        # AutoGraph has nothing to convert in either step. The last batch of a validation may be smaller: one trace.
        shape = (None, *model.input_shape[1:])
        specs = tf.TensorSpec(shape, tf.float32), tf.TensorSpec(shape[:-1], tf.uint8)
        self._validate_step = tf.function(self._validation_step, specs, autograph=False)
        self._training_weights: list[np.ndarray] | None = None

    def _check_combination(self) -> None:
        bilinear = any(
            isinstance(layer, keras.layers.UpSampling2D) and layer.interpolation == "bilinear"
            for layer in self.model.layers
        )
        if self.xla and self.mixed and bilinear:
            raise ConfigError(
                "XLA, mixed precision and bilinear UpSampling2D crash together: expected nearest upsampling, "
                "or one of the two switched off (xla=False, precision='float32')"
            )
        if self.xla and self.replicas > 1 and not tf.config.list_physical_devices("GPU"):
            raise ConfigError("XLA can't reduce over several CPU devices: use one device, or xla=False")

    def start_phase(
        self,
        phase: Phase,
        steps_per_epoch: int,
        schedule: keras.optimizers.schedules.LearningRateSchedule | None = None,
    ) -> None:
        """Set the trainable variables, and begin with a new optimizer; by default with a one-cycle rate."""
        schedule = schedule or OneCycle(
            phase.epochs * steps_per_epoch, phase.learning_rate, phase.warmup, phase.start_factor
        )
        for layer in self.model.layers:
            is_norm = isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = phase.name == "full" or is_norm or not is_encoder(layer)
        variables = self.model.trainable_variables
        # While frozen, fastai trains the encoder's BatchNorm at a tenth of the rate.
        factors = rate_factors(self.model, (0.1, 0.1) if phase.name == "frozen" else self.recipe.encoder_factors)
        with self.strategy.scope():
            optimizer = GroupedAdamW(
                schedule,
                factors=[factors[v.path] for v in variables],
                decayed=[decays(v) for v in variables],
                decay=self.recipe.weight_decay,
                momentum=self.recipe.momentum,
                beta_2=self.recipe.beta_2,
                epsilon=self.recipe.epsilon,
            )
            self.inner_optimizer = optimizer
            if self.mixed:
                optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
            optimizer.build(variables)
        self.optimizer = optimizer
        step = tf.function(self._train_step, jit_compile=True, autograph=False) if self.xla else self._train_step
        self._run_step = tf.function(lambda batch, index: self.strategy.run(step, (batch, index)), autograph=False)

    def _train_step(self, batch, index):
        channels, labels = batch
        with tf.GradientTape() as tape:
            logits = self.model(channels, training=True)
            loss = self.loss(labels, logits)
            scaled = loss / self.replicas
            if self.mixed:
                scaled = self.optimizer.scale_loss(scaled)
        variables = self.model.trainable_variables
        gradients = tape.gradient(scaled, [v.value for v in variables])
        if self.replicas > 1:  # summed here, because clipping uses the norm of the sum
            context = tf.distribute.get_replica_context()
            *gradients, loss = context.all_reduce(tf.distribute.ReduceOp.SUM, [*gradients, loss / self.replicas])
        gradients = self._clipped(gradients)
        self.optimizer.apply(gradients, variables)
        if self.averaged:
            # increases, so that weights of the first steps have little influence
            count = tf.cast(self.inner_optimizer.iterations, tf.float32)
            decay = tf.minimum(self.recipe.ema, count / (count + 10.0))
            for average, variable in zip(self.averaged, self.model.weights, strict=True):
                average.assign(average + (1 - decay) * (tf.cast(variable.value, average.dtype) - average))
        self.loss_sum.assign_add(tf.cast(loss, tf.float64))
        self.confusion.assign_add(tf.reduce_sum(confusion_matrices(labels, logits, self.classes), 0))
        bad = ~tf.math.is_finite(loss) & (self.first_bad_step < 0)
        self.first_bad_step.assign(tf.where(bad, index, self.first_bad_step))

    def _clipped(self, gradients):
        norm = self.recipe.clip_norm
        if norm is None:
            return gradients
        if self.mixed:
            norm = norm * tf.cast(self.optimizer.dynamic_scale, tf.float32)
        return tf.clip_by_global_norm(gradients, norm)[0]

    def train_epoch(self, batches: Iterator, steps: int, on_step: Callable[[int], None] | None = None) -> dict:
        """Take `steps` batches.

        Args:
            batches: iterator over (channels, labels), distributed if the strategy is.
            on_step: called after each step with its number.

        Returns:
            The epoch's metrics: loss, accuracies, Dice and IoU, seconds, learning rate.

        Raises:
            NotFiniteLossError: with the step at which the loss was not finite.
        """
        self.loss_sum.assign(0.0)
        self.confusion.assign(tf.zeros_like(self.confusion))
        self.first_bad_step.assign(-1)
        start = time.perf_counter()
        first = None
        for index in range(steps):
            self._run_step(next(batches), tf.constant(index, tf.int64))
            if index % _CHECK_EVERY == 0 or index == steps - 1:
                bad = int(self.first_bad_step.numpy())
                if bad >= 0:
                    raise NotFiniteLossError(bad)
            first = first or time.perf_counter() - start
            if on_step is not None:
                on_step(index)
        figures = metrics_from_confusion(self.confusion.numpy(), self._classes)
        return {
            "loss": float(self.loss_sum.numpy()) / steps,
            **figures,
            "learning_rate": float(self.inner_optimizer.learning_rate),
            "seconds": time.perf_counter() - start,
            "first_step_seconds": first,
        }

    @property
    def _classes(self) -> ClassSet:
        return Model.of(self.model).config.classes

    def _validation_step(self, channels, labels):
        logits = self.model(channels, training=False)
        count = tf.cast(tf.shape(labels)[0], tf.float64)
        return tf.cast(self.loss(labels, logits), tf.float64) * count, confusion_matrices(labels, logits, self.classes)

    def validate(
        self,
        batches: tf.data.Dataset | None,
        on_step: Callable[[int], None] | None = None,
        cases: Sequence[int] = (),
    ) -> dict:
        """Go through a validation set of (channels, labels, {"case", ...}) once.

        Args:
            batches: of this worker; None if it has none.
            on_step: called after each batch with its number.
            cases: numbers of the cases of all workers; needed if there are several.

        Returns:
            The metrics, with names that begin with `val_`; `val_dice` is `mean_dice` over all slices;
            `val_case_dice` is the mean over cases of the mean Dice of the classes that occur in the case or in its
            prediction.
        """
        total, count = 0.0, 0
        by_case: dict[int, np.ndarray] = {}
        for index, (channels, labels, info) in enumerate(batches or ()):
            loss, confusion = self._validate_step(channels, labels)
            total, count = total + float(loss), count + len(labels)
            for case, matrix in zip(info["case"].numpy().tolist(), confusion.numpy(), strict=True):
                by_case[case] = by_case.get(case, 0) + matrix
            if on_step is not None:
                on_step(index)
        if worker_index(self.strategy)[1] > 1:
            none = np.zeros((self.classes, self.classes))
            matrices = np.array([by_case.get(case, none) for case in cases], np.float64)  # counts below 2^53
            sums = gather(self.strategy, np.concatenate([[total, count], matrices.ravel()])).sum(0)
            total, count = sums[:2]
            by_case = dict(zip(cases, sums[2:].reshape(matrices.shape), strict=True))
        together = np.sum(list(by_case.values()), axis=0)
        figures = metrics_from_confusion(together, self._classes)
        rows = {case: metrics_from_confusion(matrix, self._classes) for case, matrix in by_case.items()}
        dice = [[v for k, v in row.items() if k.endswith("_dice") and not np.isnan(v)] for row in rows.values()]
        by_class = {
            f"val_case_{name}_dice": _mean([row[f"{name}_dice"] for row in rows.values()])
            for name in self._classes.names[1:]
        }
        return {
            "val_loss": total / count,
            **{f"val_{key}": value for key, value in figures.items()},
            "val_dice": mean_dice(together, self._classes),
            **by_class,
            "val_case_dice": _mean([np.mean(values) for values in dice if values]),
        }

    def use_averaged_weights(self) -> None:
        """Put the averaged weights into the model; `use_training_weights` undoes it."""
        if self.averaged:
            self._training_weights = self.model.get_weights()
            self.model.set_weights([v.numpy() for v in self.averaged])

    def use_training_weights(self) -> None:
        if self._training_weights is not None:
            self.model.set_weights(self._training_weights)
            self._training_weights = None

    def state(self) -> dict[str, np.ndarray]:
        """All state that is carried from epoch to epoch, as arrays."""
        groups = {
            "model": self.model.weights,
            "optimizer": self.optimizer.variables if self.optimizer else [],
            "averaged": self.averaged,
        }
        return {f"{name}/{i}": np.asarray(v) for name, values in groups.items() for i, v in enumerate(values)}

    def load_state(self, arrays: dict[str, np.ndarray], with_optimizer: bool) -> None:
        """Restore a `state`; the optimizer's only if the same phase continues."""
        self.model.set_weights([arrays[f"model/{i}"] for i in range(len(self.model.weights))])
        for i, variable in enumerate(self.averaged):
            variable.assign(arrays[f"averaged/{i}"])
        if with_optimizer:
            for i, variable in enumerate(self.optimizer.variables if self.optimizer else []):
                variable.assign(arrays[f"optimizer/{i}"])


def _mean(values) -> float:
    values = [v for v in values if not np.isnan(v)]
    return float(np.mean(values)) if values else float("nan")
