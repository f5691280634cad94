"""Capture sessions under fire, with the quick stand-in for tracking that the tests use.

python benchmarks/faults.py kills [--rounds 30] [--seed 0]
python benchmarks/faults.py takes [--takes 200] [--workers 1 2] [--ray]

``kills``: a session is begun, and at a random moment one of its processes, or all of them at once as in a power cut, is
killed with SIGKILL; round after round, until the session ends by itself. Its results must be those of an undisturbed
session, byte for byte, with no unfinished file left. Exit code 1 when they are not.

``takes``: wall time of a session of many short takes: what the session itself costs, networks left out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "batch"))
import fake_steps  # noqa: E402

from nphm_track.batch import driver  # noqa: E402
from nphm_track.batch.manifest import Manifest, State  # noqa: E402
from nphm_track.batch.workers import LocalPool  # noqa: E402
from nphm_track.tracking.options import TrackOptions  # noqa: E402


def make_takes(folder: Path, count: int, people: int, frames: int, delay: float) -> None:
    for number in range(count):
        path = folder / f"person{number % people}" / f"take{number:03d}.mp4"
        fake_steps.write_take(path, frames=frames + number % 7, delay=delay)


def drive(takes: Path, session: Path, workers: int, ray: bool = False) -> Manifest:
    pool: Any = LocalPool(workers, fake_steps.run)
    if ray:
        from nphm_track.batch.ray_pool import RayPool

        pool = RayPool("local", fake_steps.run, count=workers)
    return driver.work(session, lambda: driver.planned(takes, session, TrackOptions()), pool=pool)


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


def kills(rounds: int, seed: int, folder: Path) -> list[str]:
    """What is wrong afterwards."""
    takes, session, undisturbed = folder / "takes", folder / "out", folder / "undisturbed"
    make_takes(takes, count=12, people=3, frames=30, delay=0.01)
    rng = np.random.default_rng(seed)
    start = time.monotonic()
    drive(takes, undisturbed, workers=2)
    length = time.monotonic() - start
    print(f"undisturbed: {length:.1f} s")
    strikes = done = 0
    while strikes < rounds:
        process = subprocess.Popen([sys.executable, __file__, "drive", str(takes), str(session)])
        kind = str(rng.choice(["worker", "driver", "everything"]))
        time.sleep(rng.uniform(0.5, 0.5 * length))
        count = strike(process, kind, rng)
        strikes += bool(count)
        if kind == "worker":
            time.sleep(rng.uniform(0.2, 1.0))
            strike(process, "driver", rng)
        process.wait()
        try:
            done = Manifest.load(session).count(State.DONE)
        except Exception as error:  # a torn manifest would be a finding
            if (session / "session.json").exists():
                return [f"the manifest cannot be read after {strikes} strikes: {error}"]
        print(f"strike {strikes}: {kind}, {count} killed; {done} takes done", flush=True)
        if done == 12:
            for person in list(session.glob("person*"))[:2]:  # keep something to do
                shutil.rmtree(person)
    manifest = drive(takes, session, workers=2)
    if unlucky := manifest.count(State.FAILED):
        print(f"{unlucky} takes lost two workers and were marked; tried again as by 'batch retry --failed'")
        pool = LocalPool(2, fake_steps.run)
        manifest = driver.work(session, lambda: driver.retried(session), pool=pool)
    wrong = [f"{job.output}: {job.state} {job.error}" for job in manifest.jobs if job.state is not State.DONE]
    expected, found = fake_steps.contents(undisturbed), fake_steps.contents(session)
    wrong += [f"{name} differs" for name in expected if found.get(name) != expected[name]]
    wrong += [f"{name} is left over" for name in found if name not in expected]
    return wrong


def takes(count: int, workers: list[int], ray: bool, folder: Path) -> None:
    make_takes(folder / "takes", count, people=20, frames=20, delay=0.001)
    print("| pool | takes | seconds | takes/s |\n|---|---|---|---|")
    results = []
    for number, kind in [*((n, "processes") for n in workers), *((n, "Ray") for n in workers if ray)]:
        session = folder / f"out_{kind}_{number}"
        start = time.monotonic()
        manifest = drive(folder / "takes", session, number, ray=kind == "Ray")
        seconds = time.monotonic() - start
        assert manifest.count(State.DONE) == count, [job.error for job in manifest.jobs if job.error]
        print(f"| {number} {kind} | {count} | {seconds:.1f} | {count / seconds:.1f} |", flush=True)
        results.append(fake_steps.contents(session))
    print("identical" if all(result == results[0] for result in results) else "NOT identical")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("kills")
    command.add_argument("--rounds", type=int, default=30)
    command.add_argument("--seed", type=int, default=0)
    command = commands.add_parser("takes")
    command.add_argument("--takes", type=int, default=200)
    command.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    command.add_argument("--ray", action="store_true")
    command = commands.add_parser("drive")  # what ``kills`` kills
    command.add_argument("folders", type=Path, nargs=2)
    arguments = parser.parse_args()
    if arguments.command == "drive":
        drive(*arguments.folders, workers=2)
        return
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.command == "takes":
            takes(arguments.takes, arguments.workers, arguments.ray, Path(scratch))
            return
        wrong = kills(arguments.rounds, arguments.seed, Path(scratch))
    print("\n".join(wrong) or "results are those of an undisturbed session")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
