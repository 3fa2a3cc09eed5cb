"""Progress where stderr is no terminal."""

from __future__ import annotations

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
