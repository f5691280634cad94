"""The same session on a local Ray cluster (extra ``cluster``)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from nphm_track.batch import driver
from nphm_track.batch.manifest import State
from nphm_track.batch.ray_pool import RayPool
from nphm_track.batch.steps import PersonWork, Work
from nphm_track.errors import InputError
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.progress import Progress

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


def where(work: Work | PersonWork, progress: Progress) -> dict[str, Any]:
    """The node that a step is done on."""
    import ray

    time.sleep(2)  # the other node's turn
    return {"node": ray.get_runtime_context().get_node_id()}


def test_a_cluster_of_two_machines_shares_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        pool = RayPool(cluster.address, where)
        assert pool.free()
        for key in ("one", "two"):
            pool.submit(key, Work("track", tmp_path, tmp_path, tmp_path, tmp_path))
        assert not pool.free()  # a step for each core of both
        events, end = [], time.monotonic() + 120
        while len(events) < 2 and time.monotonic() < end:
            events += pool.events(1.0)
        pool.close()
    finally:
        cluster.shutdown()
    assert {event.key: event.kind for event in events} == {"one": "done", "two": "done"}
    assert len({event.data["node"] for event in events}) == 2


def test_no_cluster() -> None:
    with pytest.raises(InputError, match=r"no Ray cluster at 127\.0\.0\.1:9"):
        RayPool("127.0.0.1:9", fake_steps.run)
