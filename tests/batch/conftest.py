"""Three takes of two persons, and a session that works on them with a quick stand-in for tracking."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from nphm_track.batch import driver
from nphm_track.batch.manifest import Manifest
from nphm_track.batch.workers import LocalPool
from nphm_track.tracking.options import TrackOptions

sys.path.insert(0, str(Path(__file__).parent))  # where worker processes import the stand-in from
import fake_steps
from fake_steps import InlinePool, Track, write_take


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
