"""What every benchmark prints: the machine it ran on, tables, JSON."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """The machine and its speed now: other work on it shows in the matrix product."""
    import torch

    n = 1024
    a = torch.randn(n, n)
    (a @ a).sum().item()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - start)
    return {
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "matmul_gflops": round(2 * n**3 / best / 1e9),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def machine_line(facts: dict[str, Any]) -> str:
    return (
        f"{facts['cores']} cores, {facts['torch_threads']} torch threads, float32 matmul "
        f"{facts['matmul_gflops']} GFLOP/s, load {facts['load']}, Python {facts['python']}, torch {facts['torch']}"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table; floats keep three significant digits, None is a dash."""
    lines = [list(header), ["---"] * len(header), *([_text(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def save(folder: Path, name: str, facts: dict[str, Any], markdown: str) -> None:
    """Write ``<name>.json`` and ``<name>.md``, and print the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(markdown + "\n", encoding="utf-8")
    print(markdown)


def _text(value: Any) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
