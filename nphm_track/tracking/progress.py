"""How the pipeline tells a caller where it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

logger = logging.getLogger("nphm_track")
EVERY = 10.0
"""Seconds between two lines about a stage, at least."""


class Progress(Protocol):
    """Receives the pipeline's progress; every method returns at once and never raises."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage begins (the one before is over); ``total`` steps, None when unknown."""

    def advance(self, n: int = 1) -> None:
        """``n`` more steps of the current stage are done; 0 says that work goes on, as while frames are passed over."""

    def note(self, text: str) -> None:
        """One line worth telling the user."""


class NullProgress:
    """Tells nobody."""

    def stage(self, name: str, total: int | None = None) -> None:
        pass

    def advance(self, n: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class LineProgress:
    """Lines for logs: every note, and every ten seconds how far a stage is.

    Args:
        tell: where a line goes; default the logger ``nphm_track``, at level INFO.
        clock: seconds that never go back.
    """

    def __init__(self, tell: Callable[[str], None] = logger.info, clock: Callable[[], float] = time.monotonic) -> None:
        self.note, self._clock = tell, clock
        self.stage("")

    def stage(self, name: str, total: int | None = None) -> None:
        self._name, self._total, self._done = name, total, 0
        self._begun = self._told = self._clock()

    def advance(self, n: int = 1) -> None:
        self._done += n
        now = self._clock()
        if now >= self._told + EVERY:
            self._told = now
            self.note(self._line(now - self._begun))

    def _line(self, seconds: float) -> str:
        rate = self._done / seconds
        if self._total is None:
            return f"{self._name}: {self._done} done, {rate:.2g}/s"
        left = f", {(self._total - self._done) / rate:.0f} s left" if rate else ""
        return f"{self._name}: {self._done} of {self._total}, {rate:.2g}/s{left}"
