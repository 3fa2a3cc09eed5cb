"""`train`: trains a model on cases and writes a run folder with the best model and the record of the training."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import keras
import numpy as np
import tensorflow as tf

from liverseg_tf.config import ModelConfig
from liverseg_tf.data.cases import Case, folds_by_patient, split_by_patient, with_masks
from liverseg_tf.data.slice_options import SlicePart
from liverseg_tf.data.slices import explain_read_error, slice_dataset
from liverseg_tf.errors import (
    ConfigError,
    DataWarning,
    LiverSegError,
    ModelError,
    OutputError,
    TrainingError,
    first_line,
    warn,
)
from liverseg_tf.files import atomic_write, is_partial
from liverseg_tf.keyword_options import takes_options, with_changes
from liverseg_tf.labels import LIVER_CLASSES, ClassSet
from liverseg_tf.models.artefacts import fold_folder, write_folds
from liverseg_tf.models.losses import build_loss
from liverseg_tf.models.saving import build_model, load_config, load_model, open_model, save_model
from liverseg_tf.ownership import LEDGER, adopt, write_text
from liverseg_tf.provenance import NOT_A_MEDICAL_DEVICE, versions
from liverseg_tf.shipped import locate_model, models_folder
from liverseg_tf.strict_json import to_json
from liverseg_tf.training.feeding import (
    cache_for,
    check_service,
    distributed,
    patient_shards,
    recipe_batches,
    recipe_selection,
    side_by_side,
    through_service,
)
from liverseg_tf.training.loop import NotFiniteLossError, Phase, Trainer, phases
from liverseg_tf.training.options import TrainingChanges, TrainingOptions
from liverseg_tf.training.recipes import BEST_BY, Recipe, get_recipe
from liverseg_tf.training.strategies import create_strategy, explain_lost_worker, gather, worker_index
from liverseg_tf.training.tensorboard import TensorBoardLog
from liverseg_tf.wording import counted

logger = logging.getLogger(__name__)

# Files of a finished run, and their kinds for `ownership`.
_FILES = {"run.json": "run", "history.csv": "table", "curves.png": "figure", "model.keras": "model"}
# On a CPU: seconds that XLA takes to compile, share of a step that it then saves, and seconds of a step per pixel.
_XLA_COMPILE_SECONDS, _XLA_SAVED_SHARE, _CPU_SECONDS_A_PIXEL = 30.0, 0.3, 1.2e-5


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        output: the run folder.
        history: one row per epoch.
        best: the row of the kept epoch.

    Examples:
        >>> row = {"epoch": 1, "val_loss": 0.5, "val_case_liver_dice": 0.9, "val_case_tumour_dice": 0.4}
        >>> Run(Path("run"), [row], row).model().name
        'unet_tiny'
    """

    output: Path
    history: list[dict[str, Any]]
    best: dict[str, Any]

    def __repr__(self) -> str:
        return (
            f"Run({self.output}: {counted(len(self.history), 'epoch')}, the best is {self.best['epoch']}: "
            f"validation loss {self.best['val_loss']:.4f}, Dice by case: {dice_in_words(self.best)})"
        )

    def model(self) -> keras.Model:
        """Load the kept model."""
        return load_model(self.output)


