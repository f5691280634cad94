from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nphm_track.errors import InputError
from nphm_track.evaluation.following import distances, follow, read_referee

FRAMES = 40


def face(mouth: np.ndarray, blink: np.ndarray) -> np.ndarray:
    """iBUG-68 points [T, 68, 2] of a drawn face, 100 px between the outer eye corners."""
    p = np.zeros((len(mouth), 68, 2))
    p[:, 27:36] = np.stack([np.full(9, 50.0), np.linspace(0, 45, 9)], -1)
    p[:, [36, 39, 42, 45]] = (0, 0), (30, 0), (70, 0), (100, 0)
    p[:, [37, 38]], p[:, [41, 40]] = ((10, -5), (20, -5)), ((10, 5), (20, 5))
    p[:, [43, 44]], p[:, [47, 46]] = ((80, -5), (90, -5)), ((80, 5), (90, 5))
    p[:, [37, 38], 1] += 10 * blink[:, None]
    p[:, 17:22], p[:, 22:27] = (15, -15), (85, -15)
    p[:, 48], p[:, 54] = (25, 70), (75, 70)
    p[:, [61, 62, 63]], p[:, [67, 66, 65]] = (50, 70), (50, 70)
    p[:, [67, 66, 65], 1] += mouth[:, None]
    return p


def test_size_and_shape_of_a_motion_whatever_the_pose() -> None:
    rng = np.random.default_rng(0)
    mouth, blink = rng.uniform(0, 30, FRAMES), (np.arange(FRAMES) % 10 == 0).astype(float)
    observed = face(mouth, blink)
    angle, scale, shift = rng.normal(0, 0.2, FRAMES), rng.uniform(1, 3, FRAMES), rng.normal(0, 99, (FRAMES, 1, 2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    head = face(0.5 * mouth, blink) @ turn * scale[:, None, None] + shift
    found = follow(head, observed)
    assert found["mouth opening"].correlation == pytest.approx(1, abs=1e-6)
    assert found["mouth opening"].slope == pytest.approx(0.5, abs=1e-6)
    assert found["right eye opening"].slope == pytest.approx(1, abs=1e-6)
    assert np.isnan(found["left eye opening"].slope)  # it never closed
    np.testing.assert_allclose(distances(head)["mouth width"], 0.5)


def test_frames_without_points_are_left_out() -> None:
    mouth = np.linspace(0, 30, FRAMES)
    observed, head = face(mouth, 0 * mouth), face(mouth, 0 * mouth)
    observed[3:9] = np.nan
    head[20] = np.nan
    assert follow(head, observed)["mouth opening"].frames == FRAMES - 7
    assert np.isnan(follow(head[:5], observed[:5])["mouth opening"].correlation)


def test_points_of_another_detector_come_by_frame(tmp_path: Path) -> None:
    points = face(np.arange(3.0), np.zeros(3))
    np.savez(tmp_path / "points.npz", frame=[4, 2, 9], points=points)
    found = read_referee(tmp_path / "points.npz", np.array([2, 3, 4]))
    np.testing.assert_array_equal(found[[0, 2]], points[[1, 0]])
    assert np.isnan(found[1]).all()
    with pytest.raises(InputError, match="no frame"):
        read_referee(tmp_path / "points.npz", np.array([7]))
    np.savez(tmp_path / "points.npz", frame=[4, 2], points=points)
    with pytest.raises(InputError, match="shapes"):
        read_referee(tmp_path / "points.npz", np.array([2]))
