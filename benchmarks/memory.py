"""Peak memory of the whole job on clips of two lengths; it must not grow with the length.

A clip is looped to each of --seconds and tracked by ``nphm-track`` in a process of its own, whose peak resident memory
the system reports. The default, 180 lines and a coarse mesh, takes less time: what a frame leaves behind is as real
as in a large picture.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import av
import typer

from benchmarks.harness import Out, Report, records_table

COLUMNS = {"frames": "frames", "seconds it took": "seconds", "CPU seconds": "cpu_seconds", "peak MB": "peak_mb"}


def run(
    clip: Annotated[Path, typer.Option(help="A clip with a face in every frame.")],
    out: Out,
    seconds: Annotated[list[float], typer.Option(help="Length of a file; give it twice.")] = [20.0, 120.0],  # noqa: B006
    height: int = 180,
    limit: Annotated[float, typer.Option(help="MB that the longest file may take more than the first.")] = 300.0,
    option: Annotated[list[str], typer.Option(help="For nphm-track, as --option=--refine.")] = [],  # noqa: B006
) -> Report:
    """Tracks each of the files."""
    arguments = ["--mesh-resolution", "32", "--mesh-format", "npz"] if height <= 180 else []
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for length in seconds:
            looped = Path(scratch) / f"{length:g}.mp4"
            frames = loop(clip, looped, length, height)
            results.append({"frames": frames, **job(looped, out / f"{length:g}_run", [*arguments, *option])})
    growth = results[-1]["peak_mb"] - results[0]["peak_mb"]
    per_hour = growth / max(results[-1]["frames"] - results[0]["frames"], 1) * 30 * 3600
    verdict = f"Growth {growth:.0f} MB ({per_hour:.0f} MB an hour at 30 frames a second); the limit is {limit:g} MB."
    return Report({"files": results, "growth_mb": growth}, [records_table(COLUMNS, results), verdict], growth <= limit)


def loop(clip: Path, target: Path, seconds: float, height: int) -> int:
    """Write a video of ``height`` lines and so many seconds, forwards and again from the start; the frames of it."""
    frames = 0
    with av.open(str(target), "w") as output:
        rate: Any = None
        while rate is None or frames < seconds * rate:
            with av.open(str(clip)) as source:
                stream = source.streams.video[0]
                if rate is None:
                    rate = stream.average_rate or 25
                    encoder: Any = output.add_stream("libx264", rate=rate, options={"preset": "veryfast"})
                    encoder.width, encoder.height = round(stream.width * height / stream.height / 2) * 2, height
                    encoder.pix_fmt = "yuv420p"
                for frame in source.decode(stream):
                    if frames >= seconds * rate:
                        break
                    small = frame.reformat(encoder.width, encoder.height, "yuv420p")
                    small.pts, small.time_base, frames = frames, 1 / rate, frames + 1
                    output.mux(encoder.encode(small))
        output.mux(encoder.encode(None))
    return frames


def job(clip: Path, run_folder: Path, options: list[str]) -> dict[str, float]:
    """Track a file, and what that cost."""
    return cost("nphm_track", [str(clip), "-o", str(run_folder), "--overwrite", "--quiet", *options])


def cost(module: str, arguments: list[str]) -> dict[str, float]:
    """Run a module in a process of its own; this one stays small, for a child's peak starts from its parent's."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", module, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{module} {arguments[0]} failed with exit code {os.waitstatus_to_exitcode(status)}")
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024),
    }
