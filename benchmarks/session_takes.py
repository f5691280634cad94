"""Wall time of a session of many short takes: what the session itself costs, tracking left out.

The takes are tracked by the tests' stand-in, by --workers local processes each time, and with --ray also as tasks of a
Ray cluster that is started here. Results must not depend on it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Out, Report, table
from nphm_track.batch import driver
from nphm_track.batch.manifest import Manifest, State
from nphm_track.batch.workers import LocalPool
from nphm_track.tracking.options import TrackOptions

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "batch"))  # workers import the stand-in by name
import fake_steps


def run(out: Out, takes: int = 200, workers: list[int] = [1, 2], ray: bool = False) -> Report:  # noqa: B006 - an option
    """Seconds, and takes a second."""
    rows, results = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_takes(folder / "takes", takes, people=20, frames=20, delay=0.001)
        for number, kind in [*((n, "processes") for n in workers), *((n, "Ray") for n in workers if ray)]:
            session = folder / f"out_{kind}_{number}"
            begun = time.monotonic()
            manifest = drive(folder / "takes", session, number, ray=kind == "Ray")
            seconds = time.monotonic() - begun
            rows.append([f"{number} {kind}", manifest.count(State.DONE), seconds, takes / seconds])
            results.append(fake_steps.contents(session))
    same = all(result == results[0] for result in results) and all(row[1] == takes for row in rows)
    parts = [table(["pool", "takes", "seconds", "takes/s"], rows), "" if same else "The results differ."]
    return Report({"rows": rows}, parts, same)


def make_takes(folder: Path, count: int, people: int, frames: int, delay: float) -> None:
    for number in range(count):
        path = folder / f"person{number % people}" / f"take{number:03d}.mp4"
        fake_steps.write_take(path, frames=frames + number % 7, delay=delay)


def drive(takes: Path, session: Path, workers: int, ray: bool = False) -> Manifest:
    """Begin a session, or go on with it."""
    pool: Any = LocalPool(workers, fake_steps.run)
    if ray:
        from nphm_track.batch.ray_pool import RayPool

        pool = RayPool("local", fake_steps.run, count=workers)
    return driver.work(session, lambda: driver.planned(takes, session, TrackOptions()), pool=pool)


def retry(session: Path, workers: int) -> Manifest:
    """As by ``nphm-track batch retry --failed``."""
    return driver.work(session, lambda: driver.retried(session), pool=LocalPool(workers, fake_steps.run))


if __name__ == "__main__":  # what ``faults`` kills
    drive(Path(sys.argv[1]), Path(sys.argv[2]), workers=2)
