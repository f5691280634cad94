"""Where the time of a run goes, by the standard library's profiler: functions with most time of their own.

The profiler sees this thread alone and slows Python code down more than networks; the stages' seconds are those of the
same run.
"""

from __future__ import annotations

import cProfile
import pstats
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness import End, Out, Report, table
from nphm_track._runtime import prepare_torch
from nphm_track.tracking.pipeline import track


def run(
    clip: Annotated[Path, typer.Option(help="A clip or an image.")], out: Out, end: End = None, refine: bool = False,
    top: Annotated[int, typer.Option(help="Functions to show.")] = 40,
) -> Report:  # fmt: skip
    """One fresh run; ``profile.pstats`` is kept for other viewers."""
    prepare_torch()
    out.mkdir(parents=True, exist_ok=True)
    profiler = cProfile.Profile()
    found = profiler.runcall(track, clip, out / "run", end=end, refine=refine, overwrite=True)
    profiler.dump_stats(out / "profile.pstats")
    stats = pstats.Stats(profiler).get_stats_profile()
    functions = sorted(stats.func_profiles.items(), key=lambda item: -item[1].tottime)[:top]
    frames = len(found.track)
    rows: list[list[object]] = []
    for name, f in functions:
        place = f"{Path(f.file_name).name}:{f.line_number} {name}"
        rows.append([place, 1e3 * f.tottime / frames, 1e3 * f.cumtime / frames, f.ncalls])
    stages = [[name, 1e3 * seconds / frames] for name, seconds in found.info.timings.items()]
    head = f"{clip.name}, {frames} frames in {stats.total_tt:.1f} s: {frames / stats.total_tt:.2f} frames/s"
    parts = [head, table(["stage", "ms a frame"], stages)]
    parts.append(table(["function", "own ms a frame", "with what it calls", "calls"], rows))
    return Report({"frames": frames, "seconds": stats.total_tt, "stages": found.info.timings}, parts)
