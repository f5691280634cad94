"""Steps on a Ray cluster: the session's folder and the clips are on storage that all its machines see."""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from typing import Any

from nphm_track.batch.steps import PersonWork, Work
from nphm_track.batch.workers import Event, Step, StepProgress, do_step
from nphm_track.errors import InputError

LOCAL = "local"


class RayPool:
    """A :class:`~nphm_track.batch.workers.Pool` of Ray tasks.

    Args:
        address: of a running cluster (``auto``, ``ray://host:10001``), or ``local`` to start one on this machine.
        step: what the tasks do; importable by name on every machine.
        threads: of each task.
        count: how many tasks at a time; default as many as the cluster has cores (GPUs, when ``gpus``) for.
        gpus: give each task a GPU.

    Raises InputError when Ray is not installed or the cluster cannot be reached.
    """

    def __init__(
        self, address: str, step: Step, *, threads: int = 1, count: int | None = None, gpus: bool = False
    ) -> None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError as error:
            raise InputError(f"Ray is not usable ({error}); pip install 'nphm-track[cluster]'") from None
        self._ray = ray
        variables = {
            name: str(threads)
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
        }
        environment = {"env_vars": variables | {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": _search_path()}}
        options: dict[str, Any] = {"runtime_env": environment, "log_to_driver": False, "include_dashboard": False}
        if address == LOCAL:
            options |= {"num_cpus": max(count or 0, os.cpu_count() or 1) * threads}
        else:
            _check_reachable(address)
            del options["include_dashboard"]
            options |= {"address": address}
        try:
            ray.init(**options)
        except Exception as error:  # Ray raises bare ones, too, when a machine is too busy to start it
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"no Ray cluster at {address} ({reason or type(error).__name__})") from None
        self._task = ray.remote(num_cpus=threads, num_gpus=int(gpus), max_retries=0)(_do)
        resources = ray.cluster_resources()
        self._count = count or max(1, int(resources.get("GPU", 1) if gpus else resources.get("CPU", 1) // threads))
        self._step = step
        self._keys: dict[Any, str] = {}
        self._stopped = False

    def free(self) -> bool:
        return len(self._keys) < self._count

    def submit(self, key: str, work: Work | PersonWork) -> None:
        self._keys[self._task.remote(self._step, work)] = key

    def events(self, timeout: float) -> list[Event]:
        if not self._keys:
            time.sleep(timeout)
            return []
        ready, _ = self._ray.wait(list(self._keys), num_returns=1, timeout=timeout)
        return [self._event(reference, self._keys.pop(reference)) for reference in ready]

    def stop(self) -> None:
        """Ray raises KeyboardInterrupt in the tasks, which save where they are."""
        self._stopped = True
        for reference in self._keys:
            self._ray.cancel(reference, force=False, recursive=False)

    def close(self) -> None:
        with suppress(Exception):  # the cluster may be gone
            for reference in self._keys:
                self._ray.cancel(reference, force=True, recursive=False)
        self._keys = {}
        self._ray.shutdown()

    def _event(self, reference: Any, key: str) -> Event:
        try:
            kind, data = self._ray.get(reference)
        except self._ray.exceptions.TaskCancelledError:
            return Event(key, "stopped")
        except self._ray.exceptions.RayError as error:  # the process or its machine died
            if self._stopped:
                return Event(key, "stopped")
            text = " ".join(str(error).split())[:300]
            return Event(key, "lost", {"error": f"Ray: {text}", "exit_code": 1, "disk_full": False})
        return Event(key, kind, data)


def _do(step: Step, work: Work | PersonWork) -> tuple[str, dict[str, Any]]:
    """A step inside a Ray task, which is interrupted by Ray itself."""
    return do_step(step, work, StepProgress(lambda kind, data: None, lambda: False))


def _check_reachable(address: str) -> None:
    """Raises InputError when nobody listens at ``host:port``; Ray itself takes minutes to say so."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return  # "auto", a name Ray knows
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"no Ray cluster at {address} ({error})") from None


def _search_path() -> str:
    """Where the steps are imported from, also in a checkout that is not installed."""
    return os.pathsep.join(path for path in sys.path if path)
