from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nphm_track import locking
from nphm_track.errors import OutputError
from nphm_track.locking import RunLock

HOLD = """
import sys, time
from nphm_track.locking import RunLock
lock = RunLock(sys.argv[1], "x").acquire()
print(1, flush=True)
time.sleep(60)
"""


@pytest.fixture(params=[True, False], ids=["system lock", "record only"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not request.param:
        monkeypatch.setattr(locking, "fcntl", None)
    return tmp_path / "run.lock"


def test_one_at_a_time(path: Path) -> None:
    expected = f"^the run is being written by process {os.getpid()} on"
    with RunLock(path, "the run"), pytest.raises(OutputError, match=expected):
        RunLock(path, "the run").acquire()
    assert not path.exists()
    with RunLock(path, "the run"):
        assert path.exists()


def test_a_killed_process_holds_nothing(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        with pytest.raises(OutputError, match=f"by process {process.pid}"):
            RunLock(path, "x").acquire()
        process.kill()
    RunLock(path, "x").acquire(patience=1.0).release()


@pytest.mark.parametrize(
    "change",
    [{"boot": "another"}, {"started": 1}, {"pid": 2**22 + 1}, {"pid": "x"}],
    ids=lambda change: next(iter(change)),
)
def test_records_left_behind_by_the_dead(path: Path, change: dict[str, object]) -> None:
    path.write_text(json.dumps(locking._this_process() | change))
    RunLock(path, "x").acquire().release()


@pytest.mark.parametrize("content", ["", "{", "[]", "\0" * 100])
def test_torn_records(path: Path, content: str) -> None:
    path.write_text(content)
    RunLock(path, "x").acquire().release()


def test_a_record_of_another_machine_is_believed(path: Path) -> None:
    path.write_text(json.dumps(locking._this_process() | {"host": "farm7"}))
    with pytest.raises(OutputError, match=f"on farm7, since .*; if that has ended, delete {path}"):
        RunLock(path, "x").acquire()
    assert "farm7" in path.read_text() and socket.gethostname() != "farm7"
