"""Progress on stderr, the same for every command."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_SECONDS_A_LINE = 30.0


def console() -> Console:
    """Console for messages on stderr, so that stdout has only results."""
    return Console(stderr=True, highlight=False)


def progress_bar(stages: bool = False) -> ProgressBar:
    """A bar with counts, elapsed and remaining time, removed at the end; lines if stderr is not a terminal.

    Args:
        stages: without a terminal, write a line for each new description, because they are the stages of the work;
            otherwise a line every half minute.
    """
    return ProgressBar(stages)


class _Count(MofNCompleteColumn):
    """Steps done and their total, once that is known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


class _Left(TimeRemainingColumn):
    """Time left, once the number of steps is known."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text()
        return Text.assemble(("left ", "dim"), super().render(task))


class ProgressBar(Progress):
    """See `progress_bar`."""

    def __init__(self, stages: bool):
        where = console()
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            _Count(),
            TimeElapsedColumn(),
            _Left(),
            console=where,
            transient=True,
            disable=not where.is_terminal,
        )
        self._stages, self._written_at = stages, time.monotonic()
        self._stage: str | None = None

    def update(self, task_id, **changes) -> None:
        super().update(task_id, **changes)
        self._write_line(task_id)

    def advance(self, task_id, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._write_line(task_id)

    def show(self, title: str):
        """A callback for functions that report progress as (done, total) or (done, total, what)."""
        task = self.add_task(title, total=None)

        def progress(done: int, total: int | None, what: str = title) -> None:
            self.update(task, completed=done, total=total, description=what)

        return progress

    def _write_line(self, task_id) -> None:
        if not self.disable:
            return
        task = self._tasks[task_id]
        is_new = self._stages and task.description != self._stage
        if is_new or time.monotonic() - self._written_at > _SECONDS_A_LINE:
            count = "" if is_new or task.total is None else f": {task.completed:.0f} of {task.total:.0f}"
            self.console.print(f"{task.description}{count}", markup=False, soft_wrap=True)
            self._stage, self._written_at = task.description, time.monotonic()
