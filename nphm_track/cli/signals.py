"""How a process is asked to end: Ctrl-C, SIGTERM (``kill``, ``docker stop``, job schedulers) and SIGHUP (a closed
terminal) are one and the same request.

The first raises KeyboardInterrupt where the program is, so that every context manager on the way out leaves its files
in order. More within ``GRACE`` are the same request (``timeout`` sends two, a Ctrl-C reaches a whole group); a later
one ends the process at once, as SIGKILL would.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nphm_track.errors import END_SIGNALS, NphmTrackError

GRACE = 2.0
"""Seconds that are left for putting files in order before another request ends the process at once."""

_last: int = signal.SIGINT


class Interrupted(NphmTrackError):
    """The process was asked to end, and does."""

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """128 and the signal's number, as shells count: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + _last


@contextmanager
def interruptible(line: str = "interrupted") -> Iterator[None]:
    """A KeyboardInterrupt in the block leaves it as ``Interrupted``, with a line for the user."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(line) from None


RESUMABLE = "interrupted; the same command goes on where it stopped"


@contextmanager
def raised() -> Iterator[None]:
    """Requests raise KeyboardInterrupt in the main thread, which this is."""
    first: list[float] = []

    def act() -> None:
        if not first:
            first.append(time.monotonic())
            raise KeyboardInterrupt
        if time.monotonic() > first[0] + GRACE:
            os._exit(128 + _last)

    with _handled(act):
        yield


@contextmanager
def counted(tell: Callable[[int], None]) -> Iterator[Callable[[], int]]:
    """Requests are counted and raise nothing; yields a function that tells the count.

    ``tell`` is called with each new count. Requests within ``GRACE`` of the last one are the same.
    """
    count, last = 0, -GRACE

    def act() -> None:
        nonlocal count, last
        if time.monotonic() > last + GRACE:
            count, last = count + 1, time.monotonic()
            tell(count)

    with _handled(act):
        yield lambda: count


@contextmanager
def _handled(act: Callable[[], None]) -> Iterator[None]:
    """``act`` answers every request that is not ignored, as those to jobs of ``nohup`` or in the background are.

    Once there was one, the process is about to end, and those that come behind the block change its exit code no more.
    """
    asked = False

    def handler(number: int, frame: object) -> None:
        global _last
        nonlocal asked
        _last, asked = number, True
        act()

    heard = [number for number in END_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, previous in before.items():
            ending = asked or signal.getsignal(number) == signal.SIG_IGN  # in a block within this one
            signal.signal(number, signal.SIG_IGN if ending else previous)
