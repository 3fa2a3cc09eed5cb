"""Training as a user sees it: a run folder, resuming, and errors."""

import csv
import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import liverseg_tf as ls
import liverseg_tf.training.train as module
from liverseg_tf.errors import ConfigError, DataWarning, ModelError, OutputError, TrainingError
from liverseg_tf.training.recipes import RECIPES, Recipe

pytestmark = pytest.mark.slow

RECIPE = Recipe(
    name="tiny",
    image_size=32,
    batch_size=4,
    backbone="resnet18",
    epochs=2,
    frozen_epochs=1,
    augmentation=False,
    learning_rate=2e-3,
)


class Record(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.epochs, self.steps, self.ended = [], 0, False

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(logs)

    def on_train_end(self, logs=None):
        self.ended = True


def options(**changes):
    return {"steps_per_epoch": 4, "seed": 1, "xla": False, **changes}


@pytest.fixture(scope="module")
def cases(phantom_folder):
    return ls.find_cases(phantom_folder)


@pytest.fixture(scope="module")
def finished(cases, tmp_path_factory):
    record = Record()
    output = tmp_path_factory.mktemp("runs") / "run"
    recipe = dataclasses.replace(RECIPE, ema=0.9, augmentation=True, lesion_synthesis=True)
    return ls.train(cases, output, recipe, callbacks=[record], **options()), record


def test_repr_tells_the_best_epoch(finished):
    run, _ = finished
    best = next(row for row in run.history if row["epoch"] == run.best["epoch"])
    assert repr(run).startswith(f"Run({run.output}: 2 epochs, the best is {best['epoch']}: validation loss ")
    assert f"liver {best['val_case_liver_dice']:.3f}, tumour {best['val_case_tumour_dice']:.3f})" in repr(run)


def test_a_run_folder_tells_everything(finished):
    run, record = finished
    assert sorted(p.name for p in run.output.glob("[!.]*")) == ["curves.png", "history.csv", "model.keras", "run.json"]
    about = json.loads((run.output / "run.json").read_text())
    assert about["finished"] is True
    assert about["settings"]["recipe"]["name"] == "tiny"
    sides = about["settings"]["split"]
    assert {c["patient"] for c in sides["training"]}.isdisjoint({c["patient"] for c in sides["validation"]})
    assert about["versions"]["tensorflow"] == tf.__version__
    assert about["best"]["epoch"] in (1, 2)
    with (run.output / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"loss", "val_loss", "foreground_accuracy", "accuracy", "val_case_dice", "learning_rate"} <= set(rows[0])
    assert (run.output / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_callbacks_see_every_step_and_epoch(finished):
    run, record = finished
    assert record.steps == 8
    assert record.ended
    assert record.epochs == run.history


def test_the_kept_model_gives_the_best_epochs_figures(finished, cases):
    run, _ = finished
    model = run.model()
    validation = [c for c in cases if str(c.id) in {
        v["patient"] for v in json.loads((run.output / "run.json").read_text())["settings"]["split"]["validation"]
    }]  # fmt: skip
    confusion = sum(
        ls_confusion(labels, model(channels, training=False))
        for channels, labels in ls.slice_dataset(validation, image_size=32).batch(8)
    )
    from liverseg_tf.models.metrics import metrics_from_confusion

    found = metrics_from_confusion(confusion)
    assert found["liver_dice"] == pytest.approx(run.best["val_liver_dice"], abs=1e-6, nan_ok=True)
    assert found["accuracy"] == pytest.approx(run.best["val_accuracy"], abs=1e-9)


def ls_confusion(labels, logits):
    from liverseg_tf.models.metrics import confusion_matrices

    return confusion_matrices(labels, logits, 3).numpy().sum(0)


def weights(run_folder):
    return ls.load_model(run_folder).get_weights()


class StopAt(keras.callbacks.Callback):
    """Ends a training in the middle of an epoch, as a kill does: nothing is tidied up."""

    def __init__(self, epoch, step):
        super().__init__()
        self.at, self.epoch = (epoch, step), 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise KeyboardInterrupt


def test_one_seed_gives_the_same_weights_and_so_does_a_resumed_training(cases, tmp_path):
    """Bit for bit, with everything random switched on: both runs start anew, and one of them is killed on its way."""
    recipe = dataclasses.replace(RECIPE, epochs=3, best_by="val_loss", augmentation=True, lesion_synthesis=True)
    whole = ls.train(cases, tmp_path / "whole", recipe, **options(steps_per_epoch=3))
    with pytest.raises(KeyboardInterrupt):
        ls.train(cases, tmp_path / "killed", recipe, callbacks=[StopAt(1, 1)], **options(steps_per_epoch=3))
    assert (tmp_path / "killed" / "model.keras").is_file()  # the best so far is kept
    with pytest.raises(OutputError, match="go on with it by resume=True"):
        ls.train(cases, tmp_path / "killed", recipe, **options(steps_per_epoch=3))
    with pytest.raises(ConfigError, match="other settings .*seed"):
        ls.train(cases, tmp_path / "killed", recipe, **options(steps_per_epoch=3, seed=2), resume=True)
    resumed = ls.train(cases, tmp_path / "killed", recipe, **options(steps_per_epoch=3), resume=True)
    for a, b in zip(weights(whole.output), weights(resumed.output), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(whole.history, resumed.history, strict=True):
        assert a["loss"] == b["loss"]
        assert a["val_loss"] == b["val_loss"]
    again = ls.train(cases, tmp_path / "killed", recipe, **options(steps_per_epoch=3), resume=True)
    assert again.best == resumed.best  # a finished run is not touched


def test_transfer_takes_weights_over_and_freezes_first(cases, finished, tmp_path):
    run, _ = finished
    source = ls.load_model(run.output)
    frozen = {}

    class Watch(Record):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            frozen[logs["phase"]] = self.model.get_layer("conv0").get_weights()[0].copy()
            frozen[f"{logs['phase']} decoder"] = self.model.get_layer("final_conv").get_weights()[0].copy()

    watch = Watch()
    recipe = dataclasses.replace(RECIPE, epochs=1)
    ls.train(cases, tmp_path / "b", recipe, from_model=run.output, callbacks=[watch], **options(steps_per_epoch=2))
    assert [row["phase"] for row in watch.epochs] == ["frozen", "full"]
    start = source.get_layer("conv0").get_weights()[0]
    np.testing.assert_array_equal(frozen["frozen"], start)
    assert not np.array_equal(frozen["full"], start)
    assert not np.array_equal(frozen["frozen decoder"], source.get_layer("final_conv").get_weights()[0])


def test_transfer_warns_of_patients_seen_before(cases, finished, tmp_path):
    run, _ = finished
    seen = json.loads((run.output / "run.json").read_text())["settings"]["split"]["training"][0]["id"]
    validation = [c for c in cases if c.id == seen]
    rest = [c for c in cases if c.id != seen]
    recipe = dataclasses.replace(RECIPE, epochs=1, frozen_epochs=0)
    with pytest.warns(DataWarning, match=f"trained on patients that are validated on here .{seen}."):
        ls.train(
            rest, tmp_path / "r", recipe, from_model=run.output, validation_cases=validation,
            **options(steps_per_epoch=1),
        )  # fmt: skip


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


def test_two_devices_reach_one_devices_weights(cases, tmp_path):
    """In a process of its own: logical devices must be made before TensorFlow starts.

    BatchNorm's statistics are those of the global batch. At 32 px the bottleneck holds one pixel a slice, and rounding
    grows tenfold a step; at 64 px it does not.
    """
    import subprocess
    import sys

    script = f"""
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import liverseg_tf as ls
from liverseg_tf.training.recipes import Recipe
recipe = Recipe(name="t", image_size=64, batch_size=8, backbone="resnet18", epochs=1, augmentation=False,
                loss="cross_entropy", frozen_epochs=0, learning_rate=3e-4, epsilon=1e-3)
cases = ls.find_cases({str(cases[0].volume.parent)!r})
weights = []
for name, strategy in (("one", None), ("two", tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))):
    output = {str(tmp_path)!r} + "/" + name
    run = ls.train(cases, output, recipe, steps_per_epoch=2, xla=False, precision="float32", strategy=strategy)
    model = run.model()
    weights.append([[v.numpy() for v in group] for group in (model.trainable_variables, model.non_trainable_variables)])
for group in zip(*weights):
    print("difference", max(float(np.abs(a - b).max()) for a, b in zip(*group)))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-2000:]
    trained, statistics = (float(part) for part in result.stdout.split("difference")[1:])
    assert trained < 1e-4
    assert statistics < 1e-3  # moving variances: sums of squares in another order


def test_a_loss_that_is_no_number_names_step_and_cases(cases, tmp_path, monkeypatch):
    from liverseg_tf.training import train as module

    def build(name, classes, class_weights):
        step = tf.Variable(0)

        def loss(labels, logits):
            step.assign_add(1)
            return tf.reduce_mean(logits) * tf.where(step == 3, float("nan"), 1.0)

        return loss

    monkeypatch.setattr(module, "build_loss", build)
    with pytest.raises(TrainingError, match=r"not a number at epoch 1, step 3 \(cases \d+.*lower the learning rate"):
        ls.train(cases, tmp_path / "r", RECIPE, **options(steps_per_epoch=5))


def test_the_originals_split_over_slices_comes_with_a_warning(cases, tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=1)
    with pytest.warns(DataWarning, match="slices of one patient are trained and validated on"):
        run = ls.train(cases, tmp_path / "r", recipe, split="slices", **options(steps_per_epoch=1))
    assert json.loads((run.output / "run.json").read_text())["settings"]["split"]["by"] == "slices"


def test_recipe_report_is_the_originals():
    report = RECIPES["report"]
    assert (report.image_size, report.batch_size, report.frozen_epochs, report.epochs) == (128, 16, 1, 5)
    assert (report.every_volume, report.every_slice, report.order, report.clip_hu) == (3, 2, "name", False)
    assert (report.loss, report.weight_decay, report.encoder_weights) == ("cross_entropy", 0.1, "imagenet")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe": "nonsense"}, "unknown recipe 'nonsense': expected one of report, default"),
        ({"split": "voxels"}, "split: expected 'patients' or 'slices'"),
        ({"epochs": 0}, "at least one epoch"),
        ({"image_size": 100}, "multiple of 32"),
        ({"steps_per_epoch": -1}, "at least 1"),
        ({"folds": 2, "split": "slices"}, "folds choose"),
        ({"backbone": "nonsense"}, "backbone: expected one of resnet18.* Received: 'nonsense'"),
        ({"from_model": "shipped", "backbone": "resnet18"}, "brings its encoder: .* Received: resnet18"),
        ({"from_model": "shipped", "encoder_weights": "imagenet"}, "brings its encoder: .* Received: imagenet"),
        ({"precision": "half"}, "precision: expected one of float32"),
        ({"precision": "bfloat16", "xla": True}, "XLA takes no bfloat16"),
    ],
)
def test_options_that_cant_be_met(cases, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        ls.train(cases, tmp_path / "r", **{"recipe": RECIPE, **changes})
    assert not (tmp_path / "r").exists()


def test_a_folder_with_files_is_not_touched(cases, tmp_path):
    (tmp_path / "thesis.docx").write_text("important")
    with pytest.raises(OutputError, match="expected no folder or an empty one"):
        ls.train(cases, tmp_path, RECIPE, **options())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.docx"]


def test_a_start_that_failed_blocks_nothing(cases, tmp_path, monkeypatch):
    """Each time the advice is taken: other weights, then a smaller batch, then once more without --resume."""
    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(module, "build_model", lambda *_: (_ for _ in ()).throw(ModelError("no network")))
        with pytest.raises(ModelError, match="no network"):
            ls.train(cases, output, RECIPE, **options())
    assert not output.exists()

    def fail(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "memory")

    monkeypatch.setattr(module.Trainer, "train_epoch", fail)
    for batch_size, resume in ((4, False), (2, False), (1, True), (2, False)):
        with pytest.raises(TrainingError, match=f"out of memory at batch size {batch_size}"):
            ls.train(cases, output, RECIPE, batch_size=batch_size, resume=resume, **options())
        assert {p.name for p in output.glob("[!.]*")} == {"run.json"}
    (output / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="got one with files; go on with it"):
        ls.train(cases, output, RECIPE, **options())


def test_more_epochs_extend_a_finished_run(cases, finished, tmp_path):
    first, output = finished[0], tmp_path / "run"
    shutil.copytree(first.output, output)
    recipe = dataclasses.replace(RECIPE, ema=0.9, augmentation=True, lesion_synthesis=True)
    with pytest.raises(ConfigError, match="other settings .*recipe"):
        ls.train(cases, output, recipe, epochs=1, resume=True, **options())
    longer = ls.train(cases, output, recipe, epochs=3, resume=True, **options())
    assert [row["epoch"] for row in longer.history] == [1, 2, 3] and longer.history[:2] == first.history
    best = max(longer.history, key=lambda row: row["val_case_dice"])
    assert longer.best["val_case_dice"] == best["val_case_dice"]
    about = json.loads((output / "run.json").read_text())
    assert about["finished"] is True and about["extended_after"] == [2]
    again = ls.train(cases, output, recipe, epochs=3, resume=True, **options())
    assert again.history == longer.history  # finished: not touched
    (output / "history.csv").write_text("my notes")
    with pytest.raises(OutputError, match="history.csv: exists and was changed since"):
        ls.train(cases, output, recipe, epochs=4, resume=True, **options())
    assert (output / "history.csv").read_text() == "my notes"


def test_learning_rate_finder_leaves_the_model_as_it_was(cases, small_model):
    before, flags = small_model.get_weights(), [layer.trainable for layer in small_model.layers]
    recipe = dataclasses.replace(RECIPE, batch_size=2)
    curve = ls.find_learning_rate(cases, recipe, model=small_model, steps=30, lowest=1e-5, highest=3.0)
    assert len(curve.rates) == len(curve.losses)
    assert 1e-5 <= curve.suggestion < 3.0
    assert curve.losses[curve.rates.index(curve.suggestion)] < curve.losses[0]
    for a, b in zip(before, small_model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert flags == [layer.trainable for layer in small_model.layers]
    with pytest.raises(ConfigError, match="range test"):
        ls.find_learning_rate(cases, recipe, lowest=1, highest=0.1)
