"""Capture sessions: what the session itself costs, and what is left of it when its processes are killed.

``takes`` times a session of many short takes by each of --pools, networks left out. ``kills`` begins one again and
again and kills a worker, the driver or everything at once with SIGKILL at a random moment, until the session ends by
itself: its results must be those of an undisturbed one, byte for byte, with no unfinished file left. ``clips`` tracks
two short takes of each --clip with the networks: the results of all pools must be identical.
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
from collections.abc import Callable
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import typer

from benchmarks.harness import Out, Report, table
from nphm_track.batch import driver
from nphm_track.batch.manifest import Manifest, State
from nphm_track.batch.workers import LocalPool
from nphm_track.tracking.options import TrackOptions
from tests.batch import fake_steps  # the quick stand-in for tracking that the tests use

APART, HEIGHT, RATE = 30, 360, 25
"""Frames between the beginnings of a clip's two takes, and their size and frame rate."""
PEOPLE = 3


class Mode(StrEnum):
    TAKES, KILLS, CLIPS = "takes", "kills", "clips"


def run(
    out: Out, mode: Mode = Mode.TAKES, takes: int = 200, rounds: int = 30, seed: int = 0, frames: int = 12,
    pools: Annotated[list[str], typer.Option(help="Number of worker processes, or ray.")] = ["1", "2"],  # noqa: B006
    clip: Annotated[list[Path], typer.Option(help="A clip of a person.")] = [],  # noqa: B006
    refine: bool = False,
) -> Report:  # fmt: skip
    """Sessions are made in a temporary folder."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if mode == Mode.KILLS:
            return kills(folder, rounds, seed)
        if mode == Mode.TAKES:
            make_takes(folder / "takes", takes, people=20, frames=20, delay=0.001)
            return pools_agree(folder, pools, drive_stand_in)
        for person, path in enumerate(clip):
            for take in range(2):
                cut(path, folder / "takes" / f"person{person}" / f"take{take}.mp4", take * APART, frames)
        options = TrackOptions(refine=refine, report=False)  # the report tells dates
        return pools_agree(folder, pools, lambda takes, session, pool: drive(takes, session, pool, options))


def pools_agree(folder: Path, pools: list[str], work: Callable[[Path, Path, str], Manifest]) -> Report:
    """Seconds of the same session by each pool, and whether all left the same files."""
    rows, results, failed = [], [], []
    for pool in pools:
        session, start = folder / f"out_{pool}", time.monotonic()
        manifest = work(folder / "takes", session, pool)
        seconds = time.monotonic() - start
        rows.append([pool, len(manifest.jobs), seconds, len(manifest.jobs) / seconds])
        failed += [f"{job.output}: {job.error}" for job in manifest.jobs if job.state is not State.DONE]
        results.append(fake_steps.contents(session))
    same = all(result == results[0] for result in results)
    said = f"{len(results[0])} files, {'identical' if same else 'NOT identical'}"
    return Report(
        {"rows": rows}, [table(["pool", "takes", "seconds", "takes/s"], rows), said, *failed], same and not failed
    )


def drive(takes: Path, session: Path, pool: str, options: TrackOptions) -> Manifest:
    how: dict[str, Any] = {"ray": "local", "workers": 2} if pool == "ray" else {"workers": int(pool)}
    return driver.work(session, lambda: driver.planned(takes, session, options), **how)


def drive_stand_in(takes: Path, session: Path, pool: str) -> Manifest:
    workers: Any
    if pool == "ray":
        from nphm_track.batch.ray_pool import RayPool

        workers = RayPool("local", fake_steps.run, count=2)
    else:
        workers = LocalPool(int(pool), fake_steps.run)
    return driver.work(session, lambda: driver.planned(takes, session, TrackOptions()), pool=workers)


def make_takes(folder: Path, count: int, people: int, frames: int, delay: float) -> None:
    for number in range(count):
        path = folder / f"person{number % people}" / f"take{number:03d}.mp4"
        fake_steps.write_take(path, frames=frames + number % 7, delay=delay)


def cut(clip: Path, target: Path, first: int, count: int) -> None:
    """``count`` frames of a clip from its ``first`` on."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(clip)) as source, av.open(str(target), "w") as output:
        stream = source.streams.video[0]
        encoder: Any = output.add_stream("libx264", rate=RATE, options={"preset": "veryfast"})
        encoder.width, encoder.height = round(stream.width * HEIGHT / stream.height / 2) * 2, HEIGHT
        encoder.pix_fmt = "yuv420p"
        for index, frame in enumerate(source.decode(stream)):
            if first <= index < first + count:
                small = frame.reformat(encoder.width, encoder.height, "yuv420p")
                small.pts, small.time_base = index - first, Fraction(1, RATE)
                output.mux(encoder.encode(small))
        output.mux(encoder.encode(None))


def kills(folder: Path, rounds: int, seed: int, count: int = 12) -> Report:
    takes, session, undisturbed = folder / "takes", folder / "out", folder / "undisturbed"
    make_takes(takes, count, PEOPLE, frames=30, delay=0.01)
    rng = np.random.default_rng(seed)
    start = time.monotonic()
    drive_stand_in(takes, undisturbed, "2")
    length = time.monotonic() - start
    code = "import sys; from pathlib import Path; from benchmarks.sessions import drive_stand_in as drive; "
    code += "__name__ == '__main__' and drive(Path(sys.argv[1]), Path(sys.argv[2]), '2')"
    strikes = 0
    while strikes < rounds:
        process = subprocess.Popen([sys.executable, "-c", code, str(takes), str(session)])
        kind = str(rng.choice(["worker", "driver", "everything"]))
        time.sleep(rng.uniform(0.5, max(0.6, 0.5 * length)))
        strikes += bool(strike(process, kind, rng))
        if kind == "worker":
            time.sleep(rng.uniform(0.2, 1.0))
            strike(process, "driver", rng)
        process.wait()
        if (session / "session.json").exists() and Manifest.load(session).count(State.DONE) == count:
            for person in list(session.glob("person*"))[:2]:  # keep something to do
                shutil.rmtree(person)
    manifest = drive_stand_in(takes, session, "2")
    if manifest.count(State.FAILED):  # takes that lost two workers are marked; as 'batch retry --failed' does
        manifest = driver.work(session, lambda: driver.retried(session), pool=LocalPool(2, fake_steps.run))
    wrong = [f"{job.output}: {job.state} {job.error}" for job in manifest.jobs if job.state is not State.DONE]
    expected, found = fake_steps.contents(undisturbed), fake_steps.contents(session)
    wrong += [f"{name} differs" for name in expected if found.get(name) != expected[name]]
    wrong += [f"{name} is left over" for name in found if name not in expected]
    return Report(
        {"strikes": strikes, "wrong": wrong}, [f"{strikes} strikes, {len(wrong)} files differ", *wrong], not wrong
    )


def strike(process: subprocess.Popen[bytes], kind: str, rng: np.random.Generator) -> int:
    """Kill a worker, the driver, or everything at once; how many processes."""
    workers = children(process.pid)
    victims = {"worker": workers and [int(rng.choice(workers))], "driver": [process.pid]}.get(
        kind, [process.pid, *workers]
    )
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(victims)


def children(pid: int) -> list[int]:
    """Worker processes of a driver; the helper process of multiprocessing is not one."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError):
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found += [int(entry.name)] * (b"spawn_main" in (entry / "cmdline").read_bytes())
    return found
