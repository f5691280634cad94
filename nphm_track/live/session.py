"""The loop of a live session: the newest picture, tracked, sent and shown; and how late and how often that is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nphm_track.live.capture import Capture
from nphm_track.live.tracker import LiveFrame, LiveTracker

RECENT_S = 2.0
"""Seconds that the shown rate and latency are of."""


@dataclass
class Meter:
    """Counts frames. Latency is from when a picture was decoded to when its packets were sent."""

    tracked: int = 0
    latencies: list[float] = field(default_factory=list)
    begun: float | None = None
    """When the first picture arrived, seconds."""
    ended: float = 0.0
    _recent: deque[tuple[float, float]] = field(default_factory=deque)

    def add(self, arrived: float, done: float, tracked: bool) -> None:
        """A frame that arrived at a moment and was done at another, seconds of one clock."""
        self.begun, self.ended = arrived if self.begun is None else self.begun, done
        self.tracked += tracked
        self.latencies.append(done - arrived)
        self._recent.append((done, done - arrived))
        while done - self._recent[0][0] > RECENT_S:
            self._recent.popleft()

    @property
    def rate(self) -> float:
        """Frames a second, of late."""
        if len(self._recent) < 2:
            return 0.0
        return (len(self._recent) - 1) / max(self._recent[-1][0] - self._recent[0][0], 1e-9)

    @property
    def latency_ms(self) -> float:
        """Median of late, milliseconds."""
        return 1e3 * float(np.median([latency for _, latency in self._recent])) if self._recent else 0.0

    def summary(self, dropped: int) -> dict[str, Any]:
        """Of the whole session; None where there was no frame."""
        seconds = self.ended - (self.begun or 0.0) if self.latencies else 0.0
        median, late, most = (1e3 * np.quantile(self.latencies, (0.5, 0.95, 1))).tolist() if seconds else [None] * 3
        return {
            "frames": len(self.latencies),
            "tracked": self.tracked,
            "dropped": dropped,
            "seconds": round(seconds, 3),
            "rate": round(len(self.latencies) / seconds, 2) if seconds else None,
            "latency_ms": {"median": _tenth(median), "p95": _tenth(late), "largest": _tenth(most)},
        }


def run(
    capture: Capture,
    tracker: LiveTracker,
    outputs: Sequence[Callable[[LiveFrame], None]],
    meter: Meter,
    told: Callable[[LiveFrame], None] = lambda frame: None,
) -> None:
    """Track until the source ends or the process is asked to end.

    Each frame goes to the ``outputs``; after that it is done, and ``told`` is called.
    """
    for picture in capture:
        frame = tracker.step(capture.develop(picture))
        for output in outputs:
            output(frame)
        meter.add(picture.arrived, capture.clock.now(), not frame.lost)
        told(frame)


def _tenth(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
