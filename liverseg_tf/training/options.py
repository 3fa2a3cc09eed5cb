"""`TrainingOptions`: all options of a training except cases, folder and recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from liverseg_tf.errors import ConfigError

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

TRAINING_PRECISIONS = ("float32", "mixed_float16", "bfloat16")
SPLITS = ("patients", "slices")
STRATEGIES = ("one", "mirrored", "multiworker")


@dataclass(frozen=True)
class TrainingOptions:
    """Options of `train`.

    Attributes:
        epochs: epochs after the frozen phase, at least 0; None: the recipe's.
        image_size: rows and columns of the network's input, in pixels, a multiple of 32; None: the recipe's.
        batch_size: slices per step over all devices, at least 1; None: the recipe's.
        backbone: encoder, one of `liverseg_tf.config.BACKBONES`; None: the recipe's.
        encoder_weights: "imagenet", "none" or a file; None: the recipe's.
        classes: what the masks hold, by value from 1: the organ, its lesion (None if it has none), further structures;
            None: liver and tumour, or those of `from_model`.
        validation_fraction: share of the patients to validate on, above 0 and below 1.
        split: "patients", or "slices" as in the original, which puts slices of one patient into both parts.
        folds: train this many models, at least 2, each validated on one fold of the patients, in
            `output/fold-<i>`; the run of the best one is returned.
        from_model: a model of this library to start from; its configuration is kept except the image size: classes and
            their names, channels, HU range and backbone. So don't give a backbone or encoder weights.
        seed: of all random numbers.
        steps_per_epoch: batches per epoch, at least 1; None: all training slices once.
        xla: compile with XLA; None: where it is faster.
        precision: "float32", "mixed_float16" or "bfloat16" (convolutions in bfloat16 by oneDNN, weights in float32);
            None: mixed on a GPU with tensor cores, and bfloat16 on a CPU with bfloat16 instructions.
        strategy: for several devices: "mirrored" (all GPUs), "multiworker" (the workers of TF_CONFIG, which all call
            `train` with the same arguments; the first one alone writes `output`, which all must be able to read), or a
            `tf.distribute` strategy.
        data_shards: the training patients are divided into this many shards, and each batch takes the same number of
            slices from each; None: one shard per worker, which reads no other training files. The batches don't depend
            on the number of workers.
        data_service: dispatcher of a tf.data service that makes the training batches, as "grpc://host:port". They
            arrive in the order in which they are completed, so repeated or resumed trainings are not bit-equal.
        resume: continue a stopped run; or extend a finished one by more `epochs`, from its kept model, with a new
            optimizer and another one-cycle rate over the new epochs.
        callbacks: Keras callbacks; they get batches and epochs with the history row as logs.
        tensorboard: write `output/tensorboard` with all metrics, and overlays of validation slices.
        deterministic: the same seed gives the same weights on the same machine; False may be faster.

    Raises:
        ConfigError: for an unknown split or precision, or an encoder together with a model to start from.

    Examples:
        >>> TrainingOptions(epochs=3, backbone="tiny").validation_fraction
        0.2
    """

    epochs: int | None = None
    image_size: int | None = None
    batch_size: int | None = None
    backbone: str | None = None
    encoder_weights: str | Path | None = None
    classes: Sequence[str | None] | None = None
    validation_fraction: float = 0.2
    split: str = "patients"
    folds: int | None = None
    from_model: str | Path | None = None
    seed: int = 0
    steps_per_epoch: int | None = None
    xla: bool | None = None
    precision: str | None = None
    strategy: tf.distribute.Strategy | str | None = None
    data_shards: int | None = None
    data_service: str | None = None
    resume: bool = False
    callbacks: Sequence[keras.callbacks.Callback] = ()
    tensorboard: bool = False
    deterministic: bool = True

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ConfigError(f"split: expected 'patients' or 'slices'. Received: {self.split!r}")
        if self.precision is not None and self.precision not in TRAINING_PRECISIONS:
            raise ConfigError(
                f"precision: expected one of {', '.join(TRAINING_PRECISIONS)}. Received: {self.precision!r}"
            )
        given = self.backbone or self.encoder_weights
        if self.from_model is not None and given is not None:
            raise ConfigError(
                "the model to start from brings its encoder: expected neither backbone nor encoder weights beside it. "
                f"Received: {given}"
            )


class TrainingChanges(TypedDict, total=False):
    """The fields of `TrainingOptions` as keywords of `train`."""

    epochs: int | None
    image_size: int | None
    batch_size: int | None
    backbone: str | None
    encoder_weights: str | Path | None
    classes: Sequence[str | None] | None
    validation_fraction: float
    split: str
    folds: int | None
    from_model: str | Path | None
    seed: int
    steps_per_epoch: int | None
    xla: bool | None
    precision: str | None
    strategy: tf.distribute.Strategy | str | None
    data_shards: int | None
    data_service: str | None
    resume: bool
    callbacks: Sequence[keras.callbacks.Callback]
    tensorboard: bool
    deterministic: bool
