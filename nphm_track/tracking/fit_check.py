"""Whether a frame's head fits the face it was fitted to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nphm_track.tracking.observations import pieces

MISFIT = 0.08
"""Landmark error, of the spread of the face's landmarks, beyond which a head does not fit, before smoothing.

Of the 2,650 frames with a face of the ten development clips none is lost; they reach 0.053 (``python -m benchmarks
fit-check``), and other people's good frames need room. A face that stands on its head, seen as an upright one, has 0.06
to 0.08: the detector has to turn it. The distance between the eyes would not do as the measure: it vanishes in profile.

The maps of a refinement, which fits heads to them, tell no more: where a picture is squeezed to 0.7 normals are 4.4 to
5.9 degrees off and points 1.8 to 3.0 mm, where it is as it was 3.6 to 6.0 and 1.1 to 2.7 (``--maps``, three clips).
"""
WRITTEN_MISFIT = 0.14
"""The same of the head that is written, which smoothing may keep from following a fast turn (0.122 in the darkest of
the clips). It is all that judges a single picture: a lens very near, or a picture that was stretched, is no reason to
write nothing."""


def does_not_fit(
    landmarks: NDArray[np.float32], written_px: NDArray[np.float32], unsmoothed_px: NDArray[np.float32] | None
) -> NDArray[np.bool_]:
    """Frames [T] whose landmark error is beyond what clean footage has.

    Args:
        landmarks: [T, 478, 2 or 3] observed, pixels; NaN where no face was seen. Read in pieces.
        written_px: [T] mean distance of the written head's landmarks to them, pixels; NaN likewise.
        unsmoothed_px: [T] the same before the poses were smoothed; None for heads whose ``MISFIT`` nobody has measured:
            those of other models than the released one.
    """
    spreads = np.concatenate([_spread(piece[..., :2]) for piece in pieces(landmarks)])
    with np.errstate(invalid="ignore"):
        misfit = written_px / spreads > WRITTEN_MISFIT
        if unsmoothed_px is not None and len(spreads) > 1:
            misfit |= unsmoothed_px / spreads > MISFIT
    return np.asarray(misfit)


def _spread(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Root mean square distance [T] of points [T, N, 2] from their mean."""
    centred = points - points.mean(1, keepdims=True)
    return np.asarray(np.sqrt(np.square(centred).sum(-1).mean(-1)))
