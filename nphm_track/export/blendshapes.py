"""Blendshape CSV in the layout of Live Link Face: timecode, 52 ARKit weights in Apple's order, head rotation.

Left and right are the face's own. Weights are 0..1; ``TongueOut`` is not measured and 0. ``HeadYaw``, ``HeadPitch`` and
``HeadRoll`` are radians, 0 when the face looks straight along the camera's axis: yaw is positive when the face turns to
its own left, pitch when it looks down, roll when its top tips to its own right; R = Ry(yaw) Rx(pitch) Rz(roll) about
axes x right, y up, z to the camera. The timecode HH:MM:SS:FF.fff is the frame's timestamp at the clip's nominal rate,
with thousandths of a frame. A lost frame keeps its row with ``BlendShapeCount`` 0 and empty cells, as does whatever was
not measured in a frame that was filled in; ``BlendShapeCount`` is the number of cells that are not empty.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from nphm_track.conventions import BLENDSHAPE_NAMES
from nphm_track.export.frames import frame_rate
from nphm_track.export.options import ExportOptions
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import Status
from nphm_track.tracking.run_folder import Run
from nphm_track.tracking.transforms import OPENGL_FROM_OPENCV

_EYE = ("eyeBlink", "eyeLookDown", "eyeLookIn", "eyeLookOut", "eyeLookUp", "eyeSquint", "eyeWide")
APPLE_ORDER = (
    *(name + "Left" for name in _EYE), *(name + "Right" for name in _EYE),
    "jawForward", "jawRight", "jawLeft", "jawOpen", "mouthClose", "mouthFunnel", "mouthPucker", "mouthRight",
    "mouthLeft", "mouthSmileLeft", "mouthSmileRight", "mouthFrownLeft", "mouthFrownRight", "mouthDimpleLeft",
    "mouthDimpleRight", "mouthStretchLeft", "mouthStretchRight", "mouthRollLower", "mouthRollUpper",
    "mouthShrugLower", "mouthShrugUpper", "mouthPressLeft", "mouthPressRight", "mouthLowerDownLeft",
    "mouthLowerDownRight", "mouthUpperUpLeft", "mouthUpperUpRight", "browDownLeft", "browDownRight", "browInnerUp",
    "browOuterUpLeft", "browOuterUpRight", "cheekPuff", "cheekSquintLeft", "cheekSquintRight", "noseSneerLeft",
    "noseSneerRight", "tongueOut",
)  # fmt: skip
"""The 52 ARKit names in the order Live Link Face writes them."""

HEADER = (
    "Timecode",
    "BlendShapeCount",
    *(n[0].upper() + n[1:] for n in APPLE_ORDER),
    "HeadYaw",
    "HeadPitch",
    "HeadRoll",
)


def write(run: Run, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write the file ``target``."""
    track, rate = run.track, timecode_rate(frame_rate(run))
    values = np.hstack([apple_weights(track.blendshapes), head_angles(track.R)])
    values[track.status == Status.LOST] = np.nan
    lines = [",".join(HEADER)]
    for time, row in zip(track.time, values, strict=True):
        cells = [f"{value:.9f}" if np.isfinite(value) else "" for value in row]
        lines.append(",".join([timecode(float(time), rate), str(np.count_nonzero(np.isfinite(row))), *cells]))
    target.write_text("\n".join(lines) + "\n", encoding="ascii")


def apple_weights(blendshapes: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores [T, 52] in the order of ``BLENDSHAPE_NAMES`` as weights [T, 52] in ``APPLE_ORDER``."""
    weights = np.zeros((len(blendshapes), len(APPLE_ORDER)))
    for column, name in enumerate(APPLE_ORDER[:-1]):  # tongueOut is the one the network does not score
        weights[:, column] = blendshapes[:, BLENDSHAPE_NAMES.index(name)]
    weights[np.isnan(weights).any(1)] = np.nan
    return weights


def head_angles(R: ArrayLike) -> NDArray[np.float64]:
    """Yaw, pitch and roll [T, 3] in radians of head poses [T, 3, 3] (OpenCV axes); NaN where the pose is."""
    facing = OPENGL_FROM_OPENCV @ np.asarray(R, np.float64)
    known = np.isfinite(facing).all((1, 2))
    angles = np.full((len(facing), 3), np.nan)
    if known.any():
        angles[known] = Rotation.from_matrix(facing[known]).as_euler("YXZ")
    return angles


def timecode_rate(fps: float) -> int:
    """Whole frames a timecode second is divided into."""
    return max(1, round(fps))


def timecode(time: float, rate: int) -> str:
    """HH:MM:SS:FF.fff of a time in seconds (a clock that starts below 0 is shown from 0)."""
    thousandths = round(max(time, 0.0) * rate * 1000)
    seconds, rest = divmod(thousandths, rate * 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{rest / 1000:06.3f}"
