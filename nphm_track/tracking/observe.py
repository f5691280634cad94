"""First pass over a clip: follow the face, keep what was seen of it in a log that survives a kill."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nphm_track.faces.follower import FaceFollower
from nphm_track.tracking.observations import ObservationLog
from nphm_track.tracking.progress import Progress
from nphm_track.video.reader import FrameSource


def observation_dtype(state_size: int) -> np.dtype[Any]:
    """One frame: its place in the clip, what was seen (NaN when lost), and the follower's state, to go on from."""
    return np.dtype(
        [
            ("frame", "i8"),
            ("time", "f8"),
            ("seen", "?"),
            ("shot", "i4"),
            ("confidence", "f4"),
            ("landmarks", "f4", (478, 3)),
            ("blendshapes", "f4", (52,)),
            ("state", "f4", (state_size,)),
        ]
    )


def observe_clip(source: FrameSource, follower: FaceFollower, log: ObservationLog, progress: Progress) -> None:
    """Append a record for every frame that the log does not have yet."""
    done = len(log)
    shot = 0
    if done:
        last = log.read()[-1]
        follower.restore(last["state"])
        shot = int(last["shot"])
        progress.advance(done)
    record = np.zeros(1, log.dtype)
    for frame in source.frames(done):
        result = follower.step(frame.image, frame.time)
        shot += result.cut
        seen = result.observation
        record["frame"], record["time"], record["shot"] = frame.index, frame.time, shot
        record["seen"], record["confidence"] = seen is not None, result.confidence
        record["landmarks"] = np.nan if seen is None else seen.landmarks
        record["blendshapes"] = np.nan if seen is None else seen.blendshapes
        record["state"] = follower.state()
        log.append(record)
        progress.advance()


def spread_rows(seen: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """At most ``count`` rows of those that are true, evenly spread."""
    rows = np.flatnonzero(seen)
    return rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]
