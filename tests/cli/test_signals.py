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
from pathlib import Path
enough = Path({enough!r})
tracker = types.ModuleType("nphm_track.tracker")
def track(input, output, *, options, progress, **_):
    from nphm_track.tracking.records import InputInfo, replacing
    from nphm_track.tracking.run_folder import RunFolder
    info = InputInfo(path="clip.mp4", sha256="ab", size=1, width=4, height=4)
    with RunFolder.open(output, info, options) as folder:
        with replacing(folder.track) as partial:
            partial.write_text("half of it")
            try:
                print("at work", flush=True)
                time.sleep(60)
            finally:
                while not enough.exists():  # putting things in order takes a while
                    time.sleep(0.01)
                (Path(output).parent / "in order").touch()
tracker.track = track
sys.modules["nphm_track.tracker"] = tracker
import nphm_track
nphm_track.tracker = tracker
from nphm_track.cli import main
{before}
main()
"""


def hear() -> None:
    """What began the tests may ignore some requests to end, as nohup does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(tmp_path: Path, enough: Path | None = None, before: str = "") -> subprocess.Popen[str]:
    """A run that has begun; when asked to end it puts things in order until the file ``enough`` is there."""
    (tmp_path / "track.py").write_text(SCRIPT.format(enough=str(enough or tmp_path), before=before))
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "track.py"), "clip.mp4", "-o", str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=hear,
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
    process = start(tmp_path, tmp_path / "enough")
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.03)
    assert not (tmp_path / "in order").exists()
    (tmp_path / "enough").touch()
    check(tmp_path, process, 130)
    assert (tmp_path / "in order").exists()


def test_a_second_request_on_the_way_out_does_not_change_the_exit_code(tmp_path: Path) -> None:
    """It comes when the program has said its last line, and only the interpreter is left to end."""
    leave = "import atexit; atexit.register(lambda: signal.raise_signal(signal.SIGINT))"
    process = start(tmp_path, before=leave)
    process.send_signal(signal.SIGINT)
    check(tmp_path, process, 130)


def test_a_later_request_ends_it_now(tmp_path: Path) -> None:
    process = start(tmp_path, tmp_path / "never", before="from nphm_track.cli import signals; signals.GRACE = 0.2")
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


def test_a_request_while_the_process_ends_does_not_change_its_code(tmp_path: Path) -> None:
    process = start(
        tmp_path, before="import atexit; atexit.register(lambda: (print('ending', flush=True), time.sleep(1)))"
    )
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None and process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGTERM)
    check(tmp_path, process, 143)
