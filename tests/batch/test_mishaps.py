"""What goes wrong with one take, a disk or a lock does not spoil the night."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from fake_steps import Track, write_take

from nphm_track import locking
from nphm_track.batch.manifest import Manifest, State
from nphm_track.errors import ModelError, OutputError
from nphm_track.locking import Owner, RunLock


@pytest.mark.parametrize(
    ("go_wrong", "error", "attempts"),
    [
        ("kill", "its process was ended by SIGKILL, perhaps for want of memory", 2),
        ("raise", "RuntimeError: a bug in two lines (fake_steps.py:", 2),
        ("unreadable", "bad.mp4: not a video", 1),
        ("no face", "no face found in", 1),
        ("hang", "its process did nothing for 0 min and was ended", 2),
    ],
)
def test_a_poison_clip_does_not_spoil_the_night(
    track: Track, takes: Path, out: Path, go_wrong: str, error: str, attempts: int
) -> None:
    write_take(takes / "anna" / "bad.mp4", go_wrong=go_wrong)
    states = track(*{"kill": (2, 30), "hang": (2, 3.0)}.get(go_wrong, ()))
    assert states.pop("anna/bad").startswith("failed") and set(states.values()) == {"done"}
    job = next(job for job in Manifest.load(out).jobs if job.name == "bad")
    assert error in job.error and "\n" not in job.error and job.attempts == attempts


def test_a_mishap_is_forgiven_once(track: Track, takes: Path) -> None:
    write_take(takes / "anna" / "bad.mp4", once="raise")
    assert set(track().values()) == {"done"}


def test_a_full_disk_stops_the_session_and_costs_no_take(track: Track, takes: Path, out: Path) -> None:
    write_take(takes / "anna" / "big.mp4", once="disk full")
    with pytest.raises(OutputError, match="is full; free some space"):
        track()
    states = {job.state for job in Manifest.load(out).jobs}
    assert State.QUEUED in states and State.FAILED not in states and State.RUNNING not in states
    assert set(track().values()) == {"done"}


def test_a_manifest_that_does_not_fit_on_the_disk(track: Track, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, []

    def fsync(file: int) -> None:
        calls.append(file)
        if len(calls) > 6:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match="is full"):
        track()
    monkeypatch.undo()
    assert set(track().values()) == {"done"}


def test_a_missing_model_stops_the_session(track: Track, takes: Path, out: Path) -> None:
    write_take(takes / "anna" / "big.mp4", go_wrong="no model")
    with pytest.raises(ModelError, match="model 'head' not found"):
        track()
    assert all(job.state in (State.QUEUED, State.DONE) for job in Manifest.load(out).jobs)


def test_locks_left_on_another_machine_delay_a_session_and_fail_no_take(
    track: Track, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "BEAT", 0.05)
    monkeypatch.setattr(locking, "LEASE", 0.5)
    with pytest.raises(KeyboardInterrupt):
        track(interrupted=lambda: int((out / "anna" / "votes" / "one.npz").exists()))
    left = json.dumps(asdict(replace(Owner.this_process(), machine="a node that is gone")))
    for folder in (out, out / "anna" / "one"):
        (folder / ("session.lock" if folder == out else "run.lock")).write_text(left)
    assert set(track().values()) == {"done"}
    assert not list(out.rglob("*.lock*"))


def test_a_session_whose_lock_is_broken_writes_no_more(track: Track, takes: Path, out: Path) -> None:
    thief: list[RunLock] = []

    def steal() -> int:
        if not thief:
            thief.append(RunLock(out / "session.lock", "x").acquire(break_lock=True))
        return 0

    with pytest.raises(OutputError, match="has taken it over"):
        track(interrupted=steal)
    assert thief[0].path.exists()
    thief[0].release()
    assert set(track().values()) == {"done"}


def test_passing_over_frames_is_work_and_no_hang(track: Track, takes: Path) -> None:
    write_take(takes / "anna" / "late.mp4", passed_over=400)
    assert set(track(1, 3.0).values()) == {"done"}


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are text there")
def test_a_name_that_is_no_text_fails_alone(track: Track, takes: Path, out: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    write_take(takes / "anna" / f"{odd}.mp4")
    write_take(takes / odd / "one.mp4")
    states = track()
    assert sorted(states.values()) == ["done"] * 3 + ["failed its name is not UTF-8 text; rename it"] * 2
    assert track() == states
    assert {job.input for job in Manifest.load(out).jobs if job.error} == {"anna/caf\\xe9.mp4", "caf\\xe9/one.mp4"}
    (takes / "anna" / f"{odd}.mp4").rename(takes / "anna" / "café.mp4")
    assert track()["anna/café"] == "done"
