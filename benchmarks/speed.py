"""How fast the whole job is, by size and length of a clip: frames a second, CPU time, cores used, memory, stages.

A clip is looped to each of --seconds at each of --height lines and tracked by ``nphm-track`` in a process of its own.
"beyond the first" is what a further frame costs: the longest clip less the shortest, without what every run costs once.
To be run on a machine that does nothing else.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness import Out, Report, records_table, table
from benchmarks.memory import job, loop
from nphm_track.tracking.run_folder import read_run

COLUMNS = {
    "lines": "height", "frames": "frames", "seconds": "seconds", "frames/s": "rate", "CPU ms a frame": "cpu_ms",
    "cores used": "cores", "peak MB": "peak_mb",
}  # fmt: skip


def run(
    clip: Annotated[Path, typer.Option(help="A clip with a face in every frame.")],
    out: Out,
    seconds: Annotated[list[float], typer.Option(help="Length of a clip; give it twice.")] = [10.0, 60.0],  # noqa: B006
    height: Annotated[list[int], typer.Option(help="Lines of the picture.")] = [360],  # noqa: B006
    option: Annotated[list[str], typer.Option(help="For nphm-track, as --option=--refine.")] = [],  # noqa: B006
) -> Report:
    """Tracks every clip once, after one that is not counted: compiled code is kept from then on."""
    results: list[dict[str, float]] = []
    beyond: list[dict[str, float]] = []
    stages: list[list[object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for lines in height:
            files = {length: Path(scratch) / f"{lines}_{length:g}.mp4" for length in sorted(seconds)}
            counts = {length: loop(clip, path, length, lines) for length, path in files.items()}
            if not results:
                job(files[min(files)], out / "warm_up", option)
            for length, path in files.items():
                folder = out / f"{lines}_{length:g}"
                spent = job(path, folder, option)
                results.append(_rates({"height": lines, "frames": counts[length], **spent}))
                per_frame = {k: 1e3 * v / counts[length] for k, v in read_run(folder).info.timings.items()}
                stages.append([lines, counts[length], *per_frame.values()])
            more = {k: results[-1][k] - results[-len(files)][k] for k in ("frames", "seconds", "cpu_seconds")}
            if more["frames"]:
                beyond.append(_rates({"height": lines, "peak_mb": results[-1]["peak_mb"], **more}))
    parts = [records_table(COLUMNS, results), "beyond the first:", records_table(COLUMNS, beyond)]
    parts.append(table(["lines", "frames", *(f"{name}, ms a frame" for name in per_frame)], stages))
    return Report({"runs": results, "beyond": beyond}, parts)


def _rates(spent: dict[str, float]) -> dict[str, float]:
    return {
        **spent,
        "rate": spent["frames"] / spent["seconds"],
        "cpu_ms": 1e3 * spent["cpu_seconds"] / spent["frames"],
        "cores": spent["cpu_seconds"] / spent["seconds"],
    }
