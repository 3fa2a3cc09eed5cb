"""Progress where stderr is no terminal."""

from __future__ import annotations

import io
import sys

from rich.console import Console

from liverseg_tf.cli import progress
from liverseg_tf.cli.progress import progress_bar


def test_a_line_a_stage(capsys):
    with progress_bar(stages=True) as bar:
        tell = bar.show("report")
        for done in range(3):
            tell(done, 3, "predicting [now]")
        tell(0, 1, "writing the page")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["predicting [now]", "writing the page"]


def test_a_line_every_half_minute_elsewhere(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_bar() as bar:
        tell = bar.show("verify")
        for done in range(1, 8):
            now[0] += 10
            tell(done, 9, f"volume-{done}.nii")
        task = bar.add_task("volumes", total=5)
        now[0] += 31
        bar.advance(task)
    assert capsys.readouterr().err.splitlines() == ["volume-4.nii: 4 of 9", "volumes: 1 of 5"]


def test_a_bar_on_a_terminal_without_utf_8(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(shown, encoding="ascii", errors="backslashreplace"))
    with progress_bar(stages=True) as bar:
        tell = bar.show("report")
        bar.refresh()
        tell(1, 3, "predicting")
        bar.refresh()
    sys.stderr.flush()
    text = shown.getvalue().decode("ascii")
    assert "0/?" not in text and "predicting" in text and "---" in text and "left" in text and "\\u" not in text


def test_the_bar_makes_room_for_each_line_of_an_epoch(monkeypatch):
    shown = io.StringIO()
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "60"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", shown)
    from liverseg_tf.cli.training_progress import TrainingProgress

    training = TrainingProgress(Console(file=shown, force_terminal=True, highlight=False))
    training.set_params({"epochs": 1, "steps": 3})
    training.on_train_begin()
    training.on_epoch_begin(0)
    training.bar.refresh()
    logs = {"phase": "full", "loss": 1.0, "val_loss": 1.0, "val_dice": 0.5, "seconds": 3, "first_step_seconds": 2}
    training.on_epoch_end(0, logs)
    training.on_train_end()
    erased = "\x1b[2K"
    assert f"{erased}first step after" in shown.getvalue() and f"{erased}epoch   1: loss" in shown.getvalue()
