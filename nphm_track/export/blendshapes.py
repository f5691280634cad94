"""Live Link Face CSV as the app writes it: timecode, 52 ARKit weights in Apple's order, rotations of head and eyes.

Conventions, read from takes of the app (``test_table_formats.py`` holds them against a real row):

- 61 values a row and the count 61; ten decimals. Left and right are the face's own. Weights are 0..1; ``TongueOut`` is
  not measured and 0.
- Angles are radians of R = Rx(pitch) Ry(-yaw) Rz(roll) about axes x to the face's own left, y up, z out of the face:
  yaw is positive when the face turns to its own *right*, pitch when it looks down, roll when its top tips to its own
  right.
- The timecode HH:MM:SS:FF.fff counts sixtieths of a second, whatever the rate of the clip: readers divide by 60.
- Some readers cut the fraction off, so that of two rows in one sixtieth one is lost: where clocks of whole milliseconds
  or of telephones put rows of 60 frames a second a little too close, the second is moved to the next sixtieth.
- Readers take every cell as a number. A frame without a face holds the last value (before the first face, the first);
  the file ``NAME_frames.csv`` beside it says which rows those are.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from nphm_track.conventions import ARKIT_BLENDSHAPES
from nphm_track.export.options import ExportOptions
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import Status, Track
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

ANGLES = ("Yaw", "Pitch", "Roll")
HEADER = (
    "Timecode",
    "BlendShapeCount",
    *(name[0].upper() + name[1:] for name in APPLE_ORDER),
    *(part + angle for part in ("Head", "LeftEye", "RightEye") for angle in ANGLES),
)

TIMECODE_RATE = 60
"""Frames in a second of the timecode, at any rate of the clip."""
NUDGE = 0.25
"""Sixtieths that a row may come late to have a whole frame of the timecode to itself."""

EYE_YAW, EYE_PITCH = 0.60, 0.55
"""Radians an eye turns for a weight of 1 of ``eyeLook*``; two takes of the app (7,839 rows): R2 0.998 and 0.99."""

Array = NDArray[np.float64]


def write(run: Run, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write the file ``target``."""
    track = run.track
    values = app_values(track)

    lines = [",".join(HEADER)]
    for time, row in zip(row_times(track.time), hold(values), strict=True):
        lines.append(",".join([timecode(time), str(len(row)), *(f"{value:.10f}" for value in row)]))
    target.write_text("\n".join(lines) + "\n", encoding="ascii")


def write_beside(run: Run, target: Path) -> None:
    """Write which rows of the export were seen: timecode, frame and time in the clip, and status of each, with its
    image's name where the clip is a folder of images.
    """
    track = run.track
    with open(target, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["Timecode", "Frame", "Seconds", "Status", *(["Image"] if len(track.image) else [])])
        rows = zip(row_times(track.time), track.frame, track.time, track.status, strict=True)
        for row, (shown, frame, seconds, status) in enumerate(rows):
            cells = [timecode(shown), frame, f"{seconds:.6f}", Status(status).name.lower()]
            table.writerow([*cells, *track.image[row : row + 1]])


def app_values(track: Track) -> Array:
    """What the app says of each row of a track [T, 61]; NaN in lost ones."""
    weights = apple_weights(arkit_weights(track))
    values = np.hstack([weights, head_angles(track.R), *eye_angles(track, weights)])
    values[track.status == Status.LOST] = np.nan
    return values


def arkit_weights(track: Track) -> NDArray[np.float32]:
    """Weights [T, 51] of ``ARKIT_BLENDSHAPES``: the head's or, of a run without them, the landmark network's."""
    return track.arkit if len(track.arkit) else track.blendshapes[:, 1:]


def apple_weights(weights51: NDArray[np.float32]) -> Array:
    """Weights [T, 51] of ``ARKIT_BLENDSHAPES`` as [T, 52] in ``APPLE_ORDER``, NaN included."""
    weights = np.zeros((len(weights51), len(APPLE_ORDER)))
    for column, name in enumerate(APPLE_ORDER[:-1]):  # tongueOut is not measured
        weights[:, column] = weights51[:, ARKIT_BLENDSHAPES.index(name)]
    weights[np.isnan(weights).any(1)] = np.nan
    return weights


