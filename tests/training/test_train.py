"""Training as a user sees it: a run folder, what it tells, transfer, and going on with a finished run."""

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
from liverseg_tf.errors import ConfigError, DataWarning, OutputError, TrainingError
from tests.documented_fields import undocumented
from tests.training.runs import FINISHED, RECIPE, Record, options

pytestmark = pytest.mark.slow


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
    assert not undocumented(about, "A run folder", "Exported models") and not undocumented(set(rows[0]), "A run folder")


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


def test_transfer_takes_weights_over_and_freezes_first(cases, finished, tmp_path, monkeypatch):
    """Over a split by slices, as the original has it: it validates on patients that are trained on, here and before."""
    run, _ = finished
    source = ls.load_model(run.output)
    frozen, begun = {}, []
    recipe_batches = module.recipe_batches
    monkeypatch.setattr(
        module, "recipe_batches", lambda *a, **k: begun.append(k["first_epoch"]) or recipe_batches(*a, **k)
    )

    class Watch(Record):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            frozen[logs["phase"]] = self.model.get_layer("conv0").get_weights()[0].copy()
            frozen[f"{logs['phase']} decoder"] = self.model.get_layer("final_conv").get_weights()[0].copy()

    watch = Watch()
    recipe = dataclasses.replace(RECIPE, epochs=1, best_by="val_loss")
    with pytest.warns(DataWarning) as told:
        trained = ls.train(
            cases, tmp_path / "b", recipe, from_model=run.output, split="slices", callbacks=[watch],
            **options(steps_per_epoch=2),
        )  # fmt: skip
    split = json.loads((tmp_path / "b" / "run.json").read_text())["settings"]["split"]
    assert split["by"] == "slices"
    before = json.loads((run.output / "run.json").read_text())["settings"]["split"]["training"]
    seen = ", ".join(sorted({row["patient"] for row in before}))
    expected = ("slices of one patient are in both parts", f"patients that are validated on here ({seen})")
    assert all(any(words in str(warning.message) for warning in told) for words in expected)
    assert [row["phase"] for row in watch.epochs] == ["frozen", "full"]
    assert begun == [0]  # both phases take their batches from one dataset
    assert trained.best["val_loss"] == min(row["val_loss"] for row in watch.epochs)
    start = source.get_layer("conv0").get_weights()[0]
    np.testing.assert_array_equal(frozen["frozen"], start)
    assert not np.array_equal(frozen["full"], start)
    assert not np.array_equal(frozen["frozen decoder"], source.get_layer("final_conv").get_weights()[0])


def test_a_loss_that_is_no_number_names_step_and_cases(cases, tmp_path, monkeypatch):

    def build(name, classes, class_weights):
        step = tf.Variable(0)

        def loss(labels, logits):
            step.assign_add(1)
            return tf.reduce_mean(logits) * tf.where(step == 3, float("nan"), 1.0)

        return loss

    monkeypatch.setattr(module, "build_loss", build)
    with pytest.raises(TrainingError, match=r"not a number at epoch 1, step 3 \(cases \d+.*lower the learning rate"):
        ls.train(cases, tmp_path / "r", RECIPE, **options(steps_per_epoch=5))


def test_more_epochs_extend_a_finished_run(cases, finished, tmp_path):
    first, output = finished[0], tmp_path / "run"
    shutil.copytree(first.output, output)
    with pytest.raises(ConfigError, match="other settings .*recipe"):
        ls.train(cases, output, FINISHED, epochs=1, resume=True, **options())
    longer = ls.train(cases, output, FINISHED, epochs=3, resume=True, **options())
    assert [row["epoch"] for row in longer.history] == [1, 2, 3] and longer.history[:2] == first.history
    best = max(longer.history, key=lambda row: row["val_dice"])
    assert longer.best["val_dice"] == best["val_dice"]
    about = json.loads((output / "run.json").read_text())
    assert about["finished"] is True and about["extended_after"] == [2]
    again = ls.train(cases, output, FINISHED, epochs=3, resume=True, **options())
    assert again.history == longer.history  # finished: not touched
    (output / "history.csv").write_text("my notes")
    with pytest.raises(OutputError, match="history.csv: exists and was changed since"):
        ls.train(cases, output, FINISHED, epochs=4, resume=True, **options())
    assert (output / "history.csv").read_text() == "my notes"


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


def test_one_seed_gives_the_same_weights_and_so_does_a_resumed_training(cases, finished, tmp_path):
    """Bit for bit, with everything random switched on: both runs start anew, and one of them is killed on its way."""
    whole, output = finished[0], tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        ls.train(cases, output, FINISHED, callbacks=[StopAt(1, 1)], **options())
    assert (output / "model.keras").is_file()  # the best so far is kept
    with pytest.raises(OutputError, match="continue it with resume=True"):
        ls.train(cases, output, FINISHED, **options())
    with pytest.raises(ConfigError, match="other settings .*seed"):
        ls.train(cases, output, FINISHED, **options(seed=2), resume=True)
    resumed = ls.train(cases, output, FINISHED, **options(), resume=True)
    for a, b in zip(whole.model().get_weights(), resumed.model().get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(whole.history, resumed.history, strict=True):
        assert a["loss"] == b["loss"]
        assert a["val_loss"] == b["val_loss"]
    again = ls.train(cases, output, FINISHED, **options(), resume=True)
    assert again.best == resumed.best  # a finished run is not touched
