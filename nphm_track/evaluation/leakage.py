"""Pose leakage: does the head move where only the face does?

Between successive frames the steps of the head's pose are regressed on the steps of ARKit's weights, which follow the
picture. A blink, say, should turn or shift no head: what a full one does is a slope here, and R2 the share of the
pose's steps that all these weights explain together. People nod while they talk, so that a little is true; of two
methods on one clip the one that says less leaks less.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nphm_track.conventions import BLENDSHAPE_NAMES
from nphm_track.errors import InputError
from nphm_track.evaluation.results import table
from nphm_track.tracking.records import Status, Track

CAUSES = {
    "blink": ("eyeBlinkLeft", "eyeBlinkRight"),
    "brows up": ("browInnerUp", "browOuterUpLeft", "browOuterUpRight"),
    "jaw open": ("jawOpen",),
    "smile": ("mouthSmileLeft", "mouthSmileRight"),
    "pucker": ("mouthPucker",),
}
EFFECTS = ("pitch_deg", "yaw_deg", "roll_deg", "x_mm", "y_mm", "z_mm")
FEWEST = 20
"""Steps that a regression needs."""
STILL = 1e-3
"""Degrees or millimetres a frame: poses that move less are still."""
MOVED = 0.02
"""Spread of the steps of a weight below which nothing can be said of it."""


def measure(track: Track) -> dict[str, Any]:
    """Slopes of each effect for a full weight of each cause, and R2 of each effect.

    Rotations are about the head's own axes, shifts along the camera's. Raises InputError when too few successive frames
    are tracked.
    """
    steady = (track.status[1:] == Status.TRACKED) & (track.status[:-1] == Status.TRACKED)
    gaps = np.diff(track.frame)
    steady &= gaps == min(gaps, default=0)
    weights = np.stack(
        [track.blendshapes[:, [BLENDSHAPE_NAMES.index(n) for n in own]].mean(1) for own in CAUSES.values()], 1
    )
    causes, effects = np.diff(weights, axis=0), _steps(track)
    steady &= np.isfinite(causes).all(1) & np.isfinite(effects).all(1)
    causes, effects = causes[steady].astype(np.float64), effects[steady]
    if len(causes) < FEWEST:
        raise InputError(f"{len(causes)} successive frames are tracked; pose leakage needs {FEWEST}")
    causes, effects = causes - causes.mean(0), effects - effects.mean(0)
    moved = causes.std(0) > MOVED
    slopes = np.full((len(CAUSES), len(EFFECTS)), np.nan)
    explained = np.zeros(len(EFFECTS))
    if moved.any():
        found, *_ = np.linalg.lstsq(causes[:, moved], effects, rcond=None)
        slopes[moved] = found
        left = ((effects - causes[:, moved] @ found) ** 2).sum(0)
        explained = np.where(effects.std(0) > STILL, 1 - left / np.maximum((effects**2).sum(0), 1e-30), 0)
    return {
        "steps": len(causes),
        "per_full_weight": {
            cause: dict(zip(EFFECTS, map(float, row), strict=True)) for cause, row in zip(CAUSES, slopes, strict=True)
        },
        "r2": dict(zip(EFFECTS, map(float, explained), strict=True)),
    }


def _steps(track: Track) -> NDArray[np.float64]:
    """[T - 1, 6] steps of the pose, as ``EFFECTS`` names them."""
    there: NDArray[np.bool_] = np.asarray(np.isfinite(track.R).all((1, 2)))
    R = np.where(there[:, None, None], track.R, np.eye(3))
    turned = Rotation.from_matrix(R[:-1].swapaxes(1, 2) @ R[1:]).as_rotvec(degrees=True)
    turned[~(there[1:] & there[:-1])] = np.nan
    return np.c_[turned, 1000 * np.diff(track.t, axis=0)]


def leakage_table(facts: dict[str, Any]) -> str:
    """The slopes and R2 as a table."""
    rows = [[f"a full {cause}", *slopes.values()] for cause, slopes in facts["per_full_weight"].items()]
    return table(["", *(name.replace("_", ", ") for name in EFFECTS)], [*rows, ["R2 of all", *facts["r2"].values()]])
