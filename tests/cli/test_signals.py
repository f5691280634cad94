"""How ``nphm-track`` ends when it is asked to, with a stand-in for the tracker that writes a run folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")
SCRIPT = """
import signal, sys, time, types
tracker = types.ModuleType("nphm_track.tracker")
def track(input, output, *, options, progress, **_):
    from nphm_track.tracking.records import InputInfo, replacing
    from nphm_track.tracking.run_folder import RunFolder
    info = InputInfo(path="clip.mp4", sha256="ab", size=1, width=4, height=4)
    with RunFolder.open(output, info, options) as folder:
        with replacing(folder.track) as partial:
            partial.write_text("half of it")
            print("at work", flush=True)
            try:
                time.sleep(60)
            finally:
                time.sleep({cleaning})  # putting things in order takes a while
tracker.track = track
sys.modules["nphm_track.tracker"] = tracker
import nphm_track
nphm_track.tracker = tracker
from nphm_track.cli import main
{before}
main()
"""


def start(tmp_path: Path, cleaning: float = 0.0, before: str = "") -> subprocess.Popen[str]:
    """A run that has begun."""
    (tmp_path / "track.py").write_text(SCRIPT.format(cleaning=cleaning, before=before))
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "track.py"), "clip.mp4", "-o", str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "at work\n"
    return process


def check(tmp_path: Path, process: subprocess.Popen[str], code: int) -> None:
    """It has ended with ``code`` and one line, and left its folder in order."""
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    assert said == "nphm-track: interrupted; the same command goes on where it stopped\n"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "interrupted"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_every_request_to_end_leaves_the_folder_in_order(tmp_path: Path, number: str, code: int) -> None:
    process = start(tmp_path)
    process.send_signal(getattr(signal, number))
    check(tmp_path, process, code)


def test_a_second_request_at_once_does_not_disturb_the_first(tmp_path: Path) -> None:
    process = start(tmp_path, cleaning=1.0)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.03)
    check(tmp_path, process, 130)


def test_a_later_request_ends_it_now(tmp_path: Path) -> None:
    process = start(tmp_path, cleaning=60.0, before="from nphm_track.cli import signals; signals.GRACE = 0.2")
    process.send_signal(signal.SIGTERM)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    process = start(tmp_path, before="signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    check(tmp_path, process, 143)
