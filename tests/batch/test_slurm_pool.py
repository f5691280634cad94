"""The same session as jobs of submitit's local executor (extra ``slurm``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from nphm_track.batch import driver, steps
from nphm_track.batch.manifest import State
from nphm_track.batch.slurm_pool import LOGS, SlurmPool, job_options
from nphm_track.errors import InputError
from nphm_track.tracking.options import TrackOptions


def test_options_of_jobs() -> None:
    given = job_options("slurm_partition=cpu,timeout_min=60")
    assert given == {"slurm_partition": "cpu", "timeout_min": 60}
    for wrong in ("cpu", "slurm_partition=", "=3"):
        with pytest.raises(InputError, match="NAME=VALUE"):
            job_options(wrong)


def test_same_results_and_a_killed_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    import fake_steps
    from fake_steps import InlinePool, contents, write_take

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    takes, out, here = tmp_path / "takes", tmp_path / "out", tmp_path / "here"
    for name in ("anna/one.mp4", "anna/two.mp4", "ben/one.mp4"):
        write_take(takes / name)
    driver.work(here, lambda: driver.planned(takes, here, TrackOptions()), pool=InlinePool())
    write_take(takes / "eve" / "bad.mp4", go_wrong="kill")
    monkeypatch.setattr(steps, "run", fake_steps.run)
    manifest = driver.work(out, lambda: driver.planned(takes, out, TrackOptions()), workers=2, slurm="local")
    *good, bad = manifest.jobs
    assert {job.state for job in good} == {State.DONE}
    assert bad.state is State.FAILED and bad.attempts == 2 and bad.error.startswith("Slurm job")
    found = contents(out)
    assert contents(here).items() <= found.items()
    assert all(name.startswith(("eve/", LOGS)) for name in found.keys() - contents(here).keys())


def test_without_slurm(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    for options, reason in (("timeout_min=3", "Slurm"), ("nonsense=3", "nonsense")):
        with pytest.raises(InputError, match=reason):
            SlurmPool(options, tmp_path, lambda work, progress: {})
