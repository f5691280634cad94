"""The same session on a local Ray cluster (extra ``cluster``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from nphm_track.batch import driver
from nphm_track.batch.manifest import State
from nphm_track.batch.ray_pool import RayPool
from nphm_track.errors import InputError
from nphm_track.tracking.options import TrackOptions

pytest.importorskip("ray")
import fake_steps
from fake_steps import InlinePool, contents, write_take


def test_same_results_and_a_killed_worker(tmp_path: Path) -> None:
    takes, out, here = tmp_path / "takes", tmp_path / "out", tmp_path / "here"
    for name in ("anna/one.mp4", "anna/two.mp4", "ben/one.mp4"):
        write_take(takes / name)
    driver.work(here, lambda: driver.planned(takes, here, TrackOptions()), pool=InlinePool())
    write_take(takes / "eve" / "bad.mp4", go_wrong="kill")
    pool = RayPool("local", fake_steps.run, count=2)
    manifest = driver.work(out, lambda: driver.planned(takes, out, TrackOptions()), pool=pool)
    *good, bad = manifest.jobs
    assert {job.state for job in good} == {State.DONE}
    assert bad.state is State.FAILED and bad.attempts == 2 and bad.error.startswith("Ray:")
    found = contents(out)
    assert contents(here).items() <= found.items()
    assert all(name.startswith("eve/") for name in found.keys() - contents(here).keys())


def test_no_cluster() -> None:
    with pytest.raises(InputError, match=r"no Ray cluster at 127\.0\.0\.1:9"):
        RayPool("127.0.0.1:9", fake_steps.run)
