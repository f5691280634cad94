"""Where the eyes look, frame by frame: from the iris points, on the eyeballs of the person's own head.

Each eye's iris centre is seen along a ray, which meets the eyeball where the iris is. Fitted lids may lie a pixel or
two beside the seen ones, which would turn the eye by degrees, so the iris is measured from the seen corners of its eye.
What the eyeball of the template turns by is made a direction of gaze as ``heads.rig`` does the reverse.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.conventions import IBUG68_FROM_478
from nphm_track.heads.rig import EYE_TURN
from nphm_track.heads.wrap import Eyeball
from nphm_track.tracking.records import Status, Track
from nphm_track.tracking.smoothing import smooth_codes

Array = NDArray[np.float64]
IRIS = ((473, 478), (468, 473))
"""First and last but one of the iris points of the left eye and of the right."""
CORNERS = ((42, 45), (36, 39))
"""iBUG-68 points of the corners of the left eye and of the right."""
LID_PAIRS = (((386, 374), (385, 380), (387, 373)), ((159, 145), (158, 153), (160, 144)))
"""Points of the upper lid and below them of the lower, of the left eye and of the right."""
LIMBUS = np.deg2rad(22.0)
"""Angle at the eyeball's centre between its axis and the rim of the iris, on which the iris points lie."""
OPEN = 0.09
"""Opening of the lids, of the distance between the eye's corners, below which the iris is not seen well enough."""
LEVEL = np.deg2rad(-5.5)
"""Turn of the template's eyeball up that the irises of people who look straight ahead stand for: between the lids they
lie lower than the template's at rest (``benchmarks gaze`` on clips of people who look into the camera)."""
FURTHEST = np.deg2rad(35.0)
"""No eyeball of the template turns further."""
MOST = 0.9
"""Largest sine of a gaze off straight ahead."""
VERGENCE_KEPT = 0.5
"""Share of the difference between both eyes' directions that is kept: most of it is noise."""


def gaze_of(
    eyes: tuple[Eyeball, Eyeball], track: Track, smooth: float = 1.0, shots: NDArray[np.integer] | None = None
) -> NDArray[np.float32]:
    """Unit vectors [T, 2, 3] in head space along which the left and the right eye look; NaN in lost frames.

    +z is straight ahead. Frames with closed eyes take the direction of those around them in their shot (``shots`` [T];
    left out, all is one), and a shot in which the eyes are never seen looks straight ahead. ``smooth`` is the strength
    of the zero-lag smoothing over time.
    """
    shots = np.zeros(len(track), np.int64) if shots is None else np.asarray(shots)
    angles = eye_angles(eyes, track).reshape(len(track), 4)
    seen = np.asarray(np.isfinite(angles).all(1))
    present = track.status != Status.LOST
    out = np.full((len(track), 2, 3), np.nan, np.float32)
    if not seen.any():
        out[present] = (0, 0, 1)
        return out
    angles = smooth_codes(angles, track.time, seen.astype(np.float64), smooth, shots, max_gap=np.inf)
    for shot in np.unique(shots[seen]):  # smoothing ends with the first and the last frame that shows the eyes
        rows = np.flatnonzero(shots == shot)
        first, last = rows[seen[rows]][[0, -1]]
        angles[rows] = angles[np.clip(rows, first, last)]
    out[present] = directions(angles.reshape(-1, 2, 2))[present]
    return out


def directions(angles: Array) -> NDArray[np.float32]:
    """Unit vectors [..., 3] in head space of gazes for which eyeballs turn by ``angles`` [..., 2] to +x and to +y."""
    yaw, pitch = np.moveaxis(angles, -1, 0)
    across = np.stack([np.sin(yaw) * np.cos(pitch), np.sin(pitch)], -1) / EYE_TURN
    across *= np.minimum(1, MOST / np.maximum(np.linalg.norm(across, axis=-1, keepdims=True), 1e-9))
    out = np.concatenate([across, np.sqrt(1 - (across**2).sum(-1, keepdims=True))], -1)
    return out.astype(np.float32)


def eye_angles(eyes: tuple[Eyeball, Eyeball], track: Track) -> Array:
    """Turns [T, 2, 2] of the left and the right eyeball from rest, to +x and to +y, radians, frame by frame.

    NaN where the irises of both eyes are not seen well.
    """
    angles = np.stack([_angles(eye, i, track) for i, eye in enumerate(eyes)], 1)
    mean = angles.mean(1, keepdims=True)
    return mean + VERGENCE_KEPT * (angles - mean)


def _angles(eye: Eyeball, side: int, track: Track) -> Array:
    """Turn [T, 2] of one eye from rest, to +x and to +y, radians; NaN where its iris is not seen."""
    corners = list(CORNERS[side])
    seen_corners = track.landmarks[:, np.asarray(IBUG68_FROM_478)[corners]].astype(np.float64)
    shift = (seen_corners - track.landmarks_fit[:, corners]).mean(1)
    iris = track.landmarks[:, slice(*IRIS[side])].astype(np.float64).mean(1) - shift
    width = np.linalg.norm(seen_corners[:, 0] - seen_corners[:, 1], axis=-1)
    upper, lower = (track.landmarks[:, [pair[k] for pair in LID_PAIRS[side]]] for k in (0, 1))
    opening = np.linalg.norm(upper - lower, axis=-1).mean(1) / np.maximum(width, 1e-6)

    camera = Intrinsics(track.K, (int(track.image_size[0]), int(track.image_size[1])), track.distortion)
    direction = np.einsum("tji,tj->ti", track.R, camera.rays(iris))
    start = -np.einsum("tji,tj->ti", track.R, track.t) - eye.centre
    # |start + s direction| = distance of the iris from the centre; of a ray that passes by, its nearest point counts
    radius = eye.radius * np.cos(LIMBUS)
    along = (start * direction).sum(-1)
    missing = radius**2 - (start**2).sum(-1) + along**2
    place = start + (-along - np.sqrt(np.maximum(missing, 0)))[:, None] * direction
    place /= np.linalg.norm(place, axis=-1, keepdims=True)

    turned = np.stack([np.arctan2(place[:, 0], place[:, 2]), np.arcsin(np.clip(place[:, 1], -1, 1))], -1)
    rest = np.array([np.arctan2(eye.axis[0], eye.axis[2]), np.arcsin(eye.axis[1]) + LEVEL])
    angles = turned - rest
    unseen = ~(opening > OPEN) | (np.abs(angles) > FURTHEST).any(-1) | (track.status != Status.TRACKED)
    return np.where(unseen[:, None], np.nan, angles)
