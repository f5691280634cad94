"""The One Euro filter (Casiez, Roussel and Vogel 2012): a low-pass of the past alone, which opens with speed.

Slow motion is smoothed, where jitter is seen; fast motion passes, where lag is seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """Of a filter.

    Attributes:
        cutoff: Hz, of what stands still.
        opening: Hz more for a unit of speed (a unit of the values a second).
        speed_cutoff: Hz, of the speed itself.
        together: one speed, its norm, opens all values alike.
    """

    cutoff: float
    opening: float
    speed_cutoff: float
    together: bool = False


class OneEuro:
    """Filters vectors [D] that come one by one. ``strength`` 0 leaves them as they are, 1 is the default."""

    def __init__(self, settings: Settings, strength: float = 1.0) -> None:
        self.settings, self.strength = settings, strength
        self.reset()

    def reset(self) -> None:
        """Forget the past: the next value passes as it is."""
        self._value: Array | None = None
        self._speed: Array = np.zeros(0)
        self._time = 0.0

    def __call__(self, value: NDArray[np.floating], time: float) -> Array:
        """The value [D] of a moment (seconds, after that of the last call), filtered."""
        now = np.asarray(value, np.float64)
        if self._value is None or time <= self._time or self.strength == 0:
            self._value, self._speed, self._time = now, np.zeros_like(now), time
            return now
        s, step = self.settings, time - self._time
        self._speed = self._speed + _share(s.speed_cutoff, step) * ((now - self._value) / step - self._speed)
        speed: float | Array = float(np.linalg.norm(self._speed)) if s.together else np.abs(self._speed)
        share = _share((s.cutoff + s.opening * speed) / self.strength, step)
        self._value, self._time = self._value + share * (now - self._value), time
        return self._value


def _share(cutoff: float | Array, step: float) -> float | Array:
    """How much of a new value counts in a low-pass of this cutoff (Hz) after ``step`` seconds."""
    return 1 - 1 / (1 + 2 * np.pi * cutoff * step)
