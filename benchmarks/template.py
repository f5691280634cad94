"""The template: how near it lies to the network's surface, and its rig to the network's own deformation.

For each run folder: distance from the surface in the face, away from lids and lips; distance of the skin in frames from
where inverting the deformation puts it, at vertices more than ``CLEAR`` from lips and lids; seconds for the rig and
milliseconds a frame.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.harness import Out, Report, table
from nphm_track._runtime import prepare_torch
from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.inverse import PosedPoints, pose_points
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.rig import Rig
from nphm_track.heads.template import load_template
from nphm_track.heads.wrap import wrap
from nphm_track.tracking.records import Status, Track
from nphm_track.tracking.surface import BLOCK, RiggedFrames

CLEAR = 0.012
"""Metres along the skin."""
HEADER = (
    "run", "surface mean, mm", "99 %", "rig to deformation mean, mm", "99 %", "99.9 %", "rig, s", "correctives, s",
    "frame, ms",
)  # fmt: skip


def run(
    runs: Annotated[list[Path], typer.Option(help="A run folder, or one that has its track.npz.")],
    out: Out,
    frames: Annotated[int, typer.Option(help="Frames of each clip that are posed exactly.")] = 10,
) -> Report:
    """One row a run."""
    prepare_torch()
    rows = [[path.name, *measured(Track.load(path / "track.npz"), frames)] for path in runs]
    return Report({"rows": rows}, [table(HEADER, rows)])


def measured(track: Track, frames: int) -> list[float]:
    """The figures of ``HEADER``."""
    template, model = load_template(), load_head_model()
    z_id = torch.from_numpy(track.z_id)
    begun = time.perf_counter()
    head = wrap(template, model, z_id)
    rig = Rig.of(template, head)
    made = time.perf_counter() - begun

    begun = time.perf_counter()
    vertices_of = RiggedFrames(model, rig, track)
    learned = time.perf_counter() - begun

    clear = template.clear_skin(CLEAR)
    off = np.abs(head.distance[clear[template.trust[clear] > 0.99]]) * 1000
    present = np.flatnonzero(track.status != Status.LOST)
    chosen = present[np.unique(np.linspace(0, len(present) - 1, frames).astype(int))]
    rest = torch.from_numpy(rig.neutral[clear] / MODEL_UNIT)
    eye = torch.eye(3).expand(len(rest), 3, 3)
    away, seconds = [], 0.0
    for row in chosen:
        begun = time.perf_counter()
        posed = vertices_of(int(row))[clear]
        seconds += time.perf_counter() - begun
        start = PosedPoints(torch.from_numpy(posed / MODEL_UNIT), eye, torch.zeros(len(rest)))
        z_ex = torch.from_numpy(np.array(track.z_ex[row]))
        exact = pose_points(model, rest, z_id, z_ex, warm=start, tolerance=1e-4).points.numpy() * MODEL_UNIT
        away.append(np.linalg.norm(exact - posed, axis=1) * 1000)
    carried = np.isin(present // BLOCK, chosen // BLOCK).sum()
    distance = np.concatenate(away)
    figures = (off.mean(), np.quantile(off, 0.99), distance.mean(), *np.quantile(distance, [0.99, 0.999]))
    return [*map(float, figures), made, learned, 1000 * seconds / carried]