@takes_options(TrainingOptions)
def train(
    cases: Sequence[Case],
    output: str | Path,
    recipe: str | Recipe = "default",
    *,
    validation_cases: Sequence[Case] | None = None,
    options: TrainingOptions | None = None,
    **changes: Unpack[TrainingChanges],
) -> Run:
    """Train a U-Net and keep its best epoch.

    The same seed, data and settings give bit-equal weights, resumed or not, on the CPU of one machine. Weights differ,
    at first in the last bits and later visibly, if sums are computed in another order: on another machine or version of
    TensorFlow, with another number of threads or devices, with or without XLA, in another precision. On a GPU even two
    runs on one machine differ, because gradients are summed up in the order in which its threads finish; before
    training call `tf.config.experimental.enable_op_determinism()`, which takes longer, and with XLA also set
    XLA_FLAGS=--xla_gpu_deterministic_ops=true (neither was tried here).

    Args:
        cases: at least two patients with masks; cases without one are left out.
        output: folder to make; it will hold `model.keras` (best), `run.json` (settings, split, versions, result),
            `history.csv`, `curves.png`, and until the end `checkpoint.npz`.
        recipe: name in `RECIPES`, or a `Recipe`.
        validation_cases: validate on these; `cases` are then all trained on.
        options: everything else; see `TrainingOptions`.
        changes: fields of `TrainingOptions` as keywords, such as `epochs=3`; they override `options`.

    Returns:
        The `Run`.

    Raises:
        CaseError, InputFileError, GeometryError, LabelError: for data that can't be used.
        ConfigError: for options that can't be met, or a resumed run with other settings.
        OutputError: if `output` holds something already, or a file of the resumed run that was changed.
        TrainingError: if the loss stops being a number, or another worker has ended.
        ServerError: if no data service answers.

    Examples:
        >>> run = train(find_cases("LiTS"), "run", epochs=20)  # doctest: +SKIP
    """
    options = with_changes(options, TrainingOptions, changes, "train")
    if isinstance(options.strategy, str):
        options = replace(options, strategy=create_strategy(options.strategy))
    if options.from_model is not None:
        options = replace(options, from_model=locate_model(options.from_model))
    recipe = _changed_recipe(get_recipe(recipe), options)
    labelled = with_masks(cases)
    output = Path(output)
    if options.folds is None:
        return _Training(labelled, validation_cases, output, recipe, options).run()
    if validation_cases is not None or options.split != "patients":
        raise ConfigError(
            "folds choose the validation patients: expected neither validation cases nor a split by slices"
        )
    runs = []
    for index, (training, validation) in enumerate(folds_by_patient(labelled, options.folds, options.seed)):
        runs.append(_Training(training, validation, fold_folder(output, index), recipe, options).run())
    if worker_index(options.strategy)[0] == 0:
        write_folds(output, [run.best for run in runs])
    larger = BEST_BY[recipe.best_by]
    best_by = _classes(options).named(recipe.best_by)
    return (max if larger else min)(runs, key=lambda run: run.best[best_by])


def _changed_recipe(recipe: Recipe, options: TrainingOptions) -> Recipe:
    """The recipe, with the options that replace values of it."""
    names = ("epochs", "image_size", "batch_size", "backbone")
    changes: dict[str, Any] = {name: getattr(options, name) for name in names}
    changes["encoder_weights"] = str(options.encoder_weights) if options.encoder_weights is not None else None
    return replace(recipe, **{k: v for k, v in changes.items() if v is not None})


def _classes(options: TrainingOptions, source: ModelConfig | None = None) -> ClassSet:
    """The given classes; else those of the model to start from; else those of the liver."""
    given = tuple(options.classes or ())
    if given and (given[0] is None or None in given[2:]):
        raise ConfigError(f"classes: expected an organ, its lesion or None, further structures. Received: {given}")
    if not given:
        if source is None and options.from_model is not None:
            source = load_config(options.from_model)
        return LIVER_CLASSES if source is None else source.classes
    classes = ClassSet.of(*given)  # type: ignore[arg-type]
    if source is not None and classes != source.classes:
        raise ConfigError(
            f"classes: {options.from_model} has {', '.join(source.class_names[1:])}; leave them out, or start from "
            f"another model. Received: {', '.join(map(str, given))}"
        )
    return classes


def dice_in_words(row: Mapping[str, Any]) -> str:
    """The classes' Dice in a history row, as "liver 0.950, tumour 0.612"."""
    found = {key: value for key, value in row.items() if key.startswith("val_case_") and key != "val_case_dice"}
    return ", ".join(
        f"{key.removeprefix('val_case_').removesuffix('_dice')} {value:.3f}" for key, value in found.items()
    )


