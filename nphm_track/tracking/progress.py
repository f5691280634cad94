"""How the pipeline tells a caller where it is."""

from __future__ import annotations

from typing import Protocol


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
