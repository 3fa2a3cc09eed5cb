"""A worker of test_multiworker.py: a process of its own, since a cluster must be set up before TensorFlow starts.

The U-Net's tracing would take most of the time: a small network with BatchNorm stands in for it.
"""

import os
import signal
import sys

import keras
import numpy as np

import liverseg_tf as ls
from liverseg_tf.errors import LiverSegError
from liverseg_tf.models.model import Model
from liverseg_tf.training import train as run
from liverseg_tf.training.recipes import Recipe

RECIPE = Recipe(name="tiny", image_size=32, batch_size=4, epochs=3, learning_rate=3e-3, ema=0.9)


def build_small(config, encoder_weights="none", precision="float32"):
    """A network in place of `build_model`'s."""
    layers = keras.layers
    inputs = keras.Input((config.image_size, config.image_size, config.channels.count))
    x = inputs
    for index in range(2):
        x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name=f"conv{index}")(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9, name=f"norm{index}")(x))
    x = layers.Conv2D(len(config.class_names), 3, padding="same", name="final_conv")(layers.UpSampling2D(4)(x))
    return Model(keras.Model(inputs, x), config).to_keras()


class Watch(keras.callbacks.Callback):
    """Keeps the last weights, or dies as a killed process does."""

    def __init__(self, weights, dies_in_epoch=None):
        super().__init__()
        self.weights, self.dies_in_epoch = weights, dies_in_epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.dies_in_epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_end(self, logs=None):
        np.savez(self.weights, *self.model.get_weights())


def train_small(data, output, weights, dies_in_epoch=None, **options):
    """Train the small network on the phantoms in `data`; the build is replaced for good."""
    run.build_model = build_small
    return ls.train(
        ls.find_cases(data),
        output,
        RECIPE,
        steps_per_epoch=2,
        validation_fraction=0.5,
        xla=False,
        precision="float32",
        callbacks=[Watch(weights, dies_in_epoch)],
        **options,
    )


def main(options):
    """A worker's process, as TF_CONFIG says."""
    try:
        train_small(**options, strategy="multiworker")
    except LiverSegError as error:
        sys.exit(f"{type(error).__name__}: {error}")
