"""How fast the whole job is, by size and length of a clip: frames a second, CPU time, cores used, memory, stages.

A clip is looped to each of --seconds at each of --height lines and tracked by ``nphm-track`` in a process of its own.
"beyond the first" is what a further frame costs: the longest clip less the shortest, without what every run costs once.
With --landmarker, Google's ``face_landmarker.task``, the same frames go through its networks alone in the same run, and
"times the landmarker" is the CPU time of the job over theirs. To be run on a machine that does nothing else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness import Out, Report, records_table, table
from benchmarks.memory import cost, job, loop
from nphm_track.tracking.run_folder import read_run

COLUMNS = {
    "lines": "height", "frames": "frames", "seconds": "seconds", "frames/s": "rate", "CPU ms a frame": "cpu_ms",
    "cores used": "cores", "peak MB": "peak_mb", "landmarker alone, CPU ms": "landmarker_ms",
    "times the landmarker": "ratio",
}  # fmt: skip


def run(
    clip: Annotated[Path, typer.Option(help="A clip with a face in every frame.")],
    out: Out,
    seconds: Annotated[list[float], typer.Option(help="Length of a clip; give it twice.")] = [10.0, 60.0],  # noqa: B006
    height: Annotated[list[int], typer.Option(help="Lines of the picture.")] = [360, 720, 1080, 2160],  # noqa: B006
    landmarker: Annotated[
        Path | None, typer.Option(help="Google's face_landmarker.task, to be measured beside.")
    ] = None,
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
                spent = {"height": lines, "frames": counts[length], **job(path, folder, option)}
                if landmarker is not None:
                    alone = cost("benchmarks.landmarker", [str(landmarker), str(path)])
                    spent["landmarker_seconds"] = alone["cpu_seconds"]
                results.append(_rates(spent))
                info = read_run(folder).info
                per_frame = [
                    {stage: 1e3 * t / counts[length] for stage, t in times.items()}
                    for times in (info.cpu_seconds, info.timings)
                ]
                stages += [[lines, counts[length], s, per_frame[0].get(s), wall] for s, wall in per_frame[1].items()]
            last, first = results[-1], results[-len(files)]
            more = {k: v - first[k] for k, v in last.items() if k == "frames" or k.endswith("seconds")}
            if more["frames"]:
                beyond.append(_rates({"height": lines, "peak_mb": last["peak_mb"], **more}))
    parts = [records_table(COLUMNS, results), "beyond the first:", records_table(COLUMNS, beyond)]
    parts.append(table(["lines", "frames", "stage", "CPU ms a frame", "ms a frame"], stages))
    return Report({"runs": results, "beyond": beyond}, parts)


def _rates(spent: Mapping[str, float]) -> dict[str, float]:
    rates = {
        **spent,
        "rate": spent["frames"] / spent["seconds"],
        "cpu_ms": 1e3 * spent["cpu_seconds"] / spent["frames"],
        "cores": spent["cpu_seconds"] / spent["seconds"],
    }
    if "landmarker_seconds" in spent:
        rates["landmarker_ms"] = 1e3 * spent["landmarker_seconds"] / spent["frames"]
        rates["ratio"] = spent["cpu_seconds"] / spent["landmarker_seconds"]
    return rates
