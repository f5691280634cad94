"""What is wrong with a run's options and numbers; whoever opens one asks here first, ``doctor`` included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields

import numpy as np

from nphm_track.errors import InputError
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.records import RUN_JSON, RunInfo, Status, Track

ROTATION_TOLERANCE = 1e-4
NEEDED = frozenset({"start", "end", "every", "reader", "meshes", "overlay"})
"""Options that whoever reads a run asks for; those that came later may be missing in a run of an earlier version."""
_KINDS = {"frame": "iu", "status": "iu", "image": "U"}
"""Kinds of the arrays that are not of any numbers."""


def option_problems(info: RunInfo) -> list[str]:
    """What is wrong with the options in a run.json."""
    missing = sorted(NEEDED - info.options.keys())
    if missing:
        return [f"{RUN_JSON}: options: {missing[0]} is missing"]
    try:
        TrackOptions.build(**{name: v for name, v in info.options.items() if name in TrackOptions.model_fields})
    except InputError as error:
        return [f"{RUN_JSON}: {error}"]
    return []


def track_problems(info: RunInfo, track: Track) -> list[str]:
    """One line each; none when every number is one that the program writes for this input."""
    problems = list(_shapes(track))
    if problems:  # nothing below could be computed
        return problems
    checks: tuple[Callable[[RunInfo, Track], Iterator[str]], ...] = (_size, _frames, _counts, _numbers, _cameras)
    return [problem for check in checks for problem in check(info, track)]


def _shapes(track: Track) -> Iterator[str]:
    arrays = {f.name: np.asarray(getattr(track, f.name)) for f in fields(track)}
    for name, array in arrays.items():
        if array.dtype.kind not in _KINDS.get(name, "iufb") or not array.ndim:
            what = "text" if name == "image" else "numbers"
            yield f"{name} is no array of {what} but {array.dtype} of shape {array.shape}"
            return
    n = len(track)
    if n == 0:
        yield "the track has no frames"
    expected: dict[str, tuple[int, ...]] = {
        "frame": (n,), "time": (n,), "status": (n,), "confidence": (n,), "z_id": (-1,), "z_ex": (n, -1),
        "R": (n, 3, 3), "t": (n, 3), "K": (3, 3), "image_size": (2,), "landmarks": (n, 478, 2),
        "landmarks_fit": (n, 68, 2), "blendshapes": (n, 52), "landmark_error_px": (n,), "normal_error_deg": (n,),
        "distortion": (5,),
    }  # fmt: skip
    m = n if len(track.rolled_back) else 0
    expected["gaze"] = (n if len(track.gaze) else 0, 2, 3)
    expected["arkit"] = (n if len(track.arkit) else 0, 51)
    expected["image"] = (n if len(track.image) else 0,)
    expected |= {"refine_before": (m, 3), "refine_after": (m, 3), "rolled_back": (m,)}
    for name, array in arrays.items():
        shape, want = array.shape, expected[name]
        if len(shape) != len(want) or any(w not in (-1, s) for s, w in zip(shape, want, strict=True)):
            yield f"{name} has shape {shape}, not {tuple('any' if w == -1 else w for w in want)}"


def _size(info: RunInfo, track: Track) -> Iterator[str]:
    size = tuple(track.image_size.tolist())
    if size != (info.input.width, info.input.height):
        yield f"image_size {size} is not the input's {info.input.width}x{info.input.height}"


def _counts(info: RunInfo, track: Track) -> Iterator[str]:
    if info.state != "done":
        return
    counts = {"frames": len(track), **{s.name.lower(): int(np.count_nonzero(track.status == s)) for s in Status}}
    for name, counted in counts.items():
        if info.quality.get(name) != counted:
            yield f"run.json counts {info.quality.get(name)} '{name}', the track {counted}"


def _frames(info: RunInfo, track: Track) -> Iterator[str]:
    every = int(info.options.get("every", 1))
    steps = np.diff(track.frame)
    if (steps < every).any() or (info.input.kind != "folder" and (steps > every).any()):  # sequences have gaps
        yield f"frame numbers do not rise by {every} everywhere"
    if not np.isfinite(track.time).all():
        yield "time has values that are not finite"
    elif (np.diff(track.time) <= 0).any():
        yield "times do not increase everywhere"
    unknown = set(np.unique(track.status).tolist()) - {int(status) for status in Status}
    if unknown:
        yield f"status has unknown values {sorted(unknown)}"


def _numbers(info: RunInfo, track: Track) -> Iterator[str]:
    """What a head needs is finite in every frame that has one, what was observed in every tracked frame.

    A landmark that no frame has is one that the head model does not know.
    """
    present, tracked = track.status != Status.LOST, track.status == Status.TRACKED
    rows = dict.fromkeys(("R", "t", "z_ex", "landmarks_fit"), present)
    rows |= dict.fromkeys(("landmarks", "blendshapes", "landmark_error_px"), tracked)
    rows |= {name: present for name in ("gaze", "arkit") if len(getattr(track, name))}
    known = np.isfinite(track.landmarks_fit[present]).any((0, 2))
    if present.any() and not known.any():
        yield "landmarks_fit is empty"
    for name, mask in rows.items():
        values = getattr(track, name)[mask]
        if name == "landmarks_fit":
            values = values[:, known]
        bad = ~np.isfinite(values).all(tuple(range(1, values.ndim)))
        if bad.any():
            yield f"{name} is not finite in {np.count_nonzero(bad)} frames, first in frame {track.frame[mask][bad][0]}"
    for name in ("z_id", "K", "distortion", "confidence"):
        if not np.isfinite(getattr(track, name)).all():
            yield f"{name} has values that are not finite"


def _cameras(info: RunInfo, track: Track) -> Iterator[str]:
    K = track.K
    if not (K[0, 0] > 0 and K[1, 1] > 0):
        yield f"focal length {K[0, 0]:g}, {K[1, 1]:g} is not positive"
    if not np.array_equal(K[[1, 2, 2, 2], [0, 0, 1, 2]], [0, 0, 0, 1]):
        yield "K is not an intrinsics matrix"
    present = track.status != Status.LOST
    R, t, frame = track.R[present], track.t[present], track.frame[present]
    off = np.abs(R @ R.transpose(0, 2, 1) - np.eye(3)).max((1, 2), initial=0)
    wrong = ~(off < ROTATION_TOLERANCE) | ~(np.linalg.det(np.nan_to_num(R)) > 0)
    if wrong.any():
        yield f"R is no rotation in {np.count_nonzero(wrong)} frames, first in frame {frame[wrong][0]}"
    behind = ~(t[:, 2] > 0)
    if behind.any():
        yield f"the head is behind the camera in {np.count_nonzero(behind)} frames, first in frame {frame[behind][0]}"
