"""Locks that end with their owner: on this machine, on others, on file systems that have no locks of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nphm_track import locking
from nphm_track.errors import OutputError
from nphm_track.locking import Owner, RunLock

HOLD = """
import sys, time
from nphm_track.locking import RunLock
lock = RunLock(sys.argv[1], "x").acquire()
print(1, flush=True)
time.sleep(60)
"""
RACE = """
import sys, time
from pathlib import Path
from nphm_track import locking
from nphm_track.errors import OutputError
folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
for k in range(rounds):
    path, inside = folder / f"{k}.lock", folder / f"{k}.inside"
    while not (folder / f"{k}.go").exists():
        time.sleep(0.0002)
    try:
        lock = locking.RunLock(path, "x").acquire()
        inside.open("x").close()  # fails when the other one is inside
        time.sleep(0.002)
        inside.unlink()
        lock.release()
        print("held", flush=True)
    except OutputError:
        print("refused", flush=True)
    except FileExistsError:
        print("both", flush=True)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "BEAT", 0.05)
    monkeypatch.setattr(locking, "LEASE", 0.5)
    monkeypatch.setattr(locking, "LOOK", 0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.lock"


def leave(path: Path, **changes: object) -> Owner:
    """A lock that somebody holds, or has left."""
    owner = replace(Owner.this_process(), **changes)  # type: ignore[arg-type]
    path.write_text(json.dumps(asdict(owner)))
    return owner


@pytest.fixture
def beating(path: Path) -> Iterator[Path]:
    """The lock of a living owner on another machine."""
    leave(path, machine="another", host="farm7", pid=1283)
    done = threading.Event()

    def beat() -> None:
        while not done.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    yield path
    done.set()
    thread.join()


def test_one_at_a_time(path: Path) -> None:
    expected = f"^the run is being written by process {os.getpid()} on .*; last heard of 0 s ago.* --break-lock takes"
    with RunLock(path, "the run"), pytest.raises(OutputError, match=expected):
        RunLock(path, "the run").acquire()
    assert not list(path.parent.iterdir())
    with RunLock(path, "the run"):
        assert path.exists()


def test_the_lock_of_a_killed_process_is_free_at_once(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        with pytest.raises(OutputError, match=f"by process {process.pid}"):
            RunLock(path, "x").acquire()
        process.kill()
        begun = time.monotonic()
        RunLock(path, "x").acquire(patience=1.0).release()  # before its parent has taken notice, too
        assert time.monotonic() - begun < 0.4
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("change", [{"started": 1}, {"pid": 2**22 + 1}, {"pid": 2**70}, {"started": None}])
def test_records_left_behind_by_the_dead(path: Path, change: dict[str, object]) -> None:
    leave(path, **change)
    RunLock(path, "x").acquire().release()
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "\0" * 100, '{"pid": 1}', '{"token": 3}', "[" * 10**5])
def test_a_record_that_cannot_be_read_is_free_when_no_heart_beats_in_it(path: Path, content: str) -> None:
    path.write_text(content)
    begun = time.monotonic()
    RunLock(path, "x").acquire().release()
    assert time.monotonic() - begun > 0.4


def test_the_lock_of_another_machine_is_free_when_its_heart_stands_still(path: Path) -> None:
    leave(path, machine="another", host="farm7", pid=1283)
    told: list[str] = []
    begun = time.monotonic()
    RunLock(path, "the run").acquire(note=told.append).release()
    assert 0.4 < time.monotonic() - begun < 3
    assert told == ["the run was left locked by process 1283 on farm7; waiting whether that is still at work"]


def test_an_old_one_is_free_after_two_beats(path: Path) -> None:
    leave(path, machine="another")
    os.utime(path, (time.time() - 1000,) * 2)
    begun = time.monotonic()
    RunLock(path, "x").acquire().release()
    assert 0.1 < time.monotonic() - begun < 0.4


def test_the_lock_of_another_machine_is_kept_while_its_heart_beats(beating: Path) -> None:
    before = beating.read_text()
    with pytest.raises(OutputError, match=r"by process 1283 on farm7, since .*; last heard of 0 s ago"):
        RunLock(beating, "x").acquire()
    assert beating.read_text() == before


def test_a_clock_that_jumps_takes_no_lock_from_the_living(beating: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking._Pulse, "age", lambda self: 2592000.0)
    with pytest.raises(OutputError, match="farm7"):
        RunLock(beating, "x").acquire()


def test_a_process_that_cannot_be_seen_is_judged_by_its_heart(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(path, pid=1)
    monkeypatch.setattr(locking, "_started", lambda pid: locking.UNSEEN)
    begun = time.monotonic()
    RunLock(path, "x").acquire().release()
    assert time.monotonic() - begun > 0.4


def test_a_lock_that_is_broken_is_noticed_by_its_owner(path: Path) -> None:
    first = RunLock(path, "the run").acquire()
    first.check()
    second = RunLock(path, "the run").acquire(break_lock=True)
    with pytest.raises(OutputError, match=f"cannot be written: process {os.getpid()} on .* has taken it over"):
        first.check()
    first.release()
    second.check()
    assert path.exists()
    second.release()
    assert not list(path.parent.iterdir())


def test_a_folder_that_is_deleted_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    lock = RunLock(tmp_path / "run" / "run.lock", "the run").acquire()
    lock.path.unlink()
    with pytest.raises(OutputError, match="not there any more"):
        lock.check()
    lock.release()


def test_who_comes_second_to_the_lock_of_the_dead_finds_it_taken(path: Path) -> None:
    dead = leave(path, pid=2**22 + 1)
    with RunLock(path, "x") as first:
        assert not RunLock(path, "x")._succeed(dead)
        first.check()


def test_a_sweep_takes_a_draft_along_and_no_lock_of_the_living(path: Path) -> None:
    path.with_name("run.lock.abc.new").write_text("{")
    RunLock(path, "x").sweep()
    assert not list(path.parent.iterdir())
    with RunLock(path, "x") as held:
        RunLock(path, "x").sweep()
        held.check()


def test_a_lock_that_is_dropped_is_free(path: Path) -> None:
    lock = RunLock(path, "x").acquire()
    del lock
    assert not path.exists()


def test_an_owner_keeps_beating(path: Path) -> None:
    with RunLock(path, "x"):
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 5
        while path.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert path.stat().st_mtime > 2


def test_what_was_killed_while_it_took_a_lock_is_swept(path: Path) -> None:
    path.with_name("run.lock.abc.new").write_text("{")
    leave(path.with_name("run.lock.abc"), pid=2**22 + 1)
    leave(path, token="abc", pid=2**22 + 1)
    RunLock(path, "x").acquire().release()
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize(("links", "left"), [(True, True), (False, False)], ids=["left by the dead", "no hard links"])
def test_never_two_owners(tmp_path: Path, links: bool, left: bool) -> None:
    """Two processes take the same lock at the same moment, round after round."""
    rounds = 40
    without = "" if links else "import os\ndef link(*_):\n raise OSError\nos.link = link\n"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", without + RACE, str(tmp_path), str(rounds)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        for k in range(rounds):
            if left:
                leave(tmp_path / f"{k}.lock", pid=2**22 + 1)
            (tmp_path / f"{k}.go").touch()
            for racer in racers:
                assert racer.stdout
                assert racer.stdout.readline().strip() in ("held", "refused")
        assert [racer.wait(20) for racer in racers] == [0, 0]
    finally:
        for racer in racers:
            racer.kill()
    assert not list(tmp_path.glob("*.lock*"))
