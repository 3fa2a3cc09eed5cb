"""Progress on stderr, the same for every command."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def console() -> Console:
    """Where messages go: stderr, so that stdout keeps to results."""
    return Console(stderr=True, highlight=False)


def progress_bar() -> Progress:
    """A bar with counts, time taken and time left; gone when done, silent where stderr is no terminal."""
    where = console()
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left", style="dim"),
        TimeRemainingColumn(),
        console=where,
        transient=True,
        disable=not where.is_terminal,
    )
