"""Whom a run follows: the face of a given moment, or a person rather than a still picture of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import InputError
from nphm_track.faces.detection import same_face
from nphm_track.faces.follower import Choice, FaceFollower
from nphm_track.faces.landmarker import FaceLandmarker, FaceObservation
from nphm_track.tracking.clip import open_input
from nphm_track.tracking.observations import column
from nphm_track.tracking.observe import spread_rows
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.progress import Progress

PATIENCE_S = 1.0
"""Seconds after the moment of choice in which a face is waited for."""
STILL = 0.004
"""RMS change of a face's shape, of its spread, below which it is a picture of one.

A poster in a compressed clip had 0.0009, the stillest two seconds of the development clips 0.0107.
"""
STILL_S = 1.0
"""Seconds that a face must be seen to be called still."""
OTHERS_SOUGHT_IN = 12
"""Frames in which somebody else is looked for."""


def chosen_follower(landmarker: FaceLandmarker, clip: Path | str, options: TrackOptions) -> FaceFollower:
    """A follower that chooses as the options say. Raises InputError when nobody is there at the given moment."""
    follower = FaceFollower(landmarker, Choice(index=options.face, at=options.face_at))
    moment = options.face_time
    if moment is None:
        return follower
    around = options.model_copy(update={"start": moment, "end": moment + PATIENCE_S, "every": 1})
    with open_input(clip, around) as source:
        if source.info.duration is not None and moment >= source.info.duration:
            raise InputError(f"{clip}: no face at {moment:g} s: it lasts {source.info.duration:g} s")
        for frame in source:
            if follower.look_for(frame.image, frame.time):
                return follower
    raise InputError(f"{clip}: no face at {moment:g} s, or in the second after it")


def is_still(log: NDArray) -> bool:
    """Whether the face of a log is a picture: seen for a while, and its shape never changes."""
    rows = spread_rows(column(log, "seen"), 256)
    times = column(log, "time")[rows]
    if len(rows) < 5 or times[-1] - times[0] < STILL_S:
        return False
    points = log["landmarks"][rows][..., :2].astype(np.float64) @ [1, 1j]
    points -= points.mean(1, keepdims=True)
    points /= np.sqrt((np.abs(points) ** 2).mean(1, keepdims=True))
    turn = (points * points[:1].conj()).sum(1, keepdims=True)
    points *= turn.conj() / np.abs(turn)  # a camera held by hand moves the picture
    return bool(np.sqrt((np.abs(points - points.mean(0)) ** 2).mean()) < STILL)


def somebody_else(
    landmarker: FaceLandmarker, clip: Path | str, options: TrackOptions, log: NDArray, progress: Progress
) -> FaceFollower | None:
    """A follower of the largest face elsewhere than that of the log, when there is one."""
    rows = np.flatnonzero(column(log, "seen"))
    picture = _box(log["landmarks"][rows[len(rows) // 2]])
    every = options.every * max(1, len(log) // OTHERS_SOUGHT_IN)
    best: tuple[float, FaceObservation, NDArray[np.uint8], float] | None = None
    with open_input(clip, options.model_copy(update={"every": every})) as source:
        origin = source.origin
        for frame in source:
            for face in landmarker.find(frame.image):
                size = float(np.ptp(face.landmarks[:, :2], axis=0).max())
                if not same_face(face.box, picture[None]).any() and (best is None or size > best[0]):
                    best = size, face, frame.image, frame.time
    if best is None:
        return None
    _, face, image, time = best
    x, y = (float(value) for value in face.landmarks[:, :2].mean(0))
    follower = FaceFollower(landmarker, Choice(at=(x, y)))
    if not follower.look_for(image, time):
        return None
    progress.note(
        f"the first face is a still picture: the one at {x:.0f},{y:.0f} at {time - origin:.2f} s is followed "
        "(--face N@TIME or --face-at X,Y@TIME choose)"
    )
    return follower


def _box(landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([landmarks[:, :2].min(0), landmarks[:, :2].max(0)])
