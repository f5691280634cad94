"""Whether tracked expressions follow the picture: openings, widths and heights of the head's own landmarks, by clip.

The head's landmarks are compared with the observed ones (``nphm_track.evaluation.following``): correlation and slope
over the tracked frames, dashes where the picture's does not move. Jitter is the landmarks' RMS acceleration, similarity
removed, in eye distances a second squared; the observed landmarks' own stands beside it. A blink's shift is how
much further a full one puts the head (``evaluate leakage``). With --refine, refined runs.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.data import find_clips
from benchmarks.harness import End, Only, Out, Report, Videos, table
from nphm_track._runtime import prepare_torch
from nphm_track.errors import NphmTrackError
from nphm_track.evaluation import leakage
from nphm_track.evaluation.video import compared, video_quality
from nphm_track.tracking.pipeline import track
from nphm_track.tracking.progress import NullProgress
from nphm_track.tracking.run_folder import Run


def run(videos: Videos, out: Out, only: Only = None, end: End = None, refine: bool = False) -> Report:
    """Each clip, and the means of those that move."""
    prepare_torch()
    found: dict[str, dict[str, Any]] = {}
    failed = []
    for clip in find_clips(videos, only):
        try:
            done = track(
                clip, out / "runs" / clip.stem, end=end, refine=refine, meshes=False, overlay=False, overwrite=True
            )
            found[clip.stem] = measured(done)
        except NphmTrackError as error:
            failed.append(f"{clip.stem}: {error}")
            continue
        print(clip.stem, found[clip.stem], flush=True)
    parts = ["Correlation, slope.", as_table(found), *failed]
    return Report({"end": end, "refine": refine, "clips": found}, parts, not failed)


def measured(done: Run) -> dict[str, Any]:
    quality = video_quality(done, NullProgress())
    following = {name: asdict(found) for name, found in compared(done)["head, observed"].items()}
    shift = leakage.measure(done.track)["per_full_weight"]["blink"]["z_mm"]
    numbers = {"jitter": quality.landmark_jitter, "observed": quality.observed_jitter}
    return {"following": following, **numbers, "error %": quality.landmark_error_percent, "blink shift, mm": shift}


def as_table(found: dict[str, dict[str, Any]]) -> str:
    """A row for each clip, and their means."""
    names = list(dict.fromkeys(name for f in found.values() for name in f["following"]))
    numbers = ["jitter", "observed", "error %", "blink shift, mm"]
    rows: list[list[Any]] = []
    for clip, f in found.items():
        rows.append([clip, *(told([f["following"][n]]) for n in names), *(f[k] for k in numbers)])
    means = [told([f["following"][n] for f in found.values()]) for n in names]
    rows.append(["mean", *means, *(float(np.mean([f[k] for f in found.values()])) for k in numbers)])
    return table(["clip", *names, *numbers], rows)


def told(of: list[dict[str, float]]) -> str:
    """Mean correlation and slope of those that move."""
    moving = [(one["correlation"], one["slope"]) for one in of if np.isfinite(one["slope"])]
    return "{:.3f}, {:.2f}".format(*np.mean(moving, 0)) if moving else "-"
