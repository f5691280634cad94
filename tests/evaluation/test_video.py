"""Video quality of runs whose jitter is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nphm_track.conventions import IBUG68_FROM_478
from nphm_track.errors import InputError
from nphm_track.evaluation.video import compare_runs, quality_table, video_quality
from nphm_track.tracking.progress import NullProgress
from nphm_track.tracking.records import Status, Track

from .conftest import face_like

N, RATE = 12, 25.0


def make_run(
    noise_mm: float = 0.0, shake_deg: float = 0.0, pixels: float = 0.0, sha: str = "ab", first: int = 0
) -> Any:
    """A head that turns evenly, with alternating noise of known size on vertices, rotation and fitted landmarks."""
    head, sign = face_like(), (-1.0) ** np.arange(N)
    rng = np.random.default_rng(0)
    shape = rng.uniform(20, 60, (478, 2))
    shape[[33, 263]] = (20, 40), (60, 40)
    observed = shape + np.arange(N)[:, None, None] * [1.0, 0.5]
    away = rng.normal(size=(68, 2))
    fitted = (
        observed[:, list(IBUG68_FROM_478)] + pixels * sign[:, None, None] * away / np.linalg.norm(away, axis=1)[:, None]
    )
    angle = 2.0 * np.arange(N) + shake_deg * sign
    track = Track(
        frame=first + np.arange(N),
        time=np.arange(N) / RATE,
        status=np.zeros(N, np.uint8),
        confidence=np.ones(N, np.float32),
        z_id=np.zeros(4, np.float32),
        z_ex=np.zeros((N, 4), np.float32),
        R=Rotation.from_euler("y", angle[:, None], degrees=True).as_matrix(),
        t=np.tile([0, 0, 0.6], (N, 1)),
        K=np.eye(3),
        image_size=np.array([80, 80]),
        landmarks=observed.astype(np.float32),
        landmarks_fit=fitted.astype(np.float32),
        blendshapes=np.zeros((N, 52), np.float32),
        landmark_error_px=np.full(N, pixels, np.float32),
        normal_error_deg=np.full(N, np.nan, np.float32),
    )
    ripple = np.where(np.arange(len(head.vertices)) % 2, 1.0, -1.0)[:, None] * [0, 0, 1]

    def mesh(row: int) -> tuple[np.ndarray, np.ndarray]:
        moved = head.vertices + 1e-3 * noise_mm * sign[row] * ripple
        return (moved @ Rotation.from_euler("z", row, degrees=True).as_matrix()).astype(np.float32), head.faces

    clip = SimpleNamespace(sha256=sha, path="clip.mp4")
    info = SimpleNamespace(input=clip, options={"meshes": True}, models={}, package_version="0")
    return SimpleNamespace(path=Path("run"), track=track, info=info, mesh=mesh)


def test_a_steady_run_has_no_jitter() -> None:
    quality = video_quality(make_run(), NullProgress())
    assert quality.frames == quality.tracked == N and quality.lost == 0
    assert quality.vertex_step_mm < 1e-3 and quality.normal_flicker_deg < 0.1
    assert quality.rotation_jitter < 1e-6 and quality.translation_jitter < 1e-9
    assert quality.landmark_error_percent == 0 and quality.landmark_jitter < 0.05


def test_noise_is_measured_in_its_unit() -> None:
    quality = video_quality(make_run(noise_mm=0.1, shake_deg=0.5, pixels=0.4), NullProgress())
    assert quality.vertex_step_mm == pytest.approx(0.4, rel=0.02)  # +a, -a, +a: a second difference of 4 a
    assert quality.vertex_jitter == pytest.approx(0.4e-3 * RATE**2, rel=0.02)
    assert quality.rotation_jitter == pytest.approx(2.0 * RATE**2, rel=0.02)
    assert quality.landmark_error_percent == pytest.approx(1.0, rel=1e-3)
    assert quality.landmark_jitter == pytest.approx(0.04 * RATE**2, rel=0.1)
    assert quality.normal_flicker_deg > 0.15


def test_lost_frames_and_gaps_are_left_out() -> None:
    run = make_run()
    track = run.track
    track.status[5] = Status.LOST
    for values in (track.R, track.t, track.landmarks_fit, track.landmarks, track.landmark_error_px):
        values[5] = np.nan
    track.time[6:] += 3.0
    quality = video_quality(run, NullProgress())
    assert (quality.tracked, quality.lost) == (N - 1, 1)
    assert quality.rotation_jitter < 1e-6 and quality.vertex_step_mm < 1e-3


def test_without_a_mesh_a_frame_only_those_measures_are_missing() -> None:
    run = make_run(pixels=0.4)
    run.info.options["meshes"] = False
    quality = video_quality(run, NullProgress())
    assert np.isnan(quality.vertex_jitter) and np.isnan(quality.normal_flicker_deg)
    assert quality.landmark_error_percent > 0


def test_over_smoothing_shows() -> None:
    run, flat = make_run(), make_run()
    blink = np.sin(np.arange(N))[:, None, None] * np.random.default_rng(1).normal(size=(478, 2))
    for made, kept in ((run, 1.0), (flat, 0.0)):
        made.track.landmarks = (made.track.landmarks + blink).astype(np.float32)
        ibug = list(IBUG68_FROM_478)
        made.track.landmarks_fit = (made.track.landmarks_fit + kept * blink[:, ibug]).astype(np.float32)
    assert video_quality(run, NullProgress()).motion_kept > 0.99
    assert not video_quality(flat, NullProgress()).motion_kept > 0.5


def test_two_runs_share_their_frames() -> None:
    facts = compare_runs([make_run(), make_run(noise_mm=0.1, first=2)], NullProgress())
    assert facts["same_clip"] and [run["frames"] for run in facts["runs"]] == [N - 2, N - 2]
    assert facts["runs"][0]["vertex_jitter"] < facts["runs"][1]["vertex_jitter"]
    assert "different clips" not in quality_table(facts)
    assert "different clips" in quality_table(compare_runs([make_run(), make_run(sha="cd")], NullProgress()))
    with pytest.raises(InputError, match="no frame in common"):
        compare_runs([make_run(), make_run(first=100)], NullProgress())


def test_a_single_frame_has_no_jitter_to_measure() -> None:
    run = make_run()
    run.track = replace(
        run.track, **{n: getattr(run.track, n)[:1] for n in ("frame", "time", "status", "R", "t", "landmarks")},
        landmarks_fit=run.track.landmarks_fit[:1], landmark_error_px=run.track.landmark_error_px[:1],
    )  # fmt: skip
    quality = video_quality(run, NullProgress())
    assert quality.frames == 1 and np.isnan(quality.vertex_jitter) and np.isnan(quality.rotation_jitter)
