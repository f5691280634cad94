"""Steps as jobs of a Slurm cluster, by submitit: the session's folder and the clips are on storage that all see."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from nphm_track.batch.steps import PersonWork, Work
from nphm_track.batch.workers import Event, Step, StepProgress, do_step
from nphm_track.errors import InputError

LOCAL = "local"
LOGS = "slurm"
"""Folder in the session's that submitit keeps its jobs in."""
AT_ONCE = 64
"""Jobs that wait or run at a time by default."""
POLL = 0.2
"""Seconds between two looks at the jobs, at least."""


class SlurmPool:
    """A :class:`~nphm_track.batch.workers.Pool` of jobs, one a step.

    Args:
        options: of every job, as submitit calls them: ``slurm_partition=cpu,timeout_min=60``; ``local`` runs the jobs
            as processes of this machine.
        folder: the session's.
        step: what the jobs do; importable by name on every machine.
        threads: of each job.
        count: how many jobs at a time.
        gpus: give each job a GPU.

    Raises InputError when submitit is not installed, there is no Slurm, or it does not know an option.
    """

    def __init__(
        self, options: str, folder: Path, step: Step, *, threads: int = 1, count: int | None = None, gpus: bool = False
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            raise InputError(f"submitit is not usable ({error}); pip install 'nphm-track[slurm]'") from None
        cluster = LOCAL if options == LOCAL else "slurm"
        given = {} if cluster == LOCAL else job_options(options)
        try:
            executor = submitit.AutoExecutor(folder / LOGS, cluster=cluster)
            executor.update_parameters(**{"name": "nphm-track", "cpus_per_task": threads, **given})
            if gpus:
                executor.update_parameters(gpus_per_node=1)
        except (NameError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"no Slurm jobs with '{options}' ({' '.join(str(error).split())[:200]})") from None
        self._executor, self._step, self._threads = executor, step, threads
        self._failures = (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError, OSError)
        self._count = count or AT_ONCE
        self._jobs: dict[str, Any] = {}
        self._stopped = False

    def free(self) -> bool:
        return len(self._jobs) < self._count

    def submit(self, key: str, work: Work | PersonWork) -> None:
        self._jobs[key] = self._executor.submit(_do, self._step, work, self._threads)

    def events(self, timeout: float) -> list[Event]:
        end = time.monotonic() + timeout
        while not (over := [key for key, job in self._jobs.items() if job.done()]) and time.monotonic() < end:
            time.sleep(POLL)
        return [self._event(key, self._jobs.pop(key)) for key in over]

    def stop(self) -> None:
        """Jobs are cancelled; a step that is ended at any moment is gone on with later."""
        self._stopped = True
        for job in self._jobs.values():
            job.cancel(check=False)

    def close(self) -> None:
        self.stop()
        self._jobs = {}

    def _event(self, key: str, job: Any) -> Event:
        try:
            kind, data = job.result()
        except self._failures as error:
            if self._stopped:
                return Event(key, "stopped")
            text = " ".join(str(error).split())[:300]
            return Event(key, "lost", {"error": f"Slurm job {job.job_id}: {text}", "exit_code": 1, "disk_full": False})
        return Event(key, kind, data)


def job_options(text: str) -> dict[str, str | int]:
    """``"slurm_partition=cpu,timeout_min=60"`` as a dictionary. Raises InputError for what is not NAME=VALUE."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise InputError(
                f"--slurm {text}: options of jobs are NAME=VALUE, as in slurm_partition=cpu,timeout_min=60"
            )
    return {name: int(value) if value.isdecimal() else value for name, _, value in pairs}


def _do(step: Step, work: Work | PersonWork, threads: int) -> tuple[str, dict[str, Any]]:
    """A step inside a job; the numerical libraries are not loaded yet."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["OMP_WAIT_POLICY"] = "passive"
    return do_step(step, work, StepProgress(lambda kind, data: None, lambda: False))
