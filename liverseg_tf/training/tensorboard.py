"""TensorBoard log of a training."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from liverseg_tf.errors import require
from liverseg_tf.labels import color_mask
from liverseg_tf.models.model import Model

_SLICES = 4


class TensorBoardLog(keras.callbacks.Callback):
    """Writes each epoch's figures, and some validation slices with true and predicted mask.

    Args:
        folder: where the event files go; `tensorboard --logdir` takes the run folder above it.
        batch: (channels (B, S, S, C) float32 in [0, 1], labels (B, S, S) uint8) to draw.

    Raises:
        MissingDependencyError: without the package `tensorboard`.
    """

    def __init__(self, folder: str | Path, batch: tuple[np.ndarray, np.ndarray]):
        super().__init__()
        require("tensorboard", "tensorboard", "writing for TensorBoard")
        self.folder = Path(folder)
        # the slices with the most foreground
        most = np.argsort(-(np.asarray(batch[1]) > 0).sum((1, 2)))[:_SLICES]
        self.channels, self.labels = np.asarray(batch[0])[most], np.asarray(batch[1])[most]
        self.writer = None

    def on_train_begin(self, logs=None):
        self.writer = tf.summary.create_file_writer(str(self.folder))

    def on_epoch_end(self, epoch, logs=None):
        predicted = np.argmax(self.model(self.channels, training=False), -1)
        gray = np.repeat(self.channels[..., :1], 3, -1)

        classes = Model.of(self.model).config.classes.classes

        def overlay(labels):
            shown = (labels > 0)[..., None]
            return np.where(shown, 0.6 * gray + 0.4 * color_mask(labels, classes=classes) / 255, gray)

        with self.writer.as_default(step=epoch + 1):
            for name, value in logs.items():
                if isinstance(value, float) and np.isfinite(value):
                    side, _, rest = name.rpartition("val_")
                    tf.summary.scalar(
                        f"{'validation' if side or name.startswith('val_') else 'training'}/{rest}", value
                    )
            panels = np.concatenate([gray, overlay(self.labels), overlay(predicted)], axis=2)
            tf.summary.image("slice, truth, prediction", panels, max_outputs=_SLICES)

    def on_train_end(self, logs=None):
        self.writer.close()
