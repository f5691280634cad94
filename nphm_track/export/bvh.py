"""BVH: the head's motion before a camera that stands still, as a skeleton of one joint.

BVH knows neither times nor gaps: motion is sampled at the clip's nominal rate, and the last pose is held while the head
is lost. Rotations are R = Rz Rx Ry, degrees.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from nphm_track.export.frames import frame_rate, present_rows
from nphm_track.export.options import ExportOptions
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import Status
from nphm_track.tracking.run_folder import Run

JOINT = "nphm_head"
LENGTH = 0.1
"""Of the joint's bone, along which its top is, metres."""


def write(run: Run, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write the file ``target``."""
    track, rows, rate = run.track, present_rows(run), frame_rate(run)
    R, t = options.head_pose(track.R[rows], track.t[rows])
    clock = track.time - track.time[0]
    ticks = np.arange(round(float(clock[-1]) * rate) + 1) / rate
    # A tick belongs to the row that is nearest, or was last; where none with a head follows, the pose is held.
    lost = track.status == Status.LOST
    row = np.searchsorted(clock, ticks + 0.5 / rate, side="right") - 1
    held = np.maximum.accumulate(np.where(lost, rows[0], np.arange(len(track))))[row]
    alone = lost[np.minimum(held + 1, len(track) - 1)]
    moments = np.where(alone, clock[held], ticks).clip(clock[rows[0]], clock[rows[-1]])

    position = np.column_stack([np.interp(moments, clock[rows], t[:, axis]) for axis in range(3)])
    poses = Rotation.from_matrix(R)
    turned = Slerp(clock[rows], poses)(moments) if len(rows) > 1 else poses[np.zeros(len(ticks), int)]
    z, x, y = np.unwrap(turned.as_euler("ZXY", degrees=True), axis=0, period=360).T
    top = options.points([0.0, LENGTH, 0.0])
    lines = [
        "HIERARCHY", f"ROOT {JOINT}", "{", "\tOFFSET 0 0 0",
        "\tCHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation",
        "\tEnd Site", "\t{", "\t\tOFFSET " + _numbers(top), "\t}", "}",
        "MOTION", f"Frames: {len(ticks)}", f"Frame Time: {1 / rate:.9f}",
        *(_numbers(values) for values in np.column_stack([position, z, x, y])),
    ]  # fmt: skip
    target.write_text("\n".join(lines) + "\n", encoding="ascii")


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.6f}" for value in values.tolist())
