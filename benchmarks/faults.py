"""Runs and sessions under fire: killed and interrupted at random moments, they end as undisturbed ones.

A clip of --frames frames is tracked by the real tracker, with SIGKILL --kills times and SIGTERM --terms times; each
time the same command goes on. A session of many takes, with the tests' stand-in for the tracker, loses a worker, its
driver or all its processes at once (as in a power cut) --strikes times. Results must be the undisturbed ones, byte for
byte, with nothing left over.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import Out, Report, table
from benchmarks.session_takes import drive, fake_steps, make_takes, retry
from nphm_track.batch.manifest import Manifest, State
from nphm_track.errors import NphmTrackError
from nphm_track.tracking.records import RunInfo
from nphm_track.tracking.validate import validate_run
from nphm_track.video.writer import VideoWriter

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ("--mesh-resolution", "48", "-q")
SESSION_TAKES = 12


def run(out: Out, kills: int = 6, terms: int = 2, strikes: int = 6, frames: int = 20, seed: int = 0) -> Report:
    """Counts rounds, and names what is wrong."""
    rng = np.random.default_rng(seed)
    rows, wrong = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if kills or terms:
            clip = write_clip(folder / "clip.mp4", frames)
            whole, seconds = tracked(clip, folder / "whole")
            for number, rounds in ((signal.SIGKILL, kills), (signal.SIGTERM, terms)):
                found = shoot(clip, folder / number.name, whole, seconds, number, rounds, rng)
                rows.append([f"track, {number.name}", rounds, len(found)])
                wrong += found
        if strikes:
            found = strike_session(folder, strikes, rng)
            rows.append(["batch, SIGKILL", strikes, len(found)])
            wrong += found
    parts = [table(["", "rounds", "wrong"], rows), *wrong]
    return Report({"rounds": rows, "wrong": wrong}, parts, not wrong)


def write_clip(path: Path, frames: int) -> Path:
    """The astronaut's face, which moves across the picture; 160x120 at 25 frames/s."""
    from skimage import data
    from skimage.transform import resize

    photograph = data.astronaut()
    with VideoWriter(path, (160, 120), frame_rate_hint=25) as writer:
        for k in range(frames):
            i = min(k % 40, 40 - k % 40)
            part = photograph[10 + 2 * i : 220 + 2 * i, 85 + 4 * i : 365 + 4 * i]
            writer.write((resize(part, (120, 160), anti_aliasing=True) * 255).round().astype(np.uint8), k / 25)
    return path


def command(clip: Path, output: Path) -> list[str]:
    return [sys.executable, "-m", "nphm_track", str(clip), "-o", str(output), *OPTIONS]


