"""Gaze on clips of people who look into the camera: while the head turns, the eyes have to turn against it as far.

For each run folder, robust straight lines of gaze over the direction of the camera, both in head space: 1 is a right
slope, 0 a right offset.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from benchmarks.harness import Out, Report, table
from nphm_track._runtime import prepare_torch
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.rig import open_rig
from nphm_track.tracking.gaze import gaze_of
from nphm_track.tracking.records import Status, Track

ROUNDS = 6
HEADER = ("run", "frames", "head turns by, degrees", "slope across", "offset", "slope up", "offset", "off the camera")


def run(
    runs: Annotated[list[Path], typer.Option(help="A run folder, or one that has its track.npz.")], out: Out
) -> Report:
    """One row a run."""
    prepare_torch()
    model = load_head_model()
    rows = []
    for path in runs:
        track = Track.load(path / "track.npz")
        with torch.no_grad():
            gaze = gaze_of(open_rig(model, track.z_id).eyes, track)
        rows.append([path.name, *measured(track, gaze)])
    return Report({"rows": rows}, [table(HEADER, rows)])


def measured(track: Track, gaze: NDArray[np.floating]) -> list[float]:
    """The figures of ``HEADER`` for gaze [T, 2, 3]."""
    seen = track.status == Status.TRACKED
    camera = -np.einsum("tji,tj->ti", track.R[seen], track.t[seen])
    camera /= np.linalg.norm(camera, axis=1, keepdims=True)
    eyes = gaze[seen].mean(1)
    eyes /= np.linalg.norm(eyes, axis=1, keepdims=True)
    to, at = _angles(camera), _angles(eyes)
    lines = [value for k in range(2) for value in robust_line(to[:, k], at[:, k])]
    off = np.degrees(np.arccos(np.clip((camera * eyes).sum(1), -1, 1)))
    return [int(seen.sum()), float(np.ptp(np.quantile(to[:, 0], [0.05, 0.95]))), *lines, float(np.median(off))]


def robust_line(x: NDArray[np.floating], y: NDArray[np.floating]) -> tuple[float, float]:
    """Slope and offset of y over x without those far off it, such as glances aside."""
    kept = np.ones(len(x), bool)
    for _ in range(ROUNDS):
        slope, offset = np.polyfit(x[kept], y[kept], 1)
        off = np.abs(y - slope * x - offset)
        kept = off <= 2.5 * np.median(off) + 0.5
    return float(slope), float(offset)


def _angles(direction: NDArray[np.floating]) -> NDArray[np.float64]:
    """Degrees [T, 2] across and up of unit vectors [T, 3]."""
    x, y, z = np.asarray(direction, np.float64).T
    return np.degrees(np.stack([np.arctan2(x, z), np.arcsin(y)], 1))
