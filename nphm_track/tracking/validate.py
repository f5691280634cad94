"""Opens everything a run wrote and says what is wrong with it; the same check for users, tests and CI."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import InputError
from nphm_track.rendering.ply import read_ply
from nphm_track.tracking.mesh_store import mesh_rows
from nphm_track.tracking.records import RunInfo, Status, Track
from nphm_track.tracking.run_folder import (
    CANONICAL_PLY,
    MESHES,
    MESHES_NPZ,
    RUN_JSON,
    TRACK_NPZ,
    TRANSFORMS_JSON,
    Run,
)
from nphm_track.tracking.transforms import transforms
from nphm_track.video.reader import read_image

ROTATION_TOLERANCE = 1e-4
MATRIX_TOLERANCE = 1e-6
MESH_SAMPLE = 8
"""Meshes whose contents are read; of the others only the headers are."""
MESH_RADIUS = 0.5
"""Metres; no vertex of a head in head space is farther from the origin."""


def validate_run(path: str | Path) -> list[str]:
    """What is wrong with a run folder, one line each; empty when nothing is."""
    path = Path(path)
    try:
        info = RunInfo.load(path / RUN_JSON)
        if info.state != "done":
            return [f"the run is not finished (state: {info.state}{info.message and ': '}{info.message})"]
        track = Track.load(path / TRACK_NPZ)
    except InputError as error:
        return [str(error)]
    shapes = list(_shapes(track))
    if shapes:  # nothing below could be computed
        return shapes
    run = Run(path, info)
    checks: tuple[Callable[[Run, Track], Iterator[str]], ...] = (
        _state, _frames, _numbers, _cameras, _meshes, _overlay, _transforms,
    )  # fmt: skip
    return [problem for check in checks for problem in check(run, track)]


def _shapes(track: Track) -> Iterator[str]:
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
    expected |= {"refine_before": (m, 3), "refine_after": (m, 3), "rolled_back": (m,)}
    for f in fields(track):
        shape, want = getattr(track, f.name).shape, expected[f.name]
        if len(shape) != len(want) or any(w not in (-1, s) for s, w in zip(shape, want, strict=True)):
            yield f"{f.name} has shape {shape}, not {tuple('any' if w == -1 else w for w in want)}"


def _state(run: Run, track: Track) -> Iterator[str]:
    if tuple(track.image_size) != (run.info.input.width, run.info.input.height):
        yield f"image_size {tuple(track.image_size)} is not the input's {run.info.input.width}x{run.info.input.height}"
    for name in ("frames", *(status.name.lower() for status in Status)):
        stored, counted = run.info.quality.get(name), track.quality()[name]
        if stored != counted:
            yield f"run.json counts {stored} '{name}', the track {counted}"


def _frames(run: Run, track: Track) -> Iterator[str]:
    every = int(run.info.options.get("every", 1))
    if (np.diff(track.frame) != every).any():
        yield f"frame numbers do not rise by {every} everywhere"
    if not np.isfinite(track.time).all():
        yield "time has values that are not finite"
    elif (np.diff(track.time) <= 0).any():
        yield "times do not increase everywhere"
    unknown = set(np.unique(track.status).tolist()) - {int(status) for status in Status}
    if unknown:
        yield f"status has unknown values {sorted(unknown)}"


def _numbers(run: Run, track: Track) -> Iterator[str]:
    """What a head needs is finite in every frame that has one, what was observed in every tracked frame.

    A landmark that no frame has is one that the head model does not know.
    """
    present, tracked = track.status != Status.LOST, track.status == Status.TRACKED
    rows = dict.fromkeys(("R", "t", "z_ex", "landmarks_fit"), present)
    rows |= dict.fromkeys(("landmarks", "blendshapes", "landmark_error_px"), tracked)
    known = np.isfinite(track.landmarks_fit[present]).any((0, 2))
    if present.any() and not known.any():
        yield "landmarks_fit is empty"
    for name, mask in rows.items():
        values = getattr(track, name)[mask]
        if name == "landmarks_fit":
            values = values[:, known]
        bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
        if bad.any():
            yield f"{name} is not finite in {np.count_nonzero(bad)} frames, first in frame {track.frame[mask][bad][0]}"
    for name in ("z_id", "K", "distortion", "confidence"):
        if not np.isfinite(getattr(track, name)).all():
            yield f"{name} has values that are not finite"


def _cameras(run: Run, track: Track) -> Iterator[str]:
    K = track.K
    if not (K[0, 0] > 0 and K[1, 1] > 0):
        yield f"focal length {K[0, 0]:g}, {K[1, 1]:g} is not positive"
    if not np.array_equal(K[[1, 2, 2, 2], [0, 0, 1, 2]], [0, 0, 0, 1]):
        yield "K is not an intrinsics matrix"
    present = track.status != Status.LOST
    R, t, frame = track.R[present], track.t[present], track.frame[present]
    off = np.abs(R @ R.transpose(0, 2, 1) - np.eye(3)).max((1, 2), initial=0)
    wrong = ~(off < ROTATION_TOLERANCE) | ~(np.linalg.det(R) > 0)
    if wrong.any():
        yield f"R is no rotation in {np.count_nonzero(wrong)} frames, first in frame {frame[wrong][0]}"
    behind = ~(t[:, 2] > 0)
    if behind.any():
        yield f"the head is behind the camera in {np.count_nonzero(behind)} frames, first in frame {frame[behind][0]}"


def _meshes(run: Run, track: Track) -> Iterator[str]:
    folder = run.path / MESHES
    rows = mesh_rows(track, _every(run))
    if _format(run) == "npz":
        yield from _stream(run, track.frame[rows])
    expected = {run.mesh_path(int(i)).name for i in rows} if _format(run) == "ply" else set()
    found = {entry.name for entry in folder.glob("*")}
    if expected - found:
        yield f"{len(expected - found)} of {len(expected)} meshes are missing, first {min(expected - found)}"
    if found - expected:
        extra = found - expected
        yield f"{MESHES} holds {len(extra)} files that are no mesh of this run, first {min(extra)}"
    names = sorted(expected & found)
    if not names:
        return
    headers = {name: _header(folder / name) for name in names}
    odd = [name for name in names if headers[name] != headers[names[0]]]
    if odd:
        yield f"{len(odd)} meshes have another header than {names[0]}, first {odd[0]}"
    try:
        canonical = read_ply(run.path / CANONICAL_PLY)
        sample = np.unique(np.linspace(0, len(names) - 1, MESH_SAMPLE).astype(int))
        for name in (names[i] for i in sample):
            yield from _mesh_against(name, read_ply(folder / name), canonical)
    except InputError as error:
        yield str(error)


def _format(run: Run) -> str | None:
    """How meshes are kept, None when there are none."""
    return str(run.info.options.get("mesh_format", "ply")) if run.info.options.get("meshes", True) else None


def _every(run: Run) -> int:
    return int(run.info.options.get("mesh_every", 1))


def _stream(run: Run, frames: NDArray[np.int64]) -> Iterator[str]:
    try:
        stream = run.mesh_stream
        if not np.array_equal(stream.frame, frames):
            yield f"{MESHES_NPZ} holds {len(stream.frame)} meshes, not those of the {len(frames)} frames it should"
            return
        canonical = read_ply(run.path / CANONICAL_PLY)
        for frame in frames.tolist():  # all of them, since a block is read as a whole
            yield from _mesh_against(f"{MESHES_NPZ} {frame}", (stream.vertices(frame), stream.faces), canonical)
    except InputError as error:
        yield str(error)


def _header(path: Path) -> bytes:
    """A PLY file's header: format, counts of vertices and faces, properties."""
    with open(path, "rb") as file:
        return file.read(4096).partition(b"end_header")[0]


