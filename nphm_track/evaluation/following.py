"""How well a tracked head's expression follows the picture: openings, widths and heights of its own landmarks.

Of each frame's iBUG-68 points, moved onto their mean shape by a similarity of nose and eye corners, a few distances
are taken: how far the inner lips and the lids are apart, how wide the mouth is, how high the brows are. Over the frames
of a clip the head's are compared with those of observed points, the tracker's own or a second detector's (``referee``).
Pictures of heads that turn are compared as they are, since both sets of points are seen by the same camera.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import InputError
from nphm_track.faces.backends import FaceAlignmentBackend
from nphm_track.files.reading import Arrays, reading
from nphm_track.tracking.clip import open_clip
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.run_folder import Run

FloatArray = NDArray[np.float64]
FACE_ALIGNMENT = "face-alignment"
STILL = (*range(27, 36), 36, 39, 42, 45)
"""iBUG-68 points that expressions move little: nose and eye corners."""
OUTER_EYES = 36, 45
LIPS = (61, 67), (62, 66), (63, 65)
RIGHT_EYE, LEFT_EYE = ((37, 41), (38, 40)), ((43, 47), (44, 46))
RIGHT_BROW, LEFT_BROW = (18, 19, 20), (23, 24, 25)
LEAST = 0.005
"""Standard deviation, eye distances, below which an observed distance counts as still: there is nothing to follow."""
LEAST_FRAMES = 8


@dataclass(frozen=True)
class Following:
    """One distance over the frames of a clip.

    Attributes:
        frames: in which both are known.
        spread: standard deviation of the observed distance, eye distances.
        correlation: of the head's with the observed; NaN when that is still.
        slope: of the head's against the observed, by least squares: 1 when the motion has the picture's size.
        offset: by how much the head's is larger in the mean, eye distances.
    """

    frames: int
    spread: float
    correlation: float
    slope: float
    offset: float


def follow(points: NDArray[np.floating], observed: NDArray[np.floating]) -> dict[str, Following]:
    """A head's distances against observed ones, by name; both are iBUG-68 points [T, 68, 2], NaN where there are none.

    Of a run, ``Track.landmarks_fit`` are the head's, and those of ``Track.landmarks`` what the tracker observed.
    """
    ours, theirs = distances(points), distances(observed)
    return {name: _compare(ours[name], theirs[name]) for name in ours}


def distances(points: NDArray[np.floating]) -> dict[str, FloatArray]:
    """Distances [T] of iBUG-68 points [T, 68, 2], in eye distances, NaN where a frame has none."""
    p = onto_mean_shape(points)

    def opening(pairs: tuple[tuple[int, int], ...]) -> FloatArray:
        upper, lower = np.array(pairs).T
        return np.asarray((p[:, lower, 1] - p[:, upper, 1]).mean(1))

    def height(brow: tuple[int, ...], corners: tuple[int, int]) -> FloatArray:
        return np.asarray(p[:, corners, 1].mean(1) - p[:, brow, 1].mean(1))

    return {
        "mouth opening": opening(LIPS),
        "mouth width": np.linalg.norm(p[:, 54] - p[:, 48], axis=1),
        "right eye opening": opening(RIGHT_EYE),
        "left eye opening": opening(LEFT_EYE),
        "right brow height": height(RIGHT_BROW, (36, 39)),
        "left brow height": height(LEFT_BROW, (42, 45)),
    }


def onto_mean_shape(points: NDArray[np.floating], still: Sequence[int] = STILL) -> FloatArray:
    """Points [T, 68, 2] moved by the similarity that brings the ``still`` ones onto their mean shape, whose outer eye
    corners are 1 apart on a level line; NaN where a frame has none."""
    known = np.isfinite(points).all((1, 2))
    out = np.full(points.shape, np.nan)
    if not known.any():
        return out
    z = points[known].astype(np.float64) @ [1, 1j]
    own = list(still)
    z -= z[:, own].mean(1, keepdims=True)
    fixed = z[:, own]
    shape = fixed[len(fixed) // 2]
    right, left = (own.index(i) for i in OUTER_EYES)

    def onto(target: NDArray[np.complexfloating]) -> NDArray[np.complexfloating]:
        """Turn and size [T, 1] of the similarities, as complex factors."""
        return ((fixed.conj() * target).sum(1) / (fixed.conj() * fixed).sum(1).real)[:, None]

    for _ in range(3):
        shape = (fixed * onto(shape)).mean(0)
        shape /= shape[left] - shape[right]  # turns the line between the eyes level, too
    z *= onto(shape)
    out[known] = np.stack([z.real, z.imag], -1)
    return out


def referee_of(name: str, progress: Progress) -> Callable[[Run], FloatArray]:
    """Another detector's points of a run: of the package ``face-alignment``, or of a file (``read_referee``)."""
    return partial(face_alignment_points, progress=progress) if name == FACE_ALIGNMENT else partial(_read, Path(name))


def read_referee(path: Path, frames: NDArray[np.int64]) -> FloatArray:
    """Points [T, 68, 2] of ``frames`` [T] from an .npz with ``frame`` [N] and ``points`` [N, 68, 2], pixels of the
    original video; NaN for frames that it lacks.

    Raises InputError when the file is none such, or has none of the frames.
    """
    with reading(path, "an .npz with frame [N] and points [N, 68, 2]"), Arrays(path) as arrays:
        numbers, points = np.asarray(arrays["frame"]), np.asarray(arrays["points"], np.float64)
    if numbers.ndim != 1 or points.shape != (len(numbers), 68, 2):
        raise InputError(f"{path}: frame and points have shapes {numbers.shape} and {points.shape}, not N and N, 68, 2")
    out = np.full((len(frames), 68, 2), np.nan)
    _, ours, theirs = np.intersect1d(frames, numbers, return_indices=True)
    if not len(ours):
        raise InputError(f"{path} has points of no frame that was tracked")
    out[ours] = points[theirs]
    return out


def face_alignment_points(run: Run, progress: Progress) -> FloatArray:
    """Points [T, 68, 2] that ``face-alignment`` finds in the run's clip, around the landmarks that the tracker found.

    Raises ModelError when the package or its weights are missing, InputError when the clip is not found.
    """
    track, detector = run.track, FaceAlignmentBackend()
    out = np.full((len(track), 68, 2), np.nan)
    progress.stage(FACE_ALIGNMENT, len(track))
    with open_clip(run) as source:
        for row, frame in enumerate(source):
            found = track.landmarks[row]
            if np.isfinite(found).all():
                out[row] = detector.landmarks(frame.image, np.concatenate([found.min(0), found.max(0)]))
            progress.advance()
    return out


def _read(path: Path, run: Run) -> FloatArray:
    return read_referee(path, run.track.frame)


def _compare(ours: FloatArray, theirs: FloatArray) -> Following:
    known = np.isfinite(ours) & np.isfinite(theirs)
    a, b = ours[known], theirs[known]
    frames = int(known.sum())
    spread, offset = (float(b.std()), float((a - b).mean())) if frames else (float("nan"), float("nan"))
    if frames < LEAST_FRAMES or spread < LEAST or a.std() == 0:
        return Following(frames, spread, float("nan"), float("nan"), offset)
    slope = np.cov(a, b)[0, 1] / b.var(ddof=1)
    return Following(frames, spread, float(np.corrcoef(a, b)[0, 1]), float(slope), offset)
