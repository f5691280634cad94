"""What a finished run keeps of its observations: enough to be fitted anew, and nothing that its track has."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nphm_track.tracking.fit import identity_votes
from nphm_track.tracking.kept import keep_observations, kept_observations
from nphm_track.tracking.records import Status, Track

from .conftest import make_track

FRAMES = 600


@pytest.fixture
def log() -> np.ndarray:
    """Observations with codes of a clip whose last frame is lost."""
    rng = np.random.default_rng(3)
    fields: list[Any] = [("frame", "i8"), ("time", "f8"), ("seen", "?"), ("shot", "i4"), ("confidence", "f4")]
    fields += [("landmarks", "f4", (478, 3)), ("blendshapes", "f4", (52,)), ("state", "f4", (4,))]
    fields += [("z_id", "f2", (8,)), ("z_ex", "f4", (4,)), ("log_variance", "f4", (3,))]
    log = np.zeros(FRAMES, fields)
    for name in log.dtype.names or ():
        log[name] = 9 * rng.uniform(size=log[name].shape)
    log["frame"], log["seen"] = np.arange(FRAMES), np.arange(FRAMES) < FRAMES - 1
    for name in ("landmarks", "blendshapes"):
        log[name][-1] = np.nan
    return log


def track_of(log: np.ndarray) -> Track:
    """A track of them, in which no head fits the second frame."""
    track = replace(
        make_track(FRAMES), frame=log["frame"], time=log["time"], landmarks=log["landmarks"][..., :2].copy(),
        blendshapes=log["blendshapes"], confidence=np.where(log["frame"] == 1, 0, log["confidence"]),
    )  # fmt: skip
    track.status[1] = Status.LOST
    return track


def test_a_clip_is_seen_as_before(log: np.ndarray, tmp_path: Path) -> None:
    keep_observations(tmp_path / "kept.npz", log)
    track_of(log).save(tmp_path / "track.npz")
    again = kept_observations(tmp_path / "kept.npz", tmp_path / "track.npz")
    assert again is not None
    for name in set(log.dtype.names or ()) - {"state", "z_id", "log_variance"}:
        np.testing.assert_array_equal(again[name], log[name], err_msg=name)
    votes, z_ex = identity_votes(None, log, (96, 64))
    votes_again, z_ex_again = identity_votes(None, again, (96, 64))
    for field in fields(votes):
        np.testing.assert_array_equal(getattr(votes_again, field.name), getattr(votes, field.name))
    np.testing.assert_array_equal(z_ex_again, z_ex)


def test_what_is_missing_damaged_or_of_another_clip_is_not_gone_on_from(log: np.ndarray, tmp_path: Path) -> None:
    kept, track = tmp_path / "kept.npz", tmp_path / "track.npz"
    assert kept_observations(kept, track) is None
    track_of(log).save(track)
    keep_observations(kept, log[:-1])
    assert kept_observations(kept, track) is None
    keep_observations(kept, log)
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 4
    kept.write_bytes(content)
    assert kept_observations(kept, track) is None