def _mesh_against(
    name: str,
    mesh: tuple[NDArray[np.float32], NDArray[np.int32]],
    canonical: tuple[NDArray[np.float32], NDArray[np.int32]],
) -> Iterator[str]:
    vertices, faces = mesh
    if vertices.shape != canonical[0].shape or not np.array_equal(faces, canonical[1]):
        yield f"mesh {name} has another topology than {CANONICAL_PLY}"
    if not np.isfinite(vertices).all():
        yield f"mesh {name} has vertices that are not finite"
    elif np.linalg.norm(vertices, axis=1).max(initial=0) > MESH_RADIUS:
        yield f"mesh {name} has vertices farther than {MESH_RADIUS} m from the origin; are these metres?"


def _overlay(run: Run, track: Track) -> Iterator[str]:
    path = run.overlay
    if not run.info.options.get("overlay", True):
        return
    if not path.is_file():
        yield f"{path.name} is missing"
        return
    if run.info.input.kind == "image":
        yield from _image(path)
        return
    try:
        with av.open(str(path)) as container:
            frames = [(frame.pts, frame.time_base) for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError, ValueError) as error:
        yield f"{path.name} is not a readable video ({error})"
        return
    if len(frames) != len(track):
        yield f"{path.name} has {len(frames)} frames, the track {len(track)}"
        return
    times = np.array([float(pts * base) if pts is not None and base else np.nan for pts, base in frames])
    tick = float(max((base or Fraction(1) for _, base in frames), default=Fraction(1)))
    off = np.abs((times - times[0]) - (track.time - track.time[0]))
    if not (off <= 2 * tick + 1e-6).all():
        yield f"{path.name} keeps another time than the clip, by up to {np.nanmax(off):.4f} s"


def _image(path: Path) -> Iterator[str]:
    try:
        read_image(path)
    except InputError as error:
        yield str(error)


def _transforms(run: Run, track: Track) -> Iterator[str]:
    path = run.path / TRANSFORMS_JSON
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        want = transforms(track, meshes=_every(run) if _format(run) == "ply" else 0)
        matrices = [np.array([f.pop("transform_matrix") for f in side["frames"]], float) for side in (stored, want)]
    except OSError:
        yield f"{TRANSFORMS_JSON} is missing"
        return
    except (ValueError, KeyError, TypeError) as error:
        yield f"{TRANSFORMS_JSON} is damaged ({error})"
        return
    if stored != want or matrices[0].shape != matrices[1].shape:
        yield f"{TRANSFORMS_JSON} does not match the track"
    elif np.abs(matrices[0] - matrices[1]).max(initial=0) > MATRIX_TOLERANCE:
        yield f"{TRANSFORMS_JSON} holds other camera poses than the track"
