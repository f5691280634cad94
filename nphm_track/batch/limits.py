"""How much memory and how many processors there are for workers: of the machine, and of the container or job that this
process runs in.

Docker, Kubernetes and Slurm limit both by control groups (version 1 or 2), which neither ``/proc/meminfo`` nor the
count of processors knows. Each group up to the root may have a limit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PLENTY = 1e12


def memory(root: Path = Path("/")) -> float:
    """Bytes that can be used before the system, or a limit of a control group, runs out; plenty where none is known.

    The file cache that the kernel gives back counts as free.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    return min([_of_machine(root), *(_of_group(folder) for folder in _groups(root, "memory"))])


def processors(root: Path = Path("/")) -> int:
    """Processors that this process may use, at least one: those it is bound to, or the time that its groups are given.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *(int(_share(folder)) for folder in _groups(root, "cpu"))]))


def _of_machine(root: Path) -> float:
    try:
        fields = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
        return float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return PLENTY


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process's memory or time counts in, those that can be seen."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controller  # version 1
        elif number == "0" and not controllers:
            mount = root / "sys/fs/cgroup"  # version 2
        else:
            continue
        inner = Path(path.strip("/"))
        parts = () if ".." in inner.parts else inner.parts  # of a group above what this container sees
        yield from (mount.joinpath(*parts[:depth]) for depth in range(len(parts) + 1))


def _of_group(folder: Path) -> float:
    """Bytes that a group may still use."""
    limits = [_number(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
    known = [limit for limit in limits if limit is not None]
    used = next(filter(None, (_number(folder / name) for name in ("memory.current", "memory.usage_in_bytes"))), 0.0)
    return max(0.0, min(known) - used + _cache(folder)) if known else PLENTY


def _share(folder: Path) -> float:
    """Processors whose time a group is given in each period; plenty without a limit."""
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")  # version 1
    with suppress(OSError, ValueError):  # "max 100000": no limit
        quota, period = map(float, (folder / "cpu.max").read_text().split())  # version 2
    return quota / period if quota and period and quota > 0 else PLENTY


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):  # "max": no limit
        return None


def _cache(folder: Path) -> float:
    """Bytes of files in memory that nobody has touched of late."""
    try:
        fields = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return float(fields.get("total_inactive_file", fields.get("inactive_file", 0)))
    except (OSError, ValueError):
        return 0.0
