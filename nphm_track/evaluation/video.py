"""Quality of tracked video without ground truth: fit, jitter, temporal consistency, of one run or of two side by side.

Accelerations are second differences in real time, so clips of different rate compare; ``a`` m/s^2 are ``a / rate^2``
metres a frame^2. True motion is in them too: compare runs of the same clip. Little jitter is no merit if motion is lost
with it, which ``motion_kept`` tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nphm_track.conventions import IBUG68_FROM_478
from nphm_track.errors import InputError
from nphm_track.evaluation.following import Following, follow, onto_mean_shape
from nphm_track.evaluation.results import table
from nphm_track.landmark_model import eye_distance
from nphm_track.rendering.rasteriser import vertex_normals
from nphm_track.rigid import fit_similarity
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import Status, Track
from nphm_track.tracking.run_folder import Run

FloatArray = NDArray[np.float64]
VERTICES = 2000
"""Vertices looked at, spread over the mesh."""
GAP = 2.5
"""Frames further apart than so many usual steps are no neighbours."""


@dataclass(frozen=True)
class VideoQuality:
    """Of the frames looked at; NaN where nothing was measured. Percentages are of the outer eye distance."""

    frames: int
    tracked: int
    filled: int
    lost: int
    landmark_error_percent: float
    """Mean over tracked frames: the fitted head's iBUG-68 points from the observed ones."""
    landmark_error_p95_percent: float
    landmark_jitter: float
    """Fitted landmarks on screen, similarity removed: RMS acceleration, eye distances / s^2."""
    observed_jitter: float
    """The same of the observed landmarks: what the tracker was given."""
    motion_kept: float
    """Correlation of the fitted landmarks' steps from frame to frame with the observed ones', similarity removed."""
    vertex_jitter: float
    """Vertices, rigid motion removed: RMS acceleration, m/s^2."""
    vertex_step_mm: float
    """The same as a second difference at the clip's own rate, mm."""
    normal_flicker_deg: float
    """Mean angle between a vertex's normals in successive frames, rigid motion removed."""
    rotation_jitter: float
    """Head rotation: RMS angular acceleration, degrees / s^2."""
    translation_jitter: float
    """Head position: RMS acceleration, m/s^2."""


LABELS = {
    "frames": "frames",
    "tracked": "tracked",
    "filled": "filled in",
    "lost": "lost",
    "landmark_error_percent": "landmark error, % of eye distance",
    "landmark_error_p95_percent": "landmark error, 95th percentile, %",
    "landmark_jitter": "landmark jitter, eye distances/s²",
    "observed_jitter": "jitter of the observed landmarks, eye distances/s²",
    "motion_kept": "landmark motion kept (correlation)",
    "vertex_jitter": "vertex jitter, m/s²",
    "vertex_step_mm": "vertex jitter, mm/frame²",
    "normal_flicker_deg": "normal flicker, degrees/frame",
    "rotation_jitter": "head rotation jitter, degrees/s²",
    "translation_jitter": "head position jitter, m/s²",
}


def video_quality(run: Run, progress: Progress, frames: NDArray[np.int64] | None = None) -> VideoQuality:
    """Quality of a run, or of those of its rows whose frame number is in ``frames``."""
    track = run.track
    rows = np.arange(len(track)) if frames is None else np.flatnonzero(np.isin(track.frame, frames))
    status, time = track.status[rows], track.time[rows]
    present = status != Status.LOST
    fitted, observed = (
        _normalised(track.landmarks_fit[rows]),
        _normalised(track.landmarks[rows][:, list(IBUG68_FROM_478)]),
    )
    percent = _landmark_percent(track, rows)
    vertices, normals = _surfaces(run, rows[present], progress)
    times = time[present]
    acceleration = _rms(_acceleration(vertices, times)) if vertices is not None else np.nan
    step = float(np.median(np.diff(time))) if len(time) > 1 else np.nan
    return VideoQuality(
        frames=len(rows),
        **{s.name.lower(): int(np.count_nonzero(status == s)) for s in Status},
        landmark_error_percent=float(percent.mean()) if len(percent) else np.nan,
        landmark_error_p95_percent=float(np.quantile(percent, 0.95)) if len(percent) else np.nan,
        landmark_jitter=_rms(_acceleration(fitted, time)),
        observed_jitter=_rms(_acceleration(observed, time)),
        motion_kept=_motion_kept(fitted, observed, time),
        vertex_jitter=acceleration,
        vertex_step_mm=1e3 * acceleration * step**2,
        normal_flicker_deg=_flicker(normals, times) if normals is not None else np.nan,
        rotation_jitter=float(np.degrees(_rms(_angular_acceleration(track.R[rows][present], times)))),
        translation_jitter=_rms(_acceleration(track.t[rows][present], times)),
    )


Referee = Callable[[Run], FloatArray]
"""Gives iBUG-68 points [T, 68, 2] of another detector for the rows of a run."""


def compare_runs(runs: list[Run], progress: Progress, referee: Referee | None = None) -> dict[str, Any]:
    """Quality of one run or two, as JSON values; two runs of one clip are compared on the frames both have.

    ``referee`` judges the expressions beside the tracker's own landmarks, and these too. Raises InputError when the
    runs have no frame in common.
    """
    frames = None
    same = len({run.info.input.sha256 for run in runs}) == 1
    if len(runs) > 1 and same:
        frames = np.intersect1d(runs[0].track.frame, runs[1].track.frame)
        if not len(frames):
            raise InputError("the runs have no frame in common")
    return {
        "same_clip": same,
        "runs": [
            {
                "run": str(run.path),
                "clip": run.info.input.path,
                "version": run.info.package_version,
                "models": run.info.models,
                "options": run.info.options,
                **asdict(video_quality(run, progress, frames)),
                "following": {
                    which: {name: asdict(found) for name, found in of.items()}
                    for which, of in compared(run, frames, referee).items()
                },
            }
            for run in runs
        ],
    }


