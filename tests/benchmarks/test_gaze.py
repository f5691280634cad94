"""The line of gaze over the direction of the camera."""

from __future__ import annotations

import numpy as np

from benchmarks.gaze import robust_line


def test_glances_aside_do_not_tilt_the_line() -> None:
    rng = np.random.default_rng(0)
    x = np.linspace(-15, 15, 200)
    y = 0.8 * x - 2 + rng.normal(0, 0.5, 200)
    y[50:60] += 25
    slope, offset = robust_line(x, y)
    assert abs(slope - 0.8) < 0.03 and abs(offset + 2) < 0.3
