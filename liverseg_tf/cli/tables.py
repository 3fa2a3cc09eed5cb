"""Tables on stdout, the same for every command."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

# Smallest width of a column of sentences.
_NARROWEST_SENTENCES = 24
_ANY_WIDTH = 100_000


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    *,
    names: Sequence[str] = (),
    sentences: Sequence[str] = (),
    title: str | None = None,
    caption: str | None = None,
) -> None:
    """Print a table, or a list of its rows if the terminal is too narrow.

    Numbers are never cut or wrapped. If stdout is not a terminal and COLUMNS is not set, the width is unlimited.

    Args:
        columns: the headings.
        rows: a cell for each column.
        names: columns of names, aligned left; the others hold numbers and are aligned right.
        sentences: columns of text, aligned left, which may be wrapped.
        title: above the table.
        caption: below it.
    """
    console = Console(highlight=False)
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console = Console(highlight=False, width=_ANY_WIDTH)
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.caption_justify = "left"
    for column in columns:
        wraps, is_text = column in sentences, column in sentences or column in names
        table.add_column(column, justify="left" if is_text else "right", no_wrap=not wraps, overflow="fold")
        table.columns[-1].max_width = _NARROWEST_SENTENCES if wraps else None
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    if Measurement.get(console, console.options.update(width=_ANY_WIDTH), table).maximum > console.width:
        _print_stacked(console, columns, rows, names, title, caption)
        return
    for added in table.columns:
        added.max_width = None
    console.print(table)
    if caption:
        console.print()


def _print_stacked(console, columns, rows, names, title, caption) -> None:
    headings = [" ".join(column.split()) for column in columns]
    widest = max(map(len, headings[1:]), default=0)
    if title:
        console.print(Text(title, "italic"), soft_wrap=True)
    for first, *rest in rows:
        heading = first if columns[0] in names else Text.assemble(f"{headings[0]} ", first)
        console.print(heading, markup=False, soft_wrap=True)
        for name, cell in zip(headings[1:], rest, strict=True):
            console.print(Text.assemble(f"  {name:<{widest}}  ", cell), soft_wrap=True)
    if caption:
        console.print(Text(caption, "dim"), soft_wrap=True)
    console.print()
