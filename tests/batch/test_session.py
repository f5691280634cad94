"""Sessions with a quick stand-in for tracking: what is done, in what order, and what is left alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from fake_steps import Track, contents, write_take

from nphm_track.batch import driver
from nphm_track.batch.manifest import Manifest, State
from nphm_track.batch.session import CHANGED
from nphm_track.errors import OutputError
from nphm_track.locking import RunLock
from nphm_track.tracking.options import TrackOptions


def test_takes_of_a_person_share_an_identity(track: Track, out: Path) -> None:
    assert track() == {"anna/one": "done", "anna/two": "done", "ben/one": "done"}
    codes = {name: np.load(out / name / "track.npz")["z_id"] for name in ("anna/one", "anna/two", "ben/one")}
    np.testing.assert_array_equal(codes["anna/one"], codes["anna/two"])
    np.testing.assert_array_equal(codes["anna/one"], np.load(out / "anna" / "identity.npz")["z_id"])
    assert not np.array_equal(codes["anna/one"], codes["ben/one"])
    jobs = Manifest.load(out).jobs
    assert len({job.identity for job in jobs}) == 2
    assert all({"observe", "track"} == set(job.seconds) and job.attempts == 0 for job in jobs)
    assert not list(out.rglob("*.partial")) and not list(out.rglob("*.lock"))
    assert "anna" in (out / "index.html").read_text() and "anna,one,done,20" in (out / "quality.csv").read_text()


def test_results_do_not_depend_on_the_number_of_workers(track: Track, out: Path, tmp_path: Path) -> None:
    track()
    track(3, session=tmp_path / "other")
    assert contents(out) == contents(tmp_path / "other")


def test_a_finished_session_is_left_alone(track: Track, out: Path) -> None:
    track()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.parent.parent != out.parent}
    before = {path: at for path, at in before.items() if path.parent != out}
    track()
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_added_takes_change_nothing_unless_asked(track: Track, takes: Path, out: Path) -> None:
    track()
    before = contents(out)
    write_take(takes / "anna" / "three.mp4", frames=30)
    assert track()["anna/three"] == "done"
    assert before.items() <= contents(out).items()
    np.testing.assert_array_equal(*(np.load(out / n / "track.npz")["z_id"] for n in ("anna/one", "anna/three")))
    track(update_identity=True)
    after = contents(out)
    assert after["anna/identity.npz"] != before["anna/identity.npz"]
    assert after["ben/one/track.npz"] == before["ben/one/track.npz"]
    jobs = [job for job in Manifest.load(out).jobs if job.person == "anna"]
    assert len(jobs) == 3 and len({job.identity for job in jobs}) == 1 and all(job.state is State.DONE for job in jobs)


def test_votes_for_different_heads_are_one_clear_line(track: Track, out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        track(interrupted=lambda: int((out / "anna" / "votes" / "one.npz").exists()))
    votes = out / "anna" / "votes" / "one.npz"
    with np.load(votes) as file:
        np.savez(votes, z_id=file["z_id"], weight=file["weight"], model=np.array("other"))
    states = track()
    assert "another head model" in states["anna/one"] and states["ben/one"] == "done"


def test_a_lost_identity_is_restored_from_a_run(track: Track, takes: Path, out: Path) -> None:
    track()
    before = np.load(out / "anna" / "identity.npz")["z_id"]
    (out / "anna" / "identity.npz").write_bytes(b"torn")
    write_take(takes / "anna" / "three.mp4")
    track()
    np.testing.assert_array_equal(np.load(out / "anna" / "identity.npz")["z_id"], before)


def test_retry_of_failed_takes(track: Track, takes: Path, out: Path) -> None:
    write_take(takes / "anna" / "bad.mp4", go_wrong="unreadable")
    track()
    before = contents(out)
    write_take(takes / "anna" / "bad.mp4")
    assert track()["anna/bad"].startswith("failed")
    assert track(plan=lambda: driver.retried(out))["anna/bad"] == "done"
    assert before.items() <= contents(out).items()


def test_clips_that_change_or_go(track: Track, takes: Path, out: Path) -> None:
    track()
    before = contents(out)
    os.utime(takes / "ben" / "one.mp4")  # touched, not changed
    write_take(takes / "anna" / "one.mp4", frames=50)
    (takes / "anna" / "two.mp4").unlink()
    assert track() == {"anna/one": f"failed {CHANGED}", "anna/two": "done", "ben/one": "done"}
    assert before == contents(out)
    assert track(plan=lambda: driver.retried(out))["anna/one"] == "done"
    after = contents(out)
    assert {
        k.replace("one/", "one.old/"): v for k, v in before.items() if k.startswith("anna/one/")
    }.items() <= after.items()
    assert after["anna/one/track.npz"] != before["anna/one/track.npz"]


def test_a_folder_that_is_anothers(track: Track, out: Path, tmp_path: Path) -> None:
    (out / "anna" / "one").mkdir(parents=True)
    (out / "anna" / "one" / "photo.png").write_text("mine")
    (out / "session.json").write_text(
        driver.planned(tmp_path / "takes", tmp_path / "x", TrackOptions()).model_dump_json()
    )
    assert "not empty and not a run folder" in track()["anna/one"]
    assert (out / "anna" / "one" / "photo.png").read_text() == "mine"


def test_links_do_not_lead_out_of_the_session(track: Track, out: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    track(workers=1, plan=lambda: Manifest(root=".."))
    (out / "anna").symlink_to(tmp_path / "elsewhere")
    states = track()
    assert "leads out of" in states["anna/one"] and states["ben/one"] == "done"
    assert not list((tmp_path / "elsewhere").iterdir())


def test_two_drivers(track: Track, out: Path) -> None:
    out.mkdir()
    with (
        RunLock(out / "session.lock", f"the session {out}"),
        pytest.raises(OutputError, match=rf"session {out} is being written by process {os.getpid()} on"),
    ):
        track()
    assert set(track().values()) == {"done"}


def test_a_moved_session_goes_on(track: Track, takes: Path, out: Path, tmp_path: Path) -> None:
    track()
    before = contents(out)
    (tmp_path / "moved").mkdir()
    moved = takes.rename(tmp_path / "moved" / "takes"), out.rename(tmp_path / "moved" / "out")
    write_take(moved[0] / "ben" / "new.mp4")
    states = track(session=moved[1], plan=lambda: driver.planned(moved[0], moved[1], TrackOptions()))
    assert set(states.values()) == {"done"} and before.items() <= contents(moved[1]).items()


def test_durations_do_not_follow_the_wall_clock(track: Track, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 1e9 - 1e5 * next(jumps))
    assert set(track().values()) == {"done"}
