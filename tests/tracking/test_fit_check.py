"""A head that does not fit its face is no tracked head."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nphm_track import track
from nphm_track.errors import NoFaceError
from nphm_track.tracking import assemble, fit_check
from nphm_track.tracking.fit_check import does_not_fit
from nphm_track.tracking.records import Status, lost_words


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    from skimage import data

    path = tmp_path / "head.png"
    Image.fromarray(data.astronaut()[:300, 80:380]).save(path)
    return path


def test_the_error_counts_relative_to_the_face_and_not_to_its_eyes():
    """A face seen from the side has its eyes on one line of sight."""
    square = np.stack(np.meshgrid(np.linspace(-1, 1, 22), np.linspace(-1, 1, 22)), -1).reshape(-1, 2)[:478]
    faces = np.stack([square * 50, square * 100, square * [10, 100], np.full_like(square, np.nan)]).astype(np.float32)
    spread = 50 * np.sqrt(2 / 3) * 1.05
    error = np.array([spread, spread, spread, np.nan], np.float32) * fit_check.WRITTEN_MISFIT
    none = np.zeros(4, np.float32)
    assert does_not_fit(faces, 0.9 * error, none).tolist()[:2] == [False, False]
    assert does_not_fit(faces, 1.3 * error, none).tolist() == [True, False, False, False]


def test_a_pose_that_lags_behind_may_be_farther_off_than_one_that_was_solved():
    face = np.random.default_rng(0).normal(0, 50, (2, 478, 2)).astype(np.float32)
    spread = np.sqrt(np.square(face - face.mean(1, keepdims=True)).sum(-1).mean(-1))
    lagging, solved = (spread * share for share in (0.12, 0.05))
    assert not does_not_fit(face, lagging, solved).any()
    assert does_not_fit(face, solved, lagging).all() and does_not_fit(face, 1.5 * lagging, solved).all()
    assert not does_not_fit(face[:1], lagging[:1], lagging[:1]).any()  # a single picture


def test_a_head_that_hangs_is_tracked_as_it_hangs(photograph, tmp_path):
    upright = track(photograph, tmp_path / "upright", meshes=False, overlay=False, report=False).track
    turned = tmp_path / "turned.png"
    Image.open(photograph).rotate(180).save(turned)
    found = track(turned, tmp_path / "turned", meshes=False, overlay=False, report=False).track
    assert found.status[0] == Status.TRACKED
    assert found.landmark_error_px[0] < 1.5 * upright.landmark_error_px[0] + 0.2
    turn = found.R[0] @ upright.R[0].T  # about the line of sight, but for what the principal point adds
    assert turn[0, 0] < -0.99 and turn[1, 1] < -0.99


def test_a_run_in_which_no_head_fits_ends_with_its_reason(photograph, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit_check, "WRITTEN_MISFIT", 1e-3)
    arguments = [str(photograph), "-o", str(tmp_path / "run"), "--no-meshes", "--no-overlay"]
    monkeypatch.setattr(sys, "argv", ["nphm-track", *arguments])
    from nphm_track.cli import main

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == NoFaceError.exit_code
    assert "no head fits in" in capsys.readouterr().err


def test_frames_that_do_not_fit_are_lost_with_their_reason(photograph, tmp_path, monkeypatch):
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(3):
        Image.open(photograph).save(folder / f"{index}.png")
    monkeypatch.setattr(assemble, "does_not_fit", lambda *measured: np.array([False, True, False]))
    run = track(folder, tmp_path / "run", codes="landmarks", meshes=False, overlay=False, report=False)
    found = run.track
    assert found.status.tolist() == [Status.TRACKED, Status.LOST, Status.TRACKED]
    assert found.image.tolist() == ["0.png", "1.png", "2.png"]
    assert found.misfit.tolist() == [False, True, False] and found.confidence[1] == 0
    assert np.isnan(found.R[1]).all() and np.isnan(found.landmarks_fit[1]).all()
    assert np.isfinite(found.landmarks[1]).all() and np.isfinite(found.landmark_error_px[1])
    assert (run.info.quality["lost"], run.info.quality["misfit"]) == (1, 1)
    assert lost_words(run.info.quality) == "1 lost (0 without a face, 1 whose head does not fit)"
