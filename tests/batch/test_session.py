"""Sessions with a quick stand-in for tracking: what is done, in what order, and what survives which mishap."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nphm_track import locking
from nphm_track.batch import driver
from nphm_track.batch.manifest import Manifest, State
from nphm_track.batch.session import CHANGED
from nphm_track.batch.steps import Work
from nphm_track.batch.workers import Event, LocalPool
from nphm_track.errors import ModelError, OutputError
from nphm_track.locking import Owner, RunLock
from nphm_track.tracking.options import TrackOptions

sys.path.insert(0, str(Path(__file__).parent))  # where worker processes import the stand-in from
import fake_steps
from fake_steps import InlinePool, contents, write_take

Track = Callable[..., dict[str, str]]


@pytest.fixture
def takes(tmp_path: Path) -> Path:
    folder = tmp_path / "takes"
    for name in ("anna/one.mp4", "anna/two.mp4", "ben/one.mp4"):
        write_take(folder / name, frames=8 + len(name))
    return folder


@pytest.fixture
def track(takes: Path, tmp_path: Path) -> Track:
    """Works on the session, in this process or with ``workers``; returns the states of takes, errors behind them."""

    def work(
        workers: int = 0, stall: float = 30.0, session: Path = tmp_path / "out", **arguments: Any
    ) -> dict[str, str]:
        pool = LocalPool(workers, fake_steps.run, stall=stall) if workers else InlinePool()
        plan = arguments.pop("plan", lambda: driver.planned(takes, session, TrackOptions()))
        manifest = driver.work(session, plan, pool=pool, **arguments)
        assert Manifest.load(session).jobs == manifest.jobs
        return {job.output: f"{job.state.value} {job.error}".strip() for job in manifest.jobs}

    return work


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


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


class TestRefinedIdentities:
    """With ``refine`` the merged identity is refined once, and then held."""

    @pytest.fixture
    def refine(self, track: Track, takes: Path, out: Path) -> Track:
        options = TrackOptions(refine=True)
        return lambda *a, **k: track(*a, **({"plan": lambda: driver.planned(takes, out, options)} | k))

    def z_id(self, out: Path, *names: str) -> list[np.ndarray]:
        return [np.load(out / name)["z_id"] for name in names]

    def test_all_takes_have_it(self, track: Track, refine: Track, out: Path, tmp_path: Path) -> None:
        track(session=tmp_path / "merged")
        refine()
        (merged,) = self.z_id(tmp_path / "merged", "anna/identity.npz")
        for z_id in self.z_id(out, "anna/identity.npz", "anna/one/track.npz", "anna/two/track.npz"):
            np.testing.assert_array_equal(z_id, merged / 2)
        anna = Manifest.load(out).identities["anna"]
        assert anna.key_frames == ["one 0", "two 0"] and not anna.error and anna.seconds is not None
        assert anna.identity == next(job.identity for job in Manifest.load(out).jobs)
        assert "identity merged, then refined on 2 frames of 2 takes" in (out / "index.html").read_text()

    def test_added_takes_keep_it_unless_asked(self, refine: Track, takes: Path, out: Path) -> None:
        refine()
        before = contents(out)
        write_take(takes / "anna" / "three.mp4", frames=30)
        assert set(refine().values()) == {"done"}
        assert before.items() <= contents(out).items()
        assert set(refine(update_identity=True).values()) == {"done"}
        after = contents(out)
        assert after["anna/identity.npz"] != before["anna/identity.npz"]
        assert after["ben/identity.npz"] == before["ben/identity.npz"]
        assert len(Manifest.load(out).identities["anna"].key_frames) == 3
        names = ("one", "two", "three")
        assert len(np.unique(self.z_id(out, *(f"anna/{n}/track.npz" for n in names)), axis=0)) == 1

    @pytest.mark.parametrize(("mishap", "workers"), [("kill", (2,)), ("raise", ()), ("unreadable", ())])
    def test_one_that_cannot_be_is_the_merged_one_until_retried(
        self, track: Track, refine: Track, takes: Path, out: Path, tmp_path: Path, mishap: str, workers: tuple[int, ...]
    ) -> None:
        (takes / "anna" / "mishap").write_text(mishap)
        track(session=tmp_path / "merged")
        assert set(refine(*workers).values()) == {"done"}
        np.testing.assert_array_equal(*self.z_id(out, "anna/identity.npz", "../merged/anna/identity.npz"))
        assert Manifest.load(out).identities["anna"].error and not Manifest.load(out).identities["ben"].error
        assert "not refined" in (out / "index.html").read_text()
        (takes / "anna" / "mishap").unlink()
        assert set(refine(plan=lambda: driver.retried(out)).values()) == {"done"}
        assert Manifest.load(out).identities["anna"].key_frames == ["one 0", "two 0"]

    def test_interrupted_between(self, refine: Track, out: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            refine(interrupted=lambda: int((out / "ben" / "votes" / "one.npz").exists()))
        assert not (out / "ben" / "identity.npz").exists()
        assert set(refine().values()) == {"done"}


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
    states = track(*{"kill": (2, 30), "hang": (2, 0.5)}.get(go_wrong, ()))
    assert states.pop("anna/bad").startswith("failed") and set(states.values()) == {"done"}
    job = next(job for job in Manifest.load(out).jobs if job.name == "bad")
    assert error in job.error and "\n" not in job.error and job.attempts == attempts


def test_a_mishap_is_forgiven_once(track: Track, takes: Path) -> None:
    write_take(takes / "anna" / "bad.mp4", once="raise")
    assert set(track().values()) == {"done"}


def test_retry_of_failed_takes(track: Track, takes: Path, out: Path) -> None:
    write_take(takes / "anna" / "bad.mp4", go_wrong="unreadable")
    track()
    before = contents(out)
    write_take(takes / "anna" / "bad.mp4")
    assert track()["anna/bad"].startswith("failed")
    assert track(plan=lambda: driver.retried(out))["anna/bad"] == "done"
    assert before.items() <= contents(out).items()


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


def test_interrupted_once_it_saves_and_goes_on_later(track: Track, takes: Path, out: Path) -> None:
    write_take(takes / "ben" / "long.mp4", frames=30, delay=0.02)
    log = out / "ben" / "long" / "work" / "observations.bin"
    with pytest.raises(KeyboardInterrupt):
        track(2, interrupted=lambda: int(log.exists()))
    jobs = {job.output: job for job in Manifest.load(out).jobs}
    assert jobs["ben/long"].state is State.QUEUED and jobs["ben/long"].attempts == 0
    info = json.loads((out / "ben" / "long" / "run.json").read_text())
    assert info["state"] == "interrupted"
    write_take(takes / "ben" / "long.mp4", frames=30, delay=0.02)  # the same bytes, another time
    assert set(track().values()) == {"done"}


def test_interrupted_twice_it_waits_for_nobody(track: Track, takes: Path, out: Path) -> None:
    write_take(takes / "ben" / "deaf.mp4", go_wrong="hang")
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        track(1, interrupted=lambda: 2 * int((out / "ben" / "deaf" / "run.json").exists()))
    assert time.monotonic() - begun < 30
    job = next(job for job in Manifest.load(out).jobs if job.name == "deaf")
    assert job.state is State.QUEUED and job.attempts == 0


def test_a_moved_session_goes_on(track: Track, takes: Path, out: Path, tmp_path: Path) -> None:
    track()
    before = contents(out)
    (tmp_path / "moved").mkdir()
    moved = takes.rename(tmp_path / "moved" / "takes"), out.rename(tmp_path / "moved" / "out")
    write_take(moved[0] / "ben" / "new.mp4")
    states = track(session=moved[1], plan=lambda: driver.planned(moved[0], moved[1], TrackOptions()))
    assert set(states.values()) == {"done"} and before.items() <= contents(moved[1]).items()


DRIVER = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
import fake_steps
from nphm_track.batch import driver
from nphm_track.batch.workers import LocalPool
from nphm_track.tracking.options import TrackOptions
if __name__ == "__main__":
    takes, out = map(Path, sys.argv[1:])
    plan = lambda: driver.planned(takes, out, TrackOptions())
    driver.work(out, plan, pool=LocalPool(2, fake_steps.run))
"""


