"""Workers and the session that drives them: none outlives the other, and what is ended goes on later."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fake_steps
import pytest
from fake_steps import Track, contents, write_take

from nphm_track.batch.manifest import Manifest, State
from nphm_track.batch.steps import Work
from nphm_track.batch.workers import Event, LocalPool
from nphm_track.locking import Owner


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


Start = Callable[[], "subprocess.Popen[str]"]
SCRIPT = """
import sys
sys.path.insert(0, {here!r})
import fake_steps
if __name__ == "__main__":
    from nphm_track.batch import driver
    from nphm_track.batch.workers import LocalPool
    from nphm_track.cli import main
    driver.local_pool = lambda manifest, workers: LocalPool(2, fake_steps.run)
    main()
"""
"""``nphm-track`` with two workers and the stand-in."""


def hear() -> None:
    """What began the tests may ignore some requests to end, as nohup does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def start(takes: Path, out: Path, tmp_path: Path) -> Start:
    """Begins the session in a process group of its own."""
    script = tmp_path / "drive.py"
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent)))
    command = [sys.executable, str(script), "batch", str(takes), "-o", str(out)]
    return lambda: subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=hear,
    )  # fmt: skip


def test_a_killed_driver_leaves_no_worker_and_no_half_file(
    start: Start, track: Track, takes: Path, out: Path, tmp_path: Path
) -> None:
    for number in range(4):
        write_take(takes / "anna" / f"long{number}.mp4", frames=15, delay=0.01)
    for sign in ("observations.bin", "00000?.ply"):
        process = start()
        while process.poll() is None and not any(out.rglob(sign)):
            time.sleep(0.02)
        process.kill()
        process.communicate(timeout=60)
    assert set(track().values()) == {"done"}  # at once: its workers are gone, and so are their locks
    track(session=tmp_path / "undisturbed")
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert not list(out.rglob("*.partial"))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_worker_does_not_outlive_its_driver_even_if_it_says_nothing(start: Start, takes: Path, out: Path) -> None:
    for name in ("anna/one.mp4", "anna/two.mp4", "ben/one.mp4"):
        write_take(takes / name, go_wrong="hang")
    process = start()
    while len(list(out.rglob("run.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    owners = [Owner.read(path) for path in out.rglob("run.lock")]
    process.kill()
    deadline = time.monotonic() + 20
    while any(owner and owner.lives() for owner in owners) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(owners) == 2 and not any(owner and owner.lives() for owner in owners)
    process.communicate(timeout=60)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_request_to_end_that_reaches_the_whole_group_costs_no_take_an_attempt(
    start: Start, track: Track, takes: Path, out: Path, tmp_path: Path, number: signal.Signals
) -> None:
    write_take(takes / "anna" / "long.mp4", frames=15, delay=0.02)
    process = start()
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
