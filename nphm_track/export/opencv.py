"""OpenCV FileStorage YAML: intrinsics, distortion and the extrinsics of every frame with a head.

Pixel centres are OpenCV's, at whole numbers: the principal point is half a pixel less than in ``track.npz``. World is
the head-fixed one; x_cam = R(rvec) x_world + tvec, ``rvec`` in radians, ``tvec`` in the unit asked for. Row i of the
matrices belongs to ``frame[i]``, and to the file ``image[i]`` of a folder of images; lost frames have no row.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

from nphm_track.export.frames import present_rows
from nphm_track.export.manifest import GENERATOR
from nphm_track.export.options import ExportOptions
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.run_folder import Run

HALF_PIXEL = 0.5


def write(run: Run, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write the file ``target``."""
    track, rows = run.track, present_rows(run)
    R, t = options.extrinsics(track.R[rows], track.t[rows])
    K = track.K.copy()
    K[:2, 2] -= HALF_PIXEL
    width, height = track.image_size
    text = [
        "%YAML:1.0",
        "---",
        f"# {GENERATOR}: x_cam = R(rvec) x_world + tvec, OpenCV camera axes, head-fixed world",
        f"image_width: {width}",
        f"image_height: {height}",
        f'unit: "{options.unit}"',
        f'up: "{options.up}"',
        _matrix("camera_matrix", K),
        _matrix("distortion_coefficients", track.distortion[None]),
        _matrix("frame", track.frame[rows, None], integer=True),
        _matrix("time", track.time[rows, None]),
        _matrix("rvec", Rotation.from_matrix(R).as_rotvec()),
        _matrix("tvec", t),
    ]
    if len(track.image):
        text += ["image:", *(f"   - {json.dumps(name, ensure_ascii=False)}" for name in track.image[rows].tolist())]
    target.write_text("\n".join(text) + "\n", encoding="utf-8")


def _matrix(name: str, values: ArrayLike, *, integer: bool = False) -> str:
    """A two-dimensional array in OpenCV's notation; its parser wants a decimal point or an exponent in a double."""
    array = np.asarray(values)
    numbers = [str(int(v)) if integer else repr(float(v)) for v in array.ravel()]
    lines = [", ".join(numbers[i : i + 4]) for i in range(0, len(numbers), 4)]
    body = ",\n       ".join(lines)
    return (
        f"{name}: !!opencv-matrix\n   rows: {array.shape[0]}\n   cols: {array.shape[1]}\n"
        f"   dt: {'i' if integer else 'd'}\n   data: [ {body} ]"
    )