def test_a_killed_driver_leaves_no_worker_and_no_half_file(
    track: Track, takes: Path, out: Path, tmp_path: Path
) -> None:
    for number in range(4):
        write_take(takes / "anna" / f"long{number}.mp4", frames=15, delay=0.01)
    script = tmp_path / "drive.py"
    script.write_text(DRIVER.format(here=str(Path(__file__).parent)))
    for sign in ("observations.bin", "00000?.ply"):
        process = subprocess.Popen([sys.executable, str(script), str(takes), str(out)])
        while process.poll() is None and not any(out.rglob(sign)):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert set(track().values()) == {"done"}  # at once: its workers are gone, and so are their locks
    track(session=tmp_path / "undisturbed")
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert not list(out.rglob("*.partial"))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_worker_does_not_outlive_its_driver_even_if_it_says_nothing(takes: Path, out: Path, tmp_path: Path) -> None:
    for name in ("anna/one.mp4", "anna/two.mp4", "ben/one.mp4"):
        write_take(takes / name, go_wrong="hang")
    script = tmp_path / "drive.py"
    script.write_text(DRIVER.format(here=str(Path(__file__).parent)))
    process = subprocess.Popen([sys.executable, str(script), str(takes), str(out)])
    while len(list(out.rglob("run.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    owners = [Owner.read(path) for path in out.rglob("run.lock")]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(owner and owner.lives() for owner in owners) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(owners) == 2 and not any(owner and owner.lives() for owner in owners)


CLI = """
import sys
sys.path.insert(0, {here!r})
import fake_steps
from nphm_track.batch import driver
from nphm_track.batch.workers import LocalPool
from nphm_track.cli import main
if __name__ == "__main__":
    driver.local_pool = lambda manifest, workers: LocalPool(2, fake_steps.run)
    main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_request_to_end_that_reaches_the_whole_group_costs_no_take_an_attempt(
    track: Track, takes: Path, out: Path, tmp_path: Path, number: signal.Signals
) -> None:
    write_take(takes / "anna" / "long.mp4", frames=15, delay=0.02)
    script = tmp_path / "cli.py"
    script.write_text(CLI.format(here=str(Path(__file__).parent)))
    command = [sys.executable, str(script), "batch", str(takes), "-o", str(out)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while process.poll() is None and not any(out.rglob("observations.bin")):
        time.sleep(0.02)
    for _ in range(2):  # as timeout does: to its child, then to the group that it is in
        os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert said.splitlines()[-1] == "nphm-track: interrupted; the same command goes on where it stopped"
    jobs = Manifest.load(out).jobs
    assert {job.attempts for job in jobs} == {0} and {job.error for job in jobs} == {""}
    assert {job.state for job in jobs} <= {State.QUEUED, State.DONE}
    assert not list(out.rglob("*.lock*")) and not list(out.rglob("*.partial"))
    assert not [path for path in out.rglob("run.json") if '"running"' in path.read_text()]
    assert set(track().values()) == {"done"}
    track(session=tmp_path / "undisturbed")
    assert contents(out) == contents(tmp_path / "undisturbed")


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


@pytest.mark.parametrize(("visible", "gpus"), [("", ["0", "1"]), ("3,GPU-5f,6", ["3", "GPU-5f"])])
def test_each_worker_has_a_gpu_of_its_own(
    takes: Path, out: Path, monkeypatch: pytest.MonkeyPatch, visible: str, gpus: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    pool = LocalPool(2, fake_steps.gpu, gpus=2)
    try:
        for key in "ab":
            pool.submit(key, Work("observe", takes, out, out, out))
        ends: list[Event] = []
        while len(ends) < 2:
            ends += [event for event in pool.events(1.0) if event.kind != "beat"]
    finally:
        pool.close()
    assert sorted(event.data["gpu"] for event in ends) == gpus
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


def test_durations_do_not_follow_the_wall_clock(track: Track, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 1e9 - 1e5 * next(jumps))
    assert set(track().values()) == {"done"}
