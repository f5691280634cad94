"""What a finished run keeps of its observations: it can be refined later without looking for the face again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import InputError
from nphm_track.files.reading import Arrays, reading
from nphm_track.tracking.fit import IDENTITY_FRAMES
from nphm_track.tracking.observations import column
from nphm_track.tracking.observe import spread_rows
from nphm_track.tracking.records import Track, save_arrays

ALL_FRAMES = ("shot", "confidence", "z_ex")
"""Fields of the log that are kept whole."""
VOTES = ("z_id", "log_variance")
"""Fields of which the frames are kept that have a say in the identity."""


def keep_observations(path: Path, log: NDArray[Any]) -> None:
    """Write what the log of a clip (``tracking.observe``) has and its track has not: 2.2 kB a frame, and 2.4 kB for
    each of the frames that have a say in the identity. ``depth`` [T, 478] is the landmarks' third coordinate.
    """
    voters = spread_rows(column(log, "seen"), IDENTITY_FRAMES)
    names = log.dtype.names or ()
    arrays = {name: log[name] for name in ALL_FRAMES if name in names}
    arrays |= {name: np.array(log[name][voters]) for name in VOTES if name in names}
    save_arrays(path, {"depth": log["landmarks"][..., 2], **arrays})


def kept_observations(path: Path, track: Path) -> NDArray[Any] | None:
    """The log of a clip from what was kept of it and from its track; None when one of them is missing or damaged.

    It lacks the follower's state, and of the frames without a say in the identity their votes.
    """
    if not (path.is_file() and track.is_file()):
        return None
    try:
        with reading(path, "kept observations"), Arrays(path) as file:
            return _log(
                Track.load(track), {name: file[name] for name in ("depth", *ALL_FRAMES, *VOTES) if name in file}
            )
    except InputError:
        return None


def _log(track: Track, kept: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """Records as of ``observation_dtype``. Raises ValueError or KeyError when track and ``kept`` do not go together."""
    own: dict[str, NDArray[Any]] = {"frame": track.frame, "time": track.time, "blendshapes": track.blendshapes}
    own |= {"seen": np.isfinite(track.landmarks[:, 0, 0])}
    own |= {name: kept[name] for name in ALL_FRAMES if name in kept}
    fields: list[Any] = [(name, array.dtype, array.shape[1:]) for name, array in own.items()]
    fields += [(name, kept[name].dtype, kept[name].shape[1:]) for name in VOTES if name in kept]
    log = np.zeros(len(track), [*fields, ("landmarks", "f4", (*track.landmarks.shape[1:2], 3))])
    for name, array in own.items():
        if len(array) != len(track):
            raise ValueError(f"{name} has {len(array)} rows, the track {len(track)}")
        log[name] = array
    log["landmarks"][..., :2], log["landmarks"][..., 2] = track.landmarks, kept["depth"]
    voters = spread_rows(log["seen"], IDENTITY_FRAMES)
    for name in VOTES:
        if name in kept:
            log[name][voters] = kept[name]
    return log
