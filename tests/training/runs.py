"""A training of seconds, and a callback that sees it."""

from dataclasses import replace

import keras

from liverseg_tf.training.recipes import Recipe

RECIPE = Recipe(
    name="tiny",
    image_size=32,
    batch_size=4,
    backbone="tiny",
    epochs=2,
    frozen_epochs=1,
    augmentation=False,
    learning_rate=2e-3,
)
# of the fixture `finished`: everything random is switched on
FINISHED = replace(RECIPE, ema=0.9, augmentation=True, lesion_synthesis=True)


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
