"""A training that was stopped goes on as if nothing had been, and one that failed blocks nothing."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import liverseg_tf as ls
import liverseg_tf.training.train as module
from liverseg_tf.errors import ConfigError, ModelError, OutputError, TrainingError
from tests.training.runs import RECIPE, options

pytestmark = pytest.mark.slow


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
    with pytest.raises(OutputError, match="continue it with resume=True"):
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
