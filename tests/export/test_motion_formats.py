"""Motion of the head for Nuke and BVH readers, by the rules of programs that read it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nphm_track.export.chan import frame_numbers
from nphm_track.export.formats import export
from nphm_track.export.options import ExportOptions
from nphm_track.tracking.records import Status

from .conftest import EVERY, LOST, RATE, SIZE, N, make_track

UNITS = {"m": 1.0, "cm": 100.0}
TO_UP = {"y": np.eye(3), "z": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])}


def turn(axis: str, degrees: float) -> np.ndarray:
    """[3, 3] about an axis, by the book."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return {
        "X": np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        "Y": np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        "Z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }[axis]


def read_chan(path: Path) -> dict[int, tuple[np.ndarray, np.ndarray, list[float]]]:
    """Nuke's Axis and Camera in rotation order ZXY (Z first), Blender's add-on likewise: whole frame, numbers, no
    comments. Frame to rotation, translation and what follows."""
    out = {}
    for line in path.read_text().splitlines():
        frame, *numbers = line.split()
        tx, ty, tz, rx, ry, rz, *more = map(float, numbers)
        out[int(frame)] = turn("Y", ry) @ turn("X", rx) @ turn("Z", rz), np.array([tx, ty, tz]), more
    return out


def in_pixels(points: np.ndarray, focal: tuple[float, float], track: Any) -> np.ndarray:
    """Of a camera that looks along -z, y up; the principal point is the track's, which channel files do not know."""
    x, y = points[:, 0] / -points[:, 2], points[:, 1] / -points[:, 2]
    return np.c_[focal[0] * x + track.K[0, 2], -focal[1] * y + track.K[1, 2]]


@pytest.mark.parametrize("unit, up", [("m", "y"), ("cm", "z")])
def test_nuke_sees_head_and_camera_where_they_are(made, tmp_path: Path, unit: str, up: str) -> None:
    track, options = made.run.track, ExportOptions(unit, up)
    out = export(made.run, "chan", tmp_path / "out", options)
    heads, cameras = read_chan(out / "head.chan"), read_chan(out / "camera.chan")
    assert list(heads) == list(cameras) == [EVERY * row + 1 for row in made.pixels]
    for (row, pixels), head, camera in zip(made.pixels.items(), heads.values(), cameras.values(), strict=True):
        points = UNITS[unit] * made.run.mesh(row)[0] @ TO_UP[up].T
        (R, t, more), (R_camera, centre, (field,)) = head, camera
        focal = SIZE[1] / 2 / np.tan(np.radians(field) / 2)  # as Nuke has it, filmback like the picture
        assert not more and focal == pytest.approx(track.K[1, 1])
        focals = focal * track.K[0, 0] / track.K[1, 1], focal
        before_camera = (points @ R.T + t) @ TO_UP[up]  # of a camera at the origin that is level
        np.testing.assert_allclose(in_pixels(before_camera, focals, track), pixels, atol=1e-3)
        np.testing.assert_allclose(in_pixels((points - centre) @ R_camera, focals, track), pixels, atol=1e-3)
    angles = np.array([[float(word) for word in line.split()[4:7]] for line in (out / "head.chan").open()])
    assert np.abs(np.diff(angles, axis=0)).max() < 90


def test_frames_of_a_picture_sequence_keep_their_numbers() -> None:
    track = make_track((0, 0, 0, 0, 0))
    numbered = np.array([f"anna_v2.{1001 + 2 * k}.exr" for k in range(N)])
    np.testing.assert_array_equal(frame_numbers(replace(track, image=numbered)), 1001 + 2 * np.arange(N))
    for names in (numbered[::-1], np.array(["a", *numbered[1:]])):
        np.testing.assert_array_equal(frame_numbers(replace(track, image=names)), track.frame + 1)


def read_bvh(path: Path) -> tuple[float, np.ndarray, np.ndarray]:
    """As Blender and MotionBuilder do: frame time; rotations [F, 3, 3] in the channels' order; positions [F, 3]."""
    words = path.read_text().split()
    assert words[0] == "HIERARCHY" and words[1] == "ROOT"
    count = int(words[words.index("CHANNELS") + 1])
    channels = words[words.index("CHANNELS") + 2 :][:count]
    frames = int(words[words.index("Frames:") + 1])
    at = words.index("Time:")
    motion = np.array(words[at + 2 :], float).reshape(frames, count)
    R = np.tile(np.eye(3), (frames, 1, 1))
    for channel, column in zip(channels, motion.T, strict=True):
        if channel.endswith("rotation"):
            R = R @ np.stack([turn(channel[0], angle) for angle in column])
    return float(words[at + 1]), R, motion[:, [channels.index(f"{axis}position") for axis in "XYZ"]]


def test_a_bvh_reader_sees_the_head_move(made, tmp_path: Path) -> None:
    track, options = made.run.track, ExportOptions("cm", "z")
    step, R, t = read_bvh(export(made.run, "bvh", tmp_path / "head.bvh", options))
    assert step == pytest.approx(1 / RATE) and len(R) == EVERY * (N - 1) + 1
    want_R, want_t = options.head_pose(track.R, track.t)
    for row in range(N):
        seen = row
        while track.status[seen] == Status.LOST:
            seen -= 1
        np.testing.assert_allclose(R[EVERY * row], want_R[seen], atol=1e-6)
        np.testing.assert_allclose(t[EVERY * row], want_t[seen], atol=1e-5)
    between = Rotation.from_matrix(want_R[0]).inv() * Rotation.from_matrix(want_R[1])
    halfway = Rotation.from_matrix(want_R[0]) * Rotation.from_rotvec(between.as_rotvec() / 2)
    np.testing.assert_allclose(R[1], halfway.as_matrix(), atol=1e-6)
    assert LOST == (3, 6)  # one in the middle, one at the end


def test_a_bvh_keeps_the_clock_of_a_variable_rate(made, tmp_path: Path) -> None:
    track = made.run.track
    track.time[:] = np.array([0, 1, 2, 5, 6, 7, 10]) / RATE
    _, _, t = read_bvh(export(made.run, "bvh", tmp_path / "head.bvh"))
    want = ExportOptions().head_pose(track.R, track.t)[1]
    assert len(t) == 11
    np.testing.assert_allclose(t[[0, 1, 2, 6, 7]], want[[0, 1, 2, 4, 5]], atol=1e-6)
    np.testing.assert_allclose(t[3:6], want[[2, 2, 2]], atol=1e-6)  # the fourth is lost
    np.testing.assert_allclose(t[8:], want[[5, 5, 5]], atol=1e-6)
