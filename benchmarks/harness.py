"""What all benchmarks share: options, tables, the machine, reports. Importing it does not load torch."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

Out = Annotated[Path, typer.Option(help="Folder of results and runs.")]
Videos = Annotated[Path, typer.Option(help="Folder of clips.")]
ScanError = Annotated[Path, typer.Option(help="Folder with cases.json and the scans it names.")]
Ict = Annotated[Path, typer.Option(help="Folder of ICT-FaceKit light.")]
End = Annotated[float | None, typer.Option(help="Seconds of each clip; all of it when left out.")]
Only = Annotated[list[str] | None, typer.Option(help="Beginning of the names to run; may be given again.")]


@dataclass(frozen=True)
class Report:
    """What a benchmark found.

    Attributes:
        facts: for programs; written as JSON.
        parts: for people: paragraphs and tables in markdown.
        passed: False when what was checked does not hold.
    """

    facts: Mapping[str, Any]
    parts: Sequence[str]
    passed: bool = True

    def save(self, folder: Path, name: str) -> None:
        """Write ``<name>.json`` and ``<name>.md``, and print the latter."""
        about = machine()
        text = "\n\n".join([machine_line(about), *(part for part in self.parts if part)])
        text = text.encode(errors="backslashreplace").decode()  # file names can be anything
        facts = {"machine": about, "passed": self.passed, **self.facts}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(facts, indent=1, default=str) + "\n", encoding="utf-8")
        (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")
        print(text)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table; floats keep three significant digits, None and NaN are dashes."""
    lines = [list(header), ["---"] * len(header), *([_text(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def records_table(columns: Mapping[str, str], records: Sequence[Mapping[str, Any]]) -> str:
    """A table of records; ``columns`` maps each title to the key of its values."""
    return table(list(columns), [[record.get(key) for key in columns.values()] for record in records])


def _text(value: Any) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def machine() -> dict[str, Any]:
    """The machine and its speed now: other work on it shows in the matrix product."""
    import torch

    n = 1024
    a = torch.randn(n, n)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        (a @ a).sum().item()
        times.append(time.perf_counter() - start)
    return {
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "matmul_gflops": round(2 * n**3 / min(times) / 1e9),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def machine_line(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts['cores']} cores, {facts['torch_threads']} torch threads, float32 matmul "
        f"{facts['matmul_gflops']} GFLOP/s, load {facts['load']}, Python {facts['python']}, torch {facts['torch']}"
    )
