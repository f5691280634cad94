"""Gaze from iris points that are projected from eyes of known direction."""

from __future__ import annotations

import numpy as np
import pytest

from nphm_track.conventions import IBUG68_FROM_478
from nphm_track.heads.rig import eye_turn, looking_along
from nphm_track.heads.wrap import Eyeball
from nphm_track.tracking.gaze import CORNERS, IRIS, LEVEL, LID_PAIRS, LIMBUS, gaze_of
from nphm_track.tracking.records import Status, Track

EYES = tuple(
    Eyeball(np.array([x, 0.036, 0.02], np.float32), 0.0158, np.array([0.118 * s, 0.016, 0.993], np.float32))
    for x, s in ((0.031, 1), (-0.031, -1))
)
K = np.array([[1200.0, 0, 640], [0, 1200, 360], [0, 0, 1]])
R = np.diag([1.0, -1, -1])
PLACE = np.array([0.02, 0.03, 0.8])


def towards(yaw: float, pitch: float) -> np.ndarray:
    a, b = np.deg2rad([yaw, pitch])
    return np.array([np.sin(a) * np.cos(b), np.sin(b), np.cos(a) * np.cos(b)])


def clip(gaze: np.ndarray, turn: np.ndarray = R, opening: float = 0.008, shift: tuple[float, float] = (0, 0)) -> Track:
    """A track whose eyes look along gaze [T, 2, 3]; ``shift`` (pixels) moves what is seen beside what is fitted."""
    n = len(gaze)

    def pixels(points: np.ndarray) -> np.ndarray:
        camera = points @ turn.T + PLACE
        return (camera[..., :2] / camera[..., 2:]) @ K[:2, :2].T + K[:2, 2]

    landmarks, fit = np.full((n, 478, 2), np.nan, np.float32), np.full((n, 68, 2), np.nan, np.float32)
    for i, eye in enumerate(EYES):
        front = eye.centre + np.array([0, 0, eye.radius])
        ends = pixels(front + np.array([[-0.014, 0, -0.004], [0.014, 0, -0.004]]))
        fit[:, list(CORNERS[i])] = ends
        landmarks[:, np.asarray(IBUG68_FROM_478)[list(CORNERS[i])]] = ends + shift
        for upper, lower in LID_PAIRS[i]:
            landmarks[:, upper] = pixels(front + np.array([0, opening / 2, 0])) + shift
            landmarks[:, lower] = pixels(front - np.array([0, opening / 2, 0])) + shift
        for t in range(n):
            axis = eye_turn(gaze[t, i]) @ looking_along(towards(0, np.rad2deg(LEVEL))) @ eye.axis
            iris = eye.centre + eye.radius * np.cos(LIMBUS) * axis
            landmarks[t, slice(*IRIS[i])] = pixels(iris) + shift
    zeros = np.zeros(n, np.float32)
    return Track(
        frame=np.arange(n), time=np.arange(n) / 30, status=np.zeros(n, np.uint8), confidence=zeros + 1,
        z_id=np.zeros(3, np.float32), z_ex=np.zeros((n, 4), np.float32), R=np.tile(turn, (n, 1, 1)),
        t=np.tile(PLACE, (n, 1)), K=K, image_size=np.array([1280, 720]), landmarks=landmarks, landmarks_fit=fit,
        blendshapes=np.zeros((n, 52), np.float32), landmark_error_px=zeros, normal_error_deg=zeros,
    )  # fmt: skip


def degrees_off(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((found * true).sum(-1), -1, 1)))


@pytest.mark.parametrize("yaw, pitch", [(0, 0), (20, 0), (-25, 10), (8, -18)])
@pytest.mark.parametrize("head_yaw", [0, 25])
def test_directions_are_found_again(yaw: float, pitch: float, head_yaw: float) -> None:
    gaze = np.tile(towards(yaw, pitch), (3, 2, 1))
    turned = R @ looking_along(towards(head_yaw, 0))
    assert degrees_off(gaze_of(EYES, clip(gaze, turned)), gaze).max() < 1.0


def test_a_head_fitted_a_little_aside_does_not_turn_the_eyes() -> None:
    gaze = np.tile(towards(10, 5), (3, 2, 1))
    assert degrees_off(gaze_of(EYES, clip(gaze, shift=(4, -3))), gaze).max() < 1.0


def test_closed_eyes_look_where_they_did_before_and_after() -> None:
    gaze = np.tile(towards(15, 0), (9, 2, 1))
    track = clip(gaze)
    shut = clip(np.tile(towards(-30, -20), (9, 2, 1)), opening=0.0005)
    track.landmarks[3:6] = shut.landmarks[3:6]
    assert degrees_off(gaze_of(EYES, track), gaze).max() < 1.0


def test_lost_frames_have_no_direction_and_unseen_eyes_look_ahead() -> None:
    gaze = np.tile(towards(15, 0), (4, 2, 1))
    track = clip(gaze)
    track.status[2] = Status.LOST
    assert np.isnan(gaze_of(EYES, track)[2]).all() and np.isfinite(gaze_of(EYES, track)[[0, 1, 3]]).all()
    blind = clip(gaze, opening=0.0)
    np.testing.assert_array_equal(gaze_of(EYES, blind), np.tile([0, 0, 1], (4, 2, 1)))


def test_eyes_turn_at_a_cut_at_once_and_keep_still_before_they_are_first_seen() -> None:
    gaze = np.concatenate([np.tile(towards(15, 0), (6, 2, 1)), np.tile(towards(-15, 0), (6, 2, 1))])
    track = clip(gaze)
    track.landmarks[:2] = track.landmarks[6:8] = np.nan
    shots = np.repeat([0, 1], 6)
    assert degrees_off(gaze_of(EYES, track, shots=shots), gaze).max() < 1.0
    assert degrees_off(gaze_of(EYES, track), gaze).max() > 5


def test_jitter_is_smoothed_and_a_saccade_keeps_its_size() -> None:
    rng = np.random.default_rng(0)
    true = np.stack([np.stack([towards(-12 if k < 30 else 12, 0)] * 2) for k in range(60)])
    track = clip(true)
    for iris in IRIS:
        track.landmarks[:, slice(*iris)] += rng.normal(0, 0.3, (60, 1, 2)).astype(np.float32)
    off = degrees_off(gaze_of(EYES, track), true)
    assert off[:27].mean() < 0.8 * degrees_off(gaze_of(EYES, track, smooth=0.0), true)[:27].mean()
    assert off[[24, 36]].max() < 3
