"""Whether a frame's head fits the face it was fitted to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nphm_track.tracking.observations import pieces

MISFIT = 0.14
"""Landmark error, of the spread of the face's landmarks, beyond which a head does not fit.

Nine of the ten development clips stay below 0.052; the dark one with fast turns reaches 0.125, much of it from the
smoothing. A face that stands on its head, seen as an upright one, has 0.083 to 0.18. The distance between the eyes
would not do as the measure: it vanishes in profile.
"""


def does_not_fit(landmarks: NDArray[np.float32], error_px: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Frames [T] whose landmark error is beyond ``MISFIT``.

    Args:
        landmarks: [T, 478, 2 or 3] observed, pixels; NaN where no face was seen. Read in pieces.
        error_px: [T] mean distance of the head's landmarks to them, pixels; NaN likewise.
    """
    spreads = [_spread(piece[..., :2]) for piece in pieces(landmarks)]
    with np.errstate(invalid="ignore"):
        return np.asarray(error_px > MISFIT * np.concatenate(spreads))


def _spread(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Root mean square distance [T] of points [T, N, 2] from their mean."""
    centred = points - points.mean(1, keepdims=True)
    return np.asarray(np.sqrt(np.square(centred).sum(-1).mean(-1)))
