"""Landmarks of every frame as CSV or JSON (the output's ending decides), pixels of the original frame, centres at 0.5.

``landmarks`` are the 478 observed points, ``landmarks_fit`` the fitted head's own 68 iBUG points, projected. Points a
frame does not have (none seen, or the head lost) are empty cells in CSV and null in JSON; every frame keeps its row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nphm_track.export.frames import image_name
from nphm_track.export.manifest import GENERATOR, camera
from nphm_track.export.options import ExportOptions
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import Status, Track
from nphm_track.tracking.run_folder import Run

DIGITS = 3


def write(run: Run, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write the file ``target``."""
    lines = _json(run.track) if target.suffix.lower() == ".json" else _csv(run.track)
    with open(target, "w", encoding="utf-8", newline="") as file:
        file.writelines(lines)


def _csv(track: Track) -> Iterator[str]:
    """frame, time, status, x0, y0, ..., fit_x0, fit_y0, ... under a comment line; ``image`` last where there is one."""
    observed = [f"{axis}{i}" for i in range(track.landmarks.shape[1]) for axis in "xy"]
    fitted = [f"fit_{axis}{i}" for i in range(track.landmarks_fit.shape[1]) for axis in "xy"]
    yield f"# {GENERATOR}\n"
    yield ",".join(["frame", "time", "status", *observed, *fitted, *(["image"] if len(track.image) else [])]) + "\n"
    for i in range(len(track)):
        points = np.concatenate([track.landmarks[i].ravel(), track.landmarks_fit[i].ravel()])
        cells = [f"{value:.{DIGITS}f}" if np.isfinite(value) else "" for value in points.tolist()]
        cells += ['"' + name.replace('"', '""') + '"' for name in image_name(track, i).values()]
        yield ",".join([str(track.frame[i]), f"{track.time[i]:.6f}", _status(track, i), *cells]) + "\n"


def _json(track: Track) -> Iterator[str]:
    """One frame a line."""
    yield f'{{"generator": "{GENERATOR}", "camera": {json.dumps(camera(track))},\n"frames": [\n'
    for i in range(len(track)):
        record = {
            "frame": int(track.frame[i]),
            "time": float(track.time[i]),
            "status": _status(track, i),
            **image_name(track, i),
            "landmarks": _points(track.landmarks[i]),
            "landmarks_fit": _points(track.landmarks_fit[i]),
        }
        yield json.dumps(record) + (",\n" if i + 1 < len(track) else "\n")
    yield "]}\n"


def _points(points: NDArray[np.float32]) -> list[list[float] | None] | None:
    """[[x, y], ...] with null for a point that is missing; null when all are."""
    rounded = points.astype(float).round(DIGITS).tolist()
    known = [isfinite(x) and isfinite(y) for x, y in rounded]
    return [point if is_known else None for point, is_known in zip(rounded, known, strict=True)] if any(known) else None


def _status(track: Track, row: int) -> str:
    return Status(int(track.status[row])).name.lower()
