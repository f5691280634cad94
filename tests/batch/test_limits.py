"""What workers may use, in made-up machines and containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from nphm_track.batch import limits

GB = 10**9


def machine(root: Path, cgroup: str, **files: int | str) -> Path:
    """A machine with 64 GB free. ``files`` are those of control groups, ``__`` for a slash."""
    for name, content in {
        "proc/meminfo": f"MemTotal: 99000000 kB\nMemAvailable: {64 * GB // 1024} kB\n",
        "proc/self/cgroup": cgroup,
        **{f"sys/fs/cgroup/{name.replace('__', '/')}": str(content) for name, content in files.items()},
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def free(root: Path) -> float:
    return round(limits.memory(root) / GB, 1)


@pytest.mark.parametrize("path", ["/", "/../../docker/ab", "/gone"])
def test_a_container_with_control_groups_of_version_2(tmp_path: Path, path: str) -> None:
    root = machine(tmp_path, f"0::{path}\n", **{"memory.max": 2 * GB, "memory.current": GB // 2})
    assert free(root) == 1.5
    (root / "sys/fs/cgroup/memory.stat").write_text(f"anon 5\ninactive_file {GB // 5}\nslab 3\n")
    assert free(root) == 1.7  # the kernel gives its file cache back
    (root / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert free(root) == 64
    (root / "sys/fs/cgroup/memory.high").write_text(str(GB))
    assert free(root) == 0.7


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    limits = {"memory.max": 16 * GB, "job__memory.max": 3 * GB, "job__memory.current": 4 * GB}
    assert free(machine(tmp_path, "0::/job/step\n", **limits, **{"job__step__memory.max": "max"})) == 0


@pytest.mark.parametrize("path", ["/", "/docker/ab"])  # the second as it is called outside the container
def test_a_container_with_control_groups_of_version_1(tmp_path: Path, path: str) -> None:
    files = {"memory__memory.limit_in_bytes": 2 * GB, "memory__memory.usage_in_bytes": GB}
    root = machine(tmp_path, f"9:cpu,cpuacct:/x\n4:memory:{path}\n0::/\n", **files)
    assert free(root) == 1
    (root / "sys/fs/cgroup/memory/memory.stat").write_text(f"cache 3\ntotal_inactive_file {GB // 2}\n")
    assert free(root) == 1.5
    (root / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text(str(2**63 - 4096))
    assert free(root) == 64


def test_systems_that_say_nothing(tmp_path: Path) -> None:
    assert limits.memory(tmp_path) == limits.PLENTY
    assert 0 < limits.memory() <= limits.PLENTY


@pytest.mark.parametrize(
    ("cgroup", "files", "count"),
    [
        ("0::/job/step\n", {"cpu.max": "max 100000", "job__cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("9:cpu,cpuacct:/ab\n0::/\n", {"cpu__cpu.cfs_quota_us": 300000, "cpu__cpu.cfs_period_us": 100000}, 3),
        ("9:cpu,cpuacct:/ab\n0::/\n", {"cpu__cpu.cfs_quota_us": -1, "cpu__cpu.cfs_period_us": 100000}, 8),
        ("", {}, 8),
    ],
)
def test_processors_are_those_that_a_container_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str, files: dict[str, int | str], count: int
) -> None:
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert limits.processors(machine(tmp_path, cgroup, **files)) == count
