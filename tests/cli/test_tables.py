"""Tables at any width: a figure is never cut."""

from __future__ import annotations

import io
import re
import sys

import pytest

from liverseg_tf.cli.tables import print_table

COLUMNS = ("case", "liver\nDice", "95 % interval", "finding")
ROWS = [(str(n), "0.912345", "0.900 to 0.920", "spacing of the slices is larger than expected") for n in (7, 1234567)]


def printed(capsys, monkeypatch, width) -> str:
    if width is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(width))
    print_table(COLUMNS, ROWS, sentences=("finding",), title="Findings", caption="of a test")
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [None, 20, 40, 60, 66, 67, 68, 69, 70, 71, 72, 73, 74, 80, 200])
def test_no_figure_is_cut_at_any_width(capsys, monkeypatch, width):
    text = printed(capsys, monkeypatch, width)
    assert "…" not in text
    for figure in ("1234567", "0.912345", "0.900 to 0.920"):
        assert figure in text
    for word in (*ROWS[0][3].split(), "Findings", "of a test"):
        assert re.search(rf"\b{word}\b", text)


def test_narrow_terminals_get_stacked_rows(capsys, monkeypatch):
    text = printed(capsys, monkeypatch, 60)
    assert text.splitlines()[:5] == [
        "Findings",
        "case 7",
        "  liver Dice     0.912345",
        "  95 % interval  0.900 to 0.920",
        "  finding        spacing of the slices is larger than expected",
    ]


def test_wide_ones_get_a_row_a_line(capsys, monkeypatch):
    for width in (120, None):
        lines = [line.split() for line in printed(capsys, monkeypatch, width).splitlines()]
        assert ["7", "0.912345", "0.900", "to", "0.920", *ROWS[0][3].split()] in lines


def test_sentences_are_wrapped_before_rows_are_stacked(capsys, monkeypatch):
    text = printed(capsys, monkeypatch, 80)
    assert "case 7" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_terminal_without_utf_8_gets_plain_rules(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii", errors="backslashreplace"))
    print_table(COLUMNS, ROWS, title="Findings")
    sys.stdout.flush()
    text = shown.getvalue().decode("ascii")
    assert "\\u" not in text and "-----" in text and "0.912345" in text
