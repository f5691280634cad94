"""Pose leakage of made-up tracks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nphm_track.conventions import BLENDSHAPE_NAMES
from nphm_track.errors import InputError
from nphm_track.evaluation.leakage import leakage_table, measure
from nphm_track.tracking.records import Status, Track


def made_up(n: int = 200, nod_by_blink: float = 0.0, nearer_by_jaw: float = 0.0) -> Track:
    """A head that turns slowly; ``nod_by_blink`` degrees and ``nearer_by_jaw`` mm leak."""
    rng = np.random.default_rng(1)
    weights = np.zeros((n, 52), np.float32)
    blink, jaw = np.clip(rng.normal(size=n), 0, 1), np.clip(rng.normal(size=n), 0, 1)
    for name in ("eyeBlinkLeft", "eyeBlinkRight"):
        weights[:, BLENDSHAPE_NAMES.index(name)] = blink
    weights[:, BLENDSHAPE_NAMES.index("jawOpen")] = jaw
    turn = np.c_[nod_by_blink * blink, np.linspace(0, 30, n) + rng.normal(size=n) * 0.01, np.zeros(n)]
    points = np.zeros((n, 478, 2), np.float32)
    return Track(
        frame=2 * np.arange(n), time=np.arange(n) / 25, status=np.zeros(n, np.uint8), confidence=np.ones(n, np.float32),
        z_id=np.zeros(4, np.float32), z_ex=np.zeros((n, 4), np.float32),
        R=np.diag([1.0, -1, -1]) @ Rotation.from_euler("YXZ", turn[:, [1, 0, 2]], degrees=True).as_matrix(),
        t=np.c_[np.zeros((n, 2)), 0.6 - nearer_by_jaw / 1000 * jaw], K=np.eye(3), image_size=np.array([64, 64]),
        landmarks=points, landmarks_fit=points[:, :68], blendshapes=weights,
        landmark_error_px=np.ones(n, np.float32), normal_error_deg=np.ones(n, np.float32),
    )  # fmt: skip


def test_a_head_that_holds_still_leaks_nothing() -> None:
    facts = measure(made_up())
    assert max(facts["r2"].values()) < 0.1
    assert abs(facts["per_full_weight"]["blink"]["pitch_deg"]) < 0.01
    assert np.isnan(facts["per_full_weight"]["smile"]["x_mm"])  # nobody smiled


def test_what_leaks_is_found_where_it_leaks() -> None:
    facts = measure(made_up(nod_by_blink=2.0, nearer_by_jaw=5.0))
    slopes = facts["per_full_weight"]
    assert slopes["blink"]["pitch_deg"] == pytest.approx(2, abs=0.05)
    assert slopes["jaw open"]["z_mm"] == pytest.approx(-5, abs=0.05)
    assert abs(slopes["blink"]["z_mm"]) < 0.05 and abs(slopes["jaw open"]["pitch_deg"]) < 0.05
    assert facts["r2"]["pitch_deg"] > 0.99 and facts["r2"]["yaw_deg"] < 0.2
    assert "| a full blink | 2.00" in leakage_table(facts)


def test_frames_that_are_not_tracked_do_not_count() -> None:
    track = made_up(nod_by_blink=2.0)
    track.status[50:100] = Status.LOST
    track.R[50:100] = np.nan
    track.t[50:100] = np.nan
    assert measure(track)["per_full_weight"]["blink"]["pitch_deg"] == pytest.approx(2, abs=0.05)
    track.status[:185] = Status.FILLED
    with pytest.raises(InputError, match="14 successive frames"):
        measure(track)