def head_angles(R: ArrayLike) -> Array:
    """Yaw, pitch and roll [T, 3] of head poses [T, 3, 3] (head to camera, OpenCV axes); NaN where the pose is.

    All are 0 for a face that looks along the camera's axis.
    """
    return app_angles(OPENGL_FROM_OPENCV @ np.asarray(R, np.float64))


def eye_angles(track: Track, weights: Array) -> tuple[Array, Array]:
    """Yaw, pitch and roll [T, 3] of the left and the right eye in the head; NaN where not seen.

    As in the app's takes, an eye turns to the side and then up or down and does not roll about its own axis.

    Args:
        track: its gaze is used where the run has one.
        weights: [T, 52] in ``APPLE_ORDER``; say where the eyes look in a run without gaze.
    """
    turns = turns_of_gaze(track.gaze) if len(track.gaze) else turns_of_weights(weights)
    left, right = (app_angles(_rotations(turns[:, eye])) for eye in (0, 1))
    return left, right


def turns_of_gaze(gaze: ArrayLike) -> Array:
    """Angles [T, 2, 2] of gaze [T, 2, 3]: each eye to the face's own left and down, radians."""
    x, y, z = np.moveaxis(np.asarray(gaze, np.float64), -1, 0)
    return np.stack([np.arctan2(x, z), -np.arcsin(np.clip(y, -1, 1))], -1)


def turns_of_weights(weights: ArrayLike) -> Array:
    """Angles [T, 2, 2] of weights [T, 52] in ``APPLE_ORDER``: each eye to the face's own left and down, radians."""
    look = {
        name: np.asarray(weights, np.float64)[:, APPLE_ORDER.index(f"eyeLook{name}")]
        for name in (way + side for way in ("Out", "In", "Down", "Up") for side in ("Left", "Right"))
    }
    left = [EYE_YAW * (look["OutLeft"] - look["InLeft"]), EYE_PITCH * (look["DownLeft"] - look["UpLeft"])]
    right = [EYE_YAW * (look["InRight"] - look["OutRight"]), EYE_PITCH * (look["DownRight"] - look["UpRight"])]
    return np.stack([np.stack(left, -1), np.stack(right, -1)], 1)


def _rotations(turns: Array) -> Array:
    """Rotations [T, 3, 3] of an eye turned by angles [T, 2]; NaN where they are."""
    rotations = np.full((len(turns), 3, 3), np.nan)
    known = np.isfinite(turns).all(1)
    if known.any():
        rotations[known] = Rotation.from_euler("YX", turns[known]).as_matrix()
    return rotations


def app_angles(rotations: ArrayLike) -> Array:
    """Yaw, pitch and roll [T, 3] in the app's signs of rotations [T, 3, 3] about x left, y up, z out of the face."""
    rotations = np.asarray(rotations, np.float64)
    angles = np.full((len(rotations), 3), np.nan)
    known = np.isfinite(rotations).all((1, 2))
    if known.any():
        pitch, yaw, roll = Rotation.from_matrix(rotations[known]).as_euler("XYZ").T
        angles[known] = np.stack([-yaw, pitch, roll], 1)
    return angles


def hold(values: Array) -> Array:
    """Columns of [T, D] with each gap filled by the last value before it, a gap at the start by the first after it.

    A column without any value becomes 0.
    """
    rows = np.arange(len(values))[:, None]
    known = np.isfinite(values)
    last = np.maximum.accumulate(np.where(known, rows, -1))
    return np.where(known.any(0), np.take_along_axis(values, np.where(last < 0, known.argmax(0), last), 0), 0.0)


def row_times(times: ArrayLike) -> list[float]:
    """Rising times [T], seconds, each in a sixtieth of its own where ``NUDGE`` is enough for that."""
    out: list[float] = []
    last = -np.inf
    for code in np.asarray(times, np.float64) * TIMECODE_RATE:
        free = np.floor(last + 0.001) + 1  # timecodes are rounded to thousandths
        last = free if code < free <= code + NUDGE else max(code, last)
        out.append(float(last) / TIMECODE_RATE)
    return out


def timecode(time: float) -> str:
    """HH:MM:SS:FF.fff, in sixtieths, of a time in seconds (a clock that starts below 0 is shown from 0)."""
    thousandths = round(max(time, 0.0) * TIMECODE_RATE * 1000)
    seconds, rest = divmod(thousandths, TIMECODE_RATE * 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{rest / 1000:06.3f}"
