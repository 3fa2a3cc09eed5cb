"""Progress of training on the terminal, as a Keras callback."""

from __future__ import annotations

import keras
from rich.console import Console

from liverseg_tf.cli.progress import progress_bar
from liverseg_tf.training.train import dice_in_words


class TrainingProgress(keras.callbacks.Callback):
    """One line per epoch, and a bar with the remaining time.

    Args:
        out: where lines go.
        summary: print the network's layers first.
    """

    def __init__(self, out: Console, summary: bool = False):
        super().__init__()
        self.out, self.summary, self.rows = out, summary, 0
        self.bar = self.task = None

    def on_train_begin(self, logs=None):
        if self.summary:
            self.model.summary(print_fn=lambda line, line_break=True: self.out.print(line, markup=False))
        self.bar = progress_bar()
        self.task = self.bar.add_task("training", total=self.params["epochs"] * self.params["steps"])
        self.bar.start()

    def on_epoch_begin(self, epoch, logs=None):
        description = f"epoch {epoch + 1}/{self.params['epochs']}"
        self.bar.update(self.task, completed=epoch * self.params["steps"], description=description)

    def on_train_batch_end(self, batch, logs=None):
        self.bar.advance(self.task)

    def on_test_begin(self, logs=None):
        self.bar.update(self.task, description="validation")

    def on_epoch_end(self, epoch, logs=None):
        self.rows += 1
        if self.rows == 1:
            self._write(f"first step after {logs['first_step_seconds']:.0f} s (tracing and compiling)")
        phase = " (frozen)" if logs["phase"] == "frozen" else ""
        self._write(
            f"epoch {epoch + 1:>3}{phase}: loss {logs['loss']:.4f}, validation {logs['val_loss']:.4f}, "
            f"Dice {logs['val_dice']:.4f} (by case: {dice_in_words(logs)}), {logs['seconds']:.0f} s"
        )

    def _write(self, line: str) -> None:
        """Write a line where the bar was, which comes back below it."""
        bar = None if self.bar is None or self.bar.disable else self.bar
        if bar is not None:
            bar.stop()
        # a log keeps one line for each epoch, a terminal breaks between words
        self.out.print(line, markup=False, soft_wrap=not self.out.is_terminal)
        self.out.file.flush()
        if bar is not None:
            bar.start()

    def on_train_end(self, logs=None):
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
