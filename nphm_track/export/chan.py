"""Nuke's channel files: ``head.chan``, the head before a camera that stands still, and ``camera.chan``, the other way
round.

A line a frame: frame, translation, rotation in degrees; of a camera, the vertical field of view in degrees besides.
Rotations are in Nuke's default order ZXY: R = Ry Rx Rz, so that neighbouring frames never jump by a turn. Lost frames
have no line, and Nuke interpolates over them. A channel file knows neither principal point nor distortion:
``export.json`` has them.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nphm_track.export.frames import present_rows
from nphm_track.export.manifest import write_manifest
from nphm_track.export.options import ExportOptions
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import Track
from nphm_track.tracking.run_folder import Run
from nphm_track.tracking.transforms import OPENGL_FROM_OPENCV

HEAD, CAMERA = "head.chan", "camera.chan"
FIRST = 1
"""Number of a video's first frame in Nuke."""


def write(run: Run, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write both files and the manifest into the folder ``target``."""
    track, rows = run.track, present_rows(run)
    numbers = frame_numbers(track)[rows]
    _write(target / HEAD, numbers, *options.head_pose(track.R[rows], track.t[rows]))
    R, t = options.extrinsics(track.R[rows], track.t[rows])
    field = 2 * np.degrees(np.arctan(track.image_size[1] / (2 * track.K[1, 1])))
    centres = -(t[:, None] @ R)[:, 0]
    _write(target / CAMERA, numbers, R.swapaxes(1, 2) @ OPENGL_FROM_OPENCV, centres, float(field))
    write_manifest(
        target, run, "chan", options, rotation_order="ZXY", world={HEAD: "camera-fixed", CAMERA: "head-fixed"}
    )


def frame_numbers(track: Track) -> NDArray[np.int64]:
    """Numbers [T] by which Nuke knows the frames: those that the images' names end in, or from 1 on."""
    ends = [re.search(r"(\d{1,9})$", Path(name).stem) for name in track.image.tolist()]
    numbers = np.array([int(end[1]) for end in ends if end], np.int64)
    if len(numbers) == len(track) and (np.diff(numbers) > 0).all():
        return numbers
    return track.frame + FIRST


def _write(
    path: Path, frames: NDArray[np.int64], R: NDArray[np.float64], t: NDArray[np.float64], field: float | None = None
) -> None:
    z, x, y = np.unwrap(Rotation.from_matrix(R).as_euler("zxy", degrees=True), axis=0, period=360).T
    values = np.column_stack([t, x, y, z, *([] if field is None else [np.full(len(t), field)])])
    lines = [" ".join([str(n), *(f"{v:.9f}" for v in row)]) for n, row in zip(frames, values.tolist(), strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
