"""Whom a run follows."""

from __future__ import annotations

import numpy as np
import pytest

from nphm_track.cli.options import _with_moment
from nphm_track.tracking.person_choice import STILL, is_still

DTYPE = np.dtype([("seen", "?"), ("time", "f8"), ("landmarks", "f4", (478, 3))])
SHAPE = np.random.default_rng(0).normal(0, 40, (478, 3))


def log_of(frames: list[np.ndarray], rate: float = 25) -> np.ndarray:
    log = np.zeros(len(frames), DTYPE)
    log["seen"], log["time"], log["landmarks"] = True, np.arange(len(frames)) / rate, frames
    return log


def held_by_hand(points: np.ndarray, index: int) -> np.ndarray:
    """Moved, turned and scaled in the picture, as a poster in a clip that is not on a tripod."""
    angle, scale = 0.02 * np.sin(index), 1 + 0.01 * np.cos(index)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return points @ turn.T + [300 + 5 * index, 200, 0]


def speaking(points: np.ndarray, index: int) -> np.ndarray:
    moved = points.copy()
    moved[:100, 1] += 4 * np.sin(index)  # a fifth of the points, by a tenth of the face's spread
    return moved


def test_a_picture_of_a_face_is_still_also_in_a_hand_held_clip() -> None:
    noise = np.random.default_rng(1).normal(0, 0.04, (50, 478, 3))
    assert is_still(log_of([held_by_hand(SHAPE + n, i) for i, n in enumerate(noise)]))
    assert not is_still(log_of([held_by_hand(speaking(SHAPE, i), i) for i in range(50)]))


def test_what_was_seen_for_a_moment_only_is_not_called_still() -> None:
    assert not is_still(log_of([SHAPE] * 20))
    assert is_still(log_of([SHAPE] * 30))
    assert STILL < 0.01


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ({"face": "1@2.5"}, {"face": 1, "face_time": 2.5}),
        ({"face": "1"}, {"face": 1}),
        ({"face_at": "320,180@0"}, {"face_at": (320, 180), "face_time": 0}),
        ({"face": None, "face_at": None}, {"face": None, "face_at": None}),
    ],
)
def test_faces_are_chosen_by_moment(given, parsed) -> None:
    assert _with_moment(given) == parsed
