"""Progress of the pipeline on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from nphm_track.tracking.progress import LineProgress, NullProgress, Progress


class _Rate(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="cyan")


class TerminalProgress:
    """A bar per stage with its rate and the time left, on stderr."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        self.bars = Bars(*columns, console=console)
        self._task: TaskID | None = None

    def stage(self, name: str, total: int | None = None) -> None:
        if self._task is not None:
            self.bars.stop_task(self._task)
        self._task = self.bars.add_task(name, total=total)

    def advance(self, n: int = 1) -> None:
        if self._task is not None:
            self.bars.advance(self._task, n)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def show_progress(quiet: bool) -> Iterator[Progress]:
    """The progress to hand to the pipeline: bars on a terminal, else lines on stderr; nothing when ``quiet``."""
    console = Console(stderr=True)
    if quiet:
        yield NullProgress()
    elif console.is_terminal:
        progress = TerminalProgress(console)
        with progress.bars:
            yield progress
    else:
        yield LineProgress(lambda line: print(line, file=sys.stderr, flush=True))
