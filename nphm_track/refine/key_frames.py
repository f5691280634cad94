"""Which frames tell most about who a person is: those seen surely, not blurred, and turned differently."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nphm_track.refine.clip import PersonViews

SURE = 0.7
"""Least confidence of a key frame, as a share of what is usual at best (the 0.9 quantile of the frames seen)."""
STILL = 0.7
"""Share of the sure frames that count as still: a moving head is blurred."""


def sure_and_still(
    confidence: NDArray[np.floating], speed: NDArray[np.floating]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which frames are sure, and which are among the slowest of these, [T] each.

    Args:
        confidence: [T] 0..1, 0 where the face was not seen; it was seen somewhere.
        speed: [T] of the face, in any unit.
    """
    seen = confidence > 0
    sure = confidence >= SURE * (np.quantile(confidence[seen], 0.9) if seen.any() else 0)
    return sure, speed <= np.quantile(speed[sure], STILL)


def key_frames(clip: PersonViews, count: int) -> NDArray[np.int64]:
    """At most ``count`` rows for the identity: sure, still where there are more than enough, and turned as differently
    as the clip has them."""
    R, t = clip.start.R.cpu().numpy(), clip.start.t.cpu().numpy()
    view = np.concatenate([R[:, :, 2], t[:, 2:] / np.median(t[:, 2])], 1)
    speed = np.zeros(len(clip))
    if len(clip) > 2:
        speed = np.linalg.norm(np.gradient(view, clip.times, axis=0), axis=1)
    sure, still = sure_and_still(clip.confidence, speed)
    usable = np.flatnonzero(sure & still if sure.sum() > count else sure)

    # Farthest first, from the most frontal view on.
    nearest = np.full(len(usable), np.inf)
    chosen = [int(np.argmax(R[usable, 2, 2] * -1))]
    while len(chosen) < min(count, len(usable)):
        nearest = np.minimum(nearest, np.linalg.norm(view[usable] - view[usable[chosen[-1]]], axis=1))
        nearest[chosen] = -1
        chosen.append(int(np.argmax(nearest)))
    return np.sort(usable[chosen])