def compared(
    run: Run, frames: NDArray[np.int64] | None = None, referee: Referee | None = None
) -> dict[str, dict[str, Following]]:
    """Which points follow which, by name: the head's the tracker's and, with a ``referee``, both the referee's.

    Over tracked frames, or those of them whose number is in ``frames``.
    """
    track = run.track
    rows = track.status == Status.TRACKED
    if frames is not None:
        rows &= np.isin(track.frame, frames)
    head, observed = track.landmarks_fit[rows], track.landmarks[rows][:, list(IBUG68_FROM_478)]
    out = {"head, observed": follow(head, observed)}
    if referee is not None:
        judged = referee(run)[rows]
        out |= {"head, referee": follow(head, judged), "observed, referee": follow(observed, judged)}
    return out


def quality_table(facts: dict[str, Any]) -> str:
    runs = facts["runs"]
    rows = [[label, *(run[name] for run in runs)] for name, label in LABELS.items()]
    for which in runs[0]["following"]:
        for name in runs[0]["following"][which]:
            of = [run["following"][which][name] for run in runs]
            rows.append(
                [f"{name} ({which}): correlation, slope", *(f"{f['correlation']:.2f}, {f['slope']:.2f}" for f in of)]
            )
    note = "" if facts["same_clip"] else "\n\nThe runs are of different clips: their jitter holds different motion."
    return table(["measure", *(run["run"] for run in runs)], rows) + note


def _landmark_percent(track: Track, rows: NDArray[np.int64]) -> FloatArray:
    seen = rows[(track.status[rows] == Status.TRACKED) & np.isfinite(track.landmark_error_px[rows])]
    return 100.0 * track.landmark_error_px[seen] / eye_distance(track.landmarks[seen])


def _normalised(points: NDArray[np.float32]) -> FloatArray:
    """Landmarks [T, N, 2] of each frame moved, turned and scaled onto their mean shape, whose eyes are 1 apart."""
    return onto_mean_shape(points, range(points.shape[1]))


def _surfaces(
    run: Run, rows: NDArray[np.int64], progress: Progress
) -> tuple[FloatArray | None, NDArray[np.float32] | None]:
    """Some vertices [T, V, 3] of each frame moved rigidly onto those of the first, and their normals [T, V, 3]; None
    when the run did not keep a mesh for each frame."""
    options = run.info.options
    if not options.get("meshes", True) or options.get("mesh_every", 1) != 1 or not len(rows):
        return None, None
    progress.stage("meshes", len(rows))
    points: list[FloatArray] = []
    normals: list[NDArray[np.float32]] = []
    chosen: NDArray[np.int64] | None = None
    for row in rows.tolist():
        vertices, faces = run.mesh(row)
        if chosen is None:
            chosen = np.unique(np.linspace(0, len(vertices) - 1, VERTICES).astype(np.int64))
        some = vertices[chosen].astype(np.float64)
        onto = fit_similarity(some, points[0] if points else some, scaled=False)
        points.append(onto(some))
        normals.append((vertex_normals(vertices, faces)[chosen] @ onto.R.T).astype(np.float32))
        progress.advance()
    return np.array(points), np.array(normals)


def _neighbours(times: FloatArray) -> NDArray[np.bool_]:
    """[T-1] whether a frame and the next are neighbours in time."""
    gaps = np.diff(times)
    return gaps <= GAP * np.median(gaps) if len(gaps) else np.zeros(0, bool)


def _acceleration(values: FloatArray, times: FloatArray) -> FloatArray:
    """Second derivatives [M, ...] of values [T, ...] at the frames with two neighbours, where all is finite."""
    if len(times) < 3:
        return np.empty((0, *values.shape[1:]))
    dt = np.diff(times).reshape(-1, *[1] * (values.ndim - 1))
    slope = np.diff(values, axis=0) / dt
    out = np.diff(slope, axis=0) / ((dt[1:] + dt[:-1]) / 2)
    near = _neighbours(times)
    return out[near[1:] & near[:-1] & np.isfinite(out).all(tuple(range(1, out.ndim)))]


def _angular_acceleration(R: FloatArray, times: FloatArray) -> FloatArray:
    """[M, 3] radians / s^2."""
    if len(times) < 3:
        return np.empty((0, 3))
    dt = np.diff(times)[:, None]
    rate = Rotation.from_matrix(R[1:] @ R[:-1].swapaxes(1, 2)).as_rotvec() / dt
    out = np.diff(rate, axis=0) / ((dt[1:] + dt[:-1]) / 2)
    near = _neighbours(times)
    return out[near[1:] & near[:-1]]


def _rms(vectors: FloatArray) -> float:
    """RMS length of vectors [..., D]; NaN when there are none."""
    return float(np.sqrt((vectors**2).sum(-1).mean())) if len(vectors) else float("nan")


def _motion_kept(fitted: FloatArray, observed: FloatArray, times: FloatArray) -> float:
    if len(times) < 3:
        return float("nan")
    steps = [np.diff(points, axis=0)[_neighbours(times)] for points in (fitted, observed)]
    known = np.isfinite(steps[0]).all((1, 2)) & np.isfinite(steps[1]).all((1, 2))
    a, b = (step[known].ravel() for step in steps)
    return float(np.corrcoef(a, b)[0, 1]) if len(a) and a.std() > 0 and b.std() > 0 else float("nan")


def _flicker(normals: NDArray[np.float32], times: FloatArray) -> float:
    near = _neighbours(times)
    cosine = (normals[1:] * normals[:-1]).sum(-1)[near]
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean()) if cosine.size else float("nan")