class _Training:
    """One run: its split, its settings and its files."""

    def __init__(
        self,
        cases: Sequence[Case],
        validation_cases: Sequence[Case] | None,
        output: Path,
        recipe: Recipe,
        options: TrainingOptions,
    ):
        self.output, self.options = output, options
        assert not isinstance(options.strategy, str)  # `train` has replaced the name
        self.strategy = options.strategy
        self.worker, self.workers = worker_index(self.strategy)
        self.replicas = self.strategy.num_replicas_in_sync if self.strategy is not None else 1
        source = None
        if options.from_model is not None:
            self.source = open_model(options.from_model)
            source = self.source.config
            recipe = replace(recipe, channels=source.channels, backbone=source.backbone, encoder_weights="none")
        self.recipe = recipe
        self.config = recipe.model_config(source, _classes(options, source))
        classes = self.config.classes
        if classes.lesion is None and (recipe.lesion_synthesis or "tumour" in recipe.best_by):
            raise ConfigError(f"recipe {recipe.name!r}: needs a class of lesions, {classes.organ} has none")
        self.best_by = classes.named(recipe.best_by)
        self.selection = recipe_selection(recipe)
        self._split(self.selection.cases(cases), validation_cases)
        self._make_shards(options.data_shards)
        self.validation = self._validation_dataset()
        self.steps = options.steps_per_epoch or self._count_steps()
        if self.steps < 1:
            raise ConfigError(f"steps an epoch: expected at least 1. Received: {self.steps}")
        self.phases = phases(recipe, pretrained=recipe.encoder_weights != "none" or source is not None)
        if not self.phases:
            raise ConfigError("expected at least one epoch: the frozen phase is skipped with random encoder weights")
        if recipe.frozen_epochs and self.phases[0].name != "frozen":
            logger.info("the frozen phase is skipped: the encoder starts from random weights")
        self.epochs = sum(phase.epochs for phase in self.phases)
        self.precision = options.precision or self._best_precision(options.xla)
        self.xla = self._xla_is_faster() if options.xla is None else options.xla
        if self.xla and self.precision == "bfloat16":
            raise ConfigError(
                "XLA can't compile bfloat16 convolutions: expected only one of them (xla=False, precision='float32')"
            )
        self.history: list[dict[str, Any]] = []
        self._drawn_epochs = 0
        self.extended_after: list[int] = []

    def _split(self, cases: Sequence[Case], validation_cases: Sequence[Case] | None) -> None:
        part, fraction, seed = None, self.options.validation_fraction, self.options.seed
        if validation_cases is not None:
            self.training_cases, self.validation_cases = list(cases), with_masks(validation_cases)
        elif self.options.split == "patients":
            self.training_cases, self.validation_cases = split_by_patient(cases, fraction, seed)
        else:
            warn(
                "split by slices: slices of one patient are in both parts, so validation scores are too high; the "
                "default is to split by patients",
                DataWarning,
            )
            self.training_cases = self.validation_cases = list(cases)
            part = SlicePart(fraction, seed)
        # the cases are already selected
        rest = replace(self.selection, every_volume=1)
        self.training_selection = replace(rest, part=part)
        self.validation_selection = replace(rest, part=replace(part, validation=True) if part else None)

    def _make_shards(self, shards: int | None) -> None:
        """Divide the training patients into shards; each gives the same number of slices to each batch."""
        shards = self.workers if shards is None else shards
        batch = self.recipe.batch_size
        if shards < 1 or shards % self.workers:
            raise ConfigError(f"data shards: expected a multiple of {self.workers} workers. Received: {shards}")
        for count, what in ((shards, "data shards"), (self.replicas, "devices")):
            if batch % count:
                raise ConfigError(f"batch size: expected a multiple of {count} {what}. Received: {batch}")
        if self.options.data_service is not None:
            check_service(self.options.data_service)
        self.shards = patient_shards(self.training_cases, shards)

    def _batches(self, first_epoch: int, own: bool = True, **options) -> tf.data.Dataset:
        """Training batches; with `own` only this worker's part of each."""
        datasets, seed, service = [], self.options.seed, self.options.data_service
        for index, shard in enumerate(self.shards):
            if own and index * self.workers // len(self.shards) != self.worker:
                continue
            dataset = recipe_batches(
                shard,
                self.recipe,
                self.config,
                self.recipe.batch_size // len(self.shards),
                self.steps,
                selection=self.training_selection,
                first_epoch=first_epoch,
                # otherwise slices at the same position in different shards would get the same augmentation
                seed=int(np.random.SeedSequence([seed, index]).generate_state(1)[0] >> 1) if index else seed,
                deterministic=self.options.deterministic,
                **options,
            )
            datasets.append(through_service(dataset, service) if service and own else dataset)
        return side_by_side(datasets)

    def _validation_dataset(self) -> tf.data.Dataset | None:
        """This worker's share of the validation cases, if there is one for it."""
        cases = self.validation_cases[self.worker :: self.workers]
        if not cases:
            return None
        dataset = slice_dataset(
            cases,
            self.recipe.image_size,
            classes=len(self.config.class_names),
            channels=self.config.channels,
            hu_range=self.config.hu_range,
            cache=cache_for(cases),
            selection=self.validation_selection,
            deterministic=self.options.deterministic,
            with_index=True,
        )
        return dataset.batch(self.recipe.batch_size).prefetch(2)

    def _count_steps(self) -> int:
        dataset = slice_dataset(
            self.training_cases, selection=self.training_selection, hu_range=None, classes=len(self.config.class_names)
        )
        slices = int(dataset.cardinality())
        if slices < 0:  # depends on a filter, so count
            try:
                slices = int(dataset.reduce(np.int64(0), lambda count, *_: count + 1))
            except tf.errors.OpError as error:
                raise explain_read_error(error, self.training_cases, self.config.class_names) from error
        if slices == 0:
            raise ConfigError("the selection leaves no slice to train on")
        return max(1, slices // self.recipe.batch_size)

    def _best_precision(self, xla: bool | None) -> str:
        """Mixed where tensor cores make it fast (compute capability 7 and up), bfloat16 on a CPU that has it."""
        gpus = tf.config.list_physical_devices("GPU")
        for device in gpus:
            capability = tf.config.experimental.get_device_details(device).get("compute_capability", (0, 0))
            if capability >= (7, 0):
                return "mixed_float16"
        one_device = self.replicas == 1
        return "bfloat16" if not gpus and not xla and one_device and _cpu_has_bfloat16() else "float32"

    def _xla_is_faster(self) -> bool:
        if self.replicas > 1:
            return self.workers == 1 and bool(tf.config.list_physical_devices("GPU"))
        if tf.config.list_physical_devices("GPU"):
            return True
        if self.precision == "bfloat16":
            return False  # faster than XLA in float32
        step_seconds = self.recipe.batch_size * self.recipe.image_size**2 * _CPU_SECONDS_A_PIXEL
        saved = self.epochs * self.steps * step_seconds * _XLA_SAVED_SHARE
        return saved > _XLA_COMPILE_SECONDS * len(self.phases)

    def settings(self) -> dict[str, Any]:
        """The settings that must be equal to resume a run."""

        def listed(cases):
            return [{"id": c.id, "patient": c.patient, "volume": c.volume.name} for c in cases]

        settings = {
            "recipe": self.recipe.to_dict(),
            "model": self.config.to_dict(),
            "split": {
                "by": self.options.split,
                "training": listed(self.training_cases),
                "validation": listed(self.validation_cases),
            },
            "seed": self.options.seed,
            "steps_per_epoch": self.steps,
            "xla": self.xla,
            "precision": self.precision,
            "replicas": self.replicas,
            "data_shards": len(self.shards),
            "from_model": str(self.options.from_model) if self.options.from_model is not None else None,
        }
        return json.loads(to_json(settings))

    def run(self) -> Run:
        arrays, meta = self._check_folder()
        self._agree(meta)
        if meta.get("finished"):
            if self.is_chief:
                (self.output / "checkpoint.npz").unlink(missing_ok=True)  # the run was killed before it could delete it
            return Run(self.output, meta["history"], meta["best"])
        keras.utils.set_random_seed(self.options.seed)
        strategy = self.strategy or tf.distribute.get_strategy()
        model = self._new_network(strategy, extends=arrays is None and bool(meta))
        loss = build_loss(self.recipe.loss, len(self.config.class_names), self.recipe.class_weights)
        trainer = Trainer(model, self.recipe, loss, strategy, self.xla)
        self.history = meta.get("history", [])
        best: dict[str, Any] = meta.get("best") or {}  # filled by the first epoch
        if not meta:
            if self.is_chief and (self.output / "run.json").exists():
                adopt(self.output / "run.json", _FILES["run.json"])
            self._write_record(None, finished=False)
        callbacks = list(self.options.callbacks)
        if self.options.tensorboard and self.is_chief and self.validation is not None:
            channels, labels, _ = next(iter(self.validation))
            callbacks.append(TensorBoardLog(self.output / "tensorboard", (channels, labels)))
        callbacks = keras.callbacks.CallbackList(
            callbacks, model=model, epochs=self.epochs, steps=self.steps, add_progbar=False
        )
        callbacks.on_train_begin()
        try:
            batches = self._batches_from(len(self.history))
            for phase in self.phases:
                if len(self.history) >= phase.first_epoch + phase.epochs:
                    continue
                trainer.start_phase(phase, self.steps)
                if arrays is not None:
                    try:
                        trainer.load_state(arrays, with_optimizer=len(self.history) > phase.first_epoch)
                    except (KeyError, ValueError) as error:
                        raise ConfigError(
                            f"{self.output / 'checkpoint.npz'}: expected the checkpoint of this network, got another "
                            f"({first_line(error)}); name another folder"
                        ) from error
                    arrays = None
                best = self._run_phase(trainer, phase, batches, callbacks, best)
        except tf.errors.OpError as error:
            if lost := explain_lost_worker(error):
                raise lost from error
            if isinstance(error, tf.errors.ResourceExhaustedError):
                raise TrainingError(
                    f"out of memory at batch size {self.recipe.batch_size} and {self.recipe.image_size} px: "
                    "expected them to fit; lower batch_size= or image_size="
                ) from error
            cases = [*self.training_cases, *self.validation_cases]
            raise explain_read_error(error, cases, self.config.class_names) from error
        callbacks.on_train_end(self.history[-1])
        self._write_record(best, finished=True)
        if self.is_chief:
            (self.output / "checkpoint.npz").unlink(missing_ok=True)
        self._agree({"history": self.history})  # no worker returns before the files are written
        return Run(self.output, self.history, best)

    def _new_network(self, strategy: tf.distribute.Strategy, extends: bool) -> keras.Model:
        """The network as training starts with it; `extends`: with the weights that a finished run kept."""
        with strategy.scope():
            policy = "float32" if self.precision == "bfloat16" else self.precision
            model = build_model(self.config, self.recipe.encoder_weights, policy)
            if self.options.from_model is not None:
                self._start_from(model, Path(self.options.from_model))
            if extends:
                model.set_weights(load_model(self.output).get_weights())
        if strategy.num_replicas_in_sync > 1:
            for layer in model.layers:
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.synchronized = True  # statistics over the global batch, as one device would have them
        return model

    def _batches_from(self, epoch: int) -> Iterator:
        """Batches of this epoch and all that follow; tracing them takes seconds, so phases share them."""
        if self.replicas == 1:
            return iter(self._batches(epoch))
        each = self.recipe.batch_size // self.replicas
        return iter(distributed(lambda: self._batches(epoch), self.strategy, each))

    def _run_phase(
        self,
        trainer: Trainer,
        phase: Phase,
        batches: Iterator,
        callbacks: keras.callbacks.CallbackList,
        best: dict[str, Any],
    ) -> dict[str, Any]:
        for epoch in range(len(self.history), phase.first_epoch + phase.epochs):
            callbacks.on_epoch_begin(epoch)
            try:
                with bfloat16_convolutions(self.precision == "bfloat16"):
                    figures = trainer.train_epoch(
                        batches, self.steps, lambda step: callbacks.on_train_batch_end(step, {"phase": phase.name})
                    )
            except NotFiniteLossError as error:
                raise self._explain_nan(epoch, error.step) from None
            trainer.use_averaged_weights()
            callbacks.on_test_begin()
            validation = trainer.validate(
                self.validation,
                lambda step: callbacks.on_test_batch_end(step),
                [case.id for case in self.validation_cases],
            )
            row = {"epoch": epoch + 1, "phase": phase.name, **figures, **validation}
            if not best or self._is_better(row, best):
                best = row
                self._save(trainer.model)
            trainer.use_training_weights()
            self.history.append(row)
            self._write_checkpoint(trainer, best)
            self._write_record(best, finished=False)
            callbacks.on_epoch_end(epoch, row)
        return best

    def _is_better(self, row: dict[str, Any], best: dict[str, Any]) -> bool:
        new, old = row[self.best_by], best[self.best_by]
        if math.isnan(new) or math.isnan(old):
            return math.isnan(old)
        return new > old if BEST_BY[self.recipe.best_by] else new < old

    def _start_from(self, model: keras.Model, source: Path) -> None:
        try:
            model.set_weights(self.source.network.get_weights())
        except ValueError as error:
            raise ConfigError(f"{source}: its network does not fit this one ({error})") from None
        if source.resolve().is_relative_to(models_folder().resolve()):
            warn(
                "the shipped model was trained on patients of LiTS's training set: validation scores on LiTS cases "
                "will be too high",
                DataWarning,
            )
        record = source / "run.json"
        known = set()
        if record.is_file():
            try:
                seen = json.loads(record.read_text("utf-8"))["settings"]["split"]["training"]
                known = {row["patient"] for row in seen}
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ModelError(f"{record}: expected the record of a run, got something else ({error})") from None
        mine = {case.patient for case in self.validation_cases}
        if known & mine:
            listed = ", ".join(sorted(known & mine)[:5])
            warn(
                f"{source} was trained on patients that are validated on here ({listed}): "
                "validation scores will be too high",
                DataWarning,
            )

    def _save(self, model: keras.Model) -> None:
        if not self.is_chief:
            return
        if self.precision == "mixed_float16":  # so that the kept model does not depend on the precision
            plain = build_model(self.config)
            plain.set_weights(model.get_weights())
            model = plain
        save_model(model, self.config, self.output / "model.keras")

    @property
    def is_chief(self) -> bool:
        """Whether this is the worker that writes."""
        return self.worker == 0

    def _agree(self, meta: dict[str, Any]) -> None:
        """Wait for the other workers, and make sure that all train the same thing from the same epoch on."""
        if self.workers == 1:
            return
        state = to_json([self.settings(), len(meta.get("history", ()))])
        try:
            states = gather(self.strategy, np.array(zlib.crc32(state.encode()), np.int64)).tolist()
        except tf.errors.OpError as error:
            raise explain_lost_worker(error) or TrainingError(f"the workers could not agree: {error}") from error
        if len(set(states)) > 1:
            raise ConfigError(
                "the workers differ: expected the same command, the same data and the same run folder (on storage that "
                f"all can read) on each. Received: {', '.join(f'{state:08x}' for state in states)} for their settings"
            )

    def _check_folder(self) -> tuple[dict[str, np.ndarray] | None, dict[str, Any]]:
        record = self.output / "run.json"
        if self._can_start_anew(record):
            return None, {}
        if self.options.resume and record.is_file():
            return self._load_checkpoint(record)
        started = record.is_file()
        advice = "continue it with resume=True, or name another folder" if started else "name a new folder"
        raise OutputError(f"{self.output}: expected no folder or an empty one, got one with files; {advice}")

    def _can_start_anew(self, record: Path) -> bool:
        """Whether nothing is lost: no folder, an empty one, or one of a run that ended before its first epoch did."""
        if not self.output.exists():
            return True
        if not self.output.is_dir():
            return False
        names = {p.name for p in self.output.iterdir() if not is_partial(p)} - {LEDGER}
        if not names:
            return True
        if "run.json" not in names or not names <= {"run.json", "tensorboard"}:
            return False
        try:
            saved = json.loads(record.read_text("utf-8"))
            return isinstance(saved["settings"], dict) and saved["history"] == []
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _load_checkpoint(self, record: Path):
        saved = self._matching_record(record)
        if self.is_chief:
            for name, kind in _FILES.items():
                if (self.output / name).exists():
                    adopt(self.output / name, kind)
        if saved.get("finished"):
            known = {name: _undefined_as_nan(saved[name]) for name in ("history", "best")}
            if self.epochs > len(saved["history"]):
                self._extend(len(saved["history"]))
                return None, known
            return None, {**saved, **known}
        path = self.output / "checkpoint.npz"
        if not path.is_file():
            return None, {}
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
            meta = json.loads(str(arrays.pop("meta")))
            return arrays, {"history": _undefined_as_nan(meta["history"]), "best": _undefined_as_nan(meta["best"])}
        except Exception as error:  # NumPy and zipfile raise many kinds of error for a broken file
            raise ConfigError(f"{path}: expected a checkpoint of this run, got something else ({error})") from None

    def _matching_record(self, record: Path) -> dict[str, Any]:
        """The record of the run in the folder, which this run continues or extends."""
        try:
            saved = json.loads(record.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{record}: expected the record of a run, got something else ({error})") from None
        if not isinstance(saved, dict) or not isinstance(saved.get("settings"), dict):
            raise ConfigError(f"{record}: expected the record of a run, got other JSON; name another folder")
        now, then = self.settings(), saved["settings"]
        if saved.get("finished") and now["recipe"]["epochs"] > then.get("recipe", {}).get("epochs", math.inf):
            now["recipe"]["epochs"] = then["recipe"]["epochs"]
            if self.options.xla is None:  # its default depends on the number of epochs
                self.xla = now["xla"] = then.get("xla")
        if then != now:
            different = [key for key in now if then.get(key) != now[key]]
            raise ConfigError(
                f"{self.output}: was started with other settings ({', '.join(different)} differ); "
                "resume with the same command and data, or name another folder; only a finished run can be "
                "extended by more epochs"
            )
        for done in saved.get("extended_after", []):
            self._extend(done)
        return saved

    def _extend(self, done: int) -> None:
        """Divide the last phase: the epochs after `done` have their own optimizer and one-cycle rate."""
        self.extended_after.append(done)
        *before, last = self.phases
        first = replace(last, epochs=done - last.first_epoch)
        self.phases = [*before, first, replace(last, first_epoch=done, epochs=last.epochs - first.epochs)]

    def _write_checkpoint(self, trainer: Trainer, best: dict[str, Any]) -> None:
        if not self.is_chief:
            return
        meta = to_json({"history": self.history, "best": best})
        with atomic_write(self.output / "checkpoint.npz") as temporary:
            arrays: dict[str, Any] = {"meta": np.array(meta), **trainer.state()}
            np.savez(temporary, **arrays)

    def _write_record(self, best: dict[str, Any] | None, finished: bool) -> None:
        if not self.is_chief:
            return
        record = {
            "settings": self.settings(),
            "command": sys.argv,
            "versions": versions(),
            "best": best,
            "best_by": self.best_by,
            "history": self.history,
            "extended_after": self.extended_after,
            "finished": finished,
            "note": NOT_A_MEDICAL_DEVICE,
        }
        write_text(self.output / "run.json", to_json(record, indent=2) + "\n", _FILES["run.json"])
        if self.history:
            text = io.StringIO()
            writer = csv.DictWriter(text, list(self.history[0]))
            writer.writeheader()
            writer.writerows(self.history)
            write_text(self.output / "history.csv", text.getvalue(), _FILES["history.csv"])
            if self._drawn_epochs != len(self.history):
                from liverseg_tf.drawing import save_figure
                from liverseg_tf.reporting.figures import history_figure

                save_figure(history_figure(self.history), self.output / "curves.png", dpi=110)
                self._drawn_epochs = len(self.history)

    def _explain_nan(self, epoch: int, step: int) -> LiverSegError:
        """Read the broken step's batch again, to say which cases were in it."""
        batches = self._batches(epoch, own=False, with_index=True)
        _, _, info = next(iter(batches.skip(step).take(1)))
        cases = ", ".join(str(case) for case in sorted(set(info["case"].numpy().tolist())))
        if self.options.data_service:
            cases = "unknown with a data service"
        kept = f"; the best epoch so far is kept in {self.output}" if self.history else ""
        return TrainingError(
            f"the loss is not a number at epoch {epoch + 1}, step {step + 1} (cases {cases}): expected a finite loss; "
            f"lower the learning rate, use precision='float32', or check these cases with 'liverseg verify'{kept}"
        )


def _undefined_as_nan(figures):
    """History rows from JSON, which has no NaN: null means an undefined value."""
    if isinstance(figures, list):
        return [_undefined_as_nan(row) for row in figures]
    return figures and {name: math.nan if value is None else value for name, value in figures.items()}


def _cpu_has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


@contextmanager
def bfloat16_convolutions(wanted: bool) -> Iterator[None]:
    """Let oneDNN compute convolutions in bfloat16 during training; validation uses float32, as prediction does."""
    if not wanted:
        yield
        return
    option = "auto_mixed_precision_onednn_bfloat16"
    tf.config.optimizer.set_experimental_options({option: True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({option: False})
