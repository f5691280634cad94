"""Progress of the pipeline on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from nphm_track.tracking.progress import NullProgress, Progress


class _Rate(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="cyan")


class TerminalProgress:
    """A bar per stage with its rate and the time left; off a terminal only notes are printed, on stderr."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        self.bars = Bars(*columns, console=console, disable=not console.is_terminal)
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
    """The progress to hand to the pipeline; nothing is printed when ``quiet``."""
    if quiet:
        yield NullProgress()
        return
    console = Console(stderr=True)
    progress = TerminalProgress(console)
    with progress.bars if console.is_terminal else nullcontext():  # some versions of rich end no bars with a blank line
        yield progress
