"""How much memory there is for workers: of the machine, and of the container or job that this process runs in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PLENTY = 1e12


def available(root: Path = Path("/")) -> float:
    """Bytes that can be used before the system, or a limit of a control group, runs out; plenty where none is known.

    Docker, Kubernetes and Slurm limit memory by control groups (version 1 or 2), which ``/proc/meminfo`` does not know.
    Each group up to the root may have a limit; the file cache that the kernel gives back counts as free.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    return min([_of_machine(root), *(_of_group(folder) for folder in _groups(root))])


def _of_machine(root: Path) -> float:
    try:
        fields = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
        return float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return PLENTY


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups that this process's memory counts in, those that can be seen."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"  # version 1
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