def tracked(clip: Path, output: Path) -> tuple[dict[str, bytes], float]:
    """Contents of an undisturbed run, and its seconds."""
    begun = time.monotonic()
    subprocess.run(command(clip, output), cwd=ROOT, check=True)
    return contents(output), time.monotonic() - begun


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run; of those that tell times, that they are there."""
    telling = ("run.json", "report.html")
    files = (path for path in sorted(run.rglob("*")) if path.is_file())
    return {path.relative_to(run).as_posix(): b"" if path.name in telling else path.read_bytes() for path in files}


def shoot(
    clip: Path,
    output: Path,
    whole: dict[str, bytes],
    seconds: float,
    number: signal.Signals,
    rounds: int,
    rng: np.random.Generator,
) -> list[str]:
    """Begin a run, or go on with it, and end it at a random moment, ``rounds`` times; what is wrong."""
    wrong = []
    left = rounds
    while left:
        process = subprocess.Popen(command(clip, output), cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            said = process.communicate(timeout=rng.uniform(0.02, 1.0) * seconds)[1]
        except subprocess.TimeoutExpired:
            left -= 1
            process.send_signal(number)
            said = process.communicate()[1]
            print(f"{number.name}: {left} left", flush=True)
            if number != signal.SIGKILL:
                wrong += not_in_order(output, process.returncode, said)
            continue
        wrong += differences(output, whole, process.returncode, said)
        shutil.rmtree(output)
    last = subprocess.run(command(clip, output), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    return wrong + differences(output, whole, last.returncode, last.stderr)


def not_in_order(output: Path, code: int, said: str) -> list[str]:
    """What an interrupted run has left as it should not; one that had not begun leaves nothing."""
    wrong = [] if code in (0, 143, -signal.SIGTERM) else [f"SIGTERM: exit code {code}: {said}"]
    if (output / "run.json").exists():
        state = RunInfo.load(output / "run.json").state
        wrong += [] if state in ("interrupted", "done") else [f"SIGTERM: the run is left {state}"]
    names = [path.name for path in output.rglob("*")] if output.exists() else []
    return wrong + [f"SIGTERM: {name} is left" for name in names if ".partial" in name or ".lock" in name]


def differences(output: Path, whole: dict[str, bytes], code: int, said: str) -> list[str]:
    """What sets a finished run apart from the undisturbed one."""
    found = contents(output)
    wrong = [f"exit code {code}: {said}"] if code else []
    wrong += [f"{name} differs" for name in whole if found.get(name) != whole[name]]
    wrong += [f"{name} is left over" for name in found if name not in whole]
    return wrong + validate_run(output)


def strike_session(folder: Path, strikes: int, rng: np.random.Generator) -> list[str]:
    """Kill processes of a session until ``strikes`` have hit; what is wrong at its end."""
    takes, session, undisturbed = folder / "takes", folder / "out", folder / "undisturbed"
    make_takes(takes, count=SESSION_TAKES, people=3, frames=30, delay=0.01)
    begun = time.monotonic()
    drive(takes, undisturbed, workers=2)
    length = time.monotonic() - begun
    hits = 0
    while hits < strikes:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.session_takes", str(takes), str(session)], cwd=ROOT
        )
        kind = str(rng.choice(["worker", "driver", "everything"]))
        time.sleep(rng.uniform(0.5, 0.5 * length))
        hits += bool(strike(process, kind, rng))
        if kind == "worker":
            time.sleep(rng.uniform(0.2, 1.0))
            strike(process, "driver", rng)
        process.wait()
        if not (session / "session.json").exists():
            continue
        try:
            done = Manifest.load(session).count(State.DONE)
        except NphmTrackError as error:  # a torn manifest
            return [f"the manifest cannot be read after {hits} strikes: {error}"]
        print(f"strike {hits}: {kind}; {done} takes done", flush=True)
        if done == SESSION_TAKES:
            for person in list(session.glob("person*"))[:2]:  # keep something to do
                shutil.rmtree(person)
    manifest = drive(takes, session, workers=2)
    if manifest.count(State.FAILED):  # takes that lost two workers are marked
        manifest = retry(session, workers=2)
    wrong = [f"{job.output}: {job.state} {job.error}" for job in manifest.jobs if job.state is not State.DONE]
    expected, found = fake_steps.contents(undisturbed), fake_steps.contents(session)
    wrong += [f"{name} differs" for name in expected if found.get(name) != expected[name]]
    return wrong + [f"{name} is left over" for name in found if name not in expected]


def strike(process: subprocess.Popen[bytes], kind: str, rng: np.random.Generator) -> int:
    """Kill a worker, the driver, or everything at once; how many processes."""
    workers = children(process.pid)
    victims = {
        "worker": [int(rng.choice(workers))] if workers else [],
        "driver": [process.pid],
        "everything": [process.pid, *workers],
    }[kind]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(victims)


def children(pid: int) -> list[int]:
    """Worker processes of a driver; the helper process of multiprocessing is not one."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found += [int(entry.name)] * (b"spawn_main" in (entry / "cmdline").read_bytes())
        except (OSError, IndexError):
            continue
    return found
