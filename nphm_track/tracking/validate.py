"""Opens everything a run wrote and says what is wrong with it; the same check for users, tests and CI."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import InputError
from nphm_track.files.reading import read_json
from nphm_track.heads.loading import DEFAULT
from nphm_track.heads.rig_file import load_rig, rig_key
from nphm_track.heads.template import load_template
from nphm_track.rendering.ply import read_ply
from nphm_track.tracking.checks import option_problems, track_problems
from nphm_track.tracking.mesh_store import mesh_rows
from nphm_track.tracking.records import RunInfo, Track
from nphm_track.tracking.run_folder import (
    CANONICAL_PLY,
    MESHES,
    MESHES_NPZ,
    OVERLAY_MP4,
    OVERLAY_PNG,
    REPORT_HTML,
    RIG_NPZ,
    RUN_JSON,
    TRACK_NPZ,
    TRANSFORMS_JSON,
    Run,
)
from nphm_track.tracking.transforms import transforms
from nphm_track.video.containers import open_container
from nphm_track.video.reader import open_video
from nphm_track.video.stills import read_image

DRAWN = {RIG_NPZ, CANONICAL_PLY, MESHES, MESHES_NPZ, OVERLAY_MP4, OVERLAY_PNG}
"""What a run has to show of the head's surface."""
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
    problems = option_problems(info) or track_problems(info, track)
    if problems:  # what was made of it is no better
        return problems
    run = Run(path, info)
    return [problem for check in (_meshes, _rig, _overlay, _transforms, _report) for problem in check(run, track)]


def lacking_files(run: Run, track: Track) -> set[str]:
    """Names of the files that a run should have and that are missing or cut short; a quick look, at no contents."""
    options = run.info.options
    lacking = set()
    if options.get("meshes", True):
        try:
            vertices = len(read_ply(run.path / CANONICAL_PLY)[0])
            size = vertices and (run.path / CANONICAL_PLY).stat().st_size
            if options.get("topology") == "template" and vertices == len(load_template().neutral):
                lacking |= set() if (run.path / RIG_NPZ).is_file() else {RIG_NPZ}
        except InputError:
            lacking.add(CANONICAL_PLY)
            size = 0
        rows = mesh_rows(track, _every(run))
        if _format(run) == "npz":
            lacking |= {MESHES_NPZ} if any(_stream_frames(run, track.frame[rows])) else set()
        elif any(_size(run.mesh_path(int(row))) != size for row in rows):  # all have the same topology
            lacking.add(MESHES)
    if options.get("overlay", True) and not _opens(run, len(track)):
        lacking.add(run.overlay.name)
    if any(_transforms(run, track)):
        lacking.add(TRANSFORMS_JSON)
    if any(_report(run, track)):
        lacking.add(REPORT_HTML)
    return lacking


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


def _rig(run: Run, track: Track) -> Iterator[str]:
    """A rig that is there has to be whole and of this run's person, and to begin where its meshes do."""
    path = run.path / RIG_NPZ
    if RIG_NPZ in lacking_files(run, track):
        yield f"{RIG_NPZ} is missing"
    if not path.is_file():
        return
    name = str(run.info.options.get("head_model", DEFAULT))
    try:
        rig = load_rig(path, load_template(), rig_key(track.z_id, str(run.info.models.get(name)))).rig
        if _format(run) is not None and not np.array_equal(rig.neutral, read_ply(run.path / CANONICAL_PLY)[0]):
            yield f"{RIG_NPZ} has another neutral head than {CANONICAL_PLY}"
    except InputError as error:
        yield str(error)


def _format(run: Run) -> str | None:
    """How meshes are kept, None when there are none."""
    return str(run.info.options.get("mesh_format", "ply")) if run.info.options.get("meshes", True) else None


def _every(run: Run) -> int:
    return int(run.info.options.get("mesh_every", 1))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _stream_frames(run: Run, frames: NDArray[np.int64]) -> Iterator[str]:
    try:
        stream = run.mesh_stream
    except InputError as error:
        yield str(error)
        return
    if not np.array_equal(stream.frame, frames):
        yield f"{MESHES_NPZ} holds {len(stream.frame)} meshes, not those of the {len(frames)} frames it should"


def _stream(run: Run, frames: NDArray[np.int64]) -> Iterator[str]:
    problems = list(_stream_frames(run, frames))
    if problems:
        yield from problems
        return
    try:
        stream = run.mesh_stream
        canonical = read_ply(run.path / CANONICAL_PLY)
        for frame in frames.tolist():  # all of them, since a block is read as a whole
            yield from _mesh_against(f"{MESHES_NPZ} {frame}", (stream.vertices(frame), stream.faces), canonical)
    except InputError as error:
        yield str(error)


def _header(path: Path) -> bytes:
    """A PLY file's header: format, counts of vertices and faces, properties; empty when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(4096).partition(b"end_header")[0]
    except OSError:
        return b""


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
        with open_container(path) as container:
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


def _opens(run: Run, frames: int) -> bool:
    """Whether the overlay begins as it should and, as far as it says, has all its frames."""
    try:
        with open_video(run.overlay) as overlay:
            return overlay.info.frame_count in (None, frames)
    except InputError:
        return False


def _image(path: Path) -> Iterator[str]:
    try:
        read_image(path)
    except InputError as error:
        yield str(error)


def _report(run: Run, track: Track) -> Iterator[str]:
    if not run.info.options.get("report", True):
        return
    try:
        with open(run.path / REPORT_HTML, "rb") as file:
            file.seek(max(0, (run.path / REPORT_HTML).stat().st_size - 64))
            if b"</html>" not in file.read():
                yield f"{REPORT_HTML} is cut short"
    except OSError:
        yield f"{REPORT_HTML} is missing"


def _transforms(run: Run, track: Track) -> Iterator[str]:
    path = run.path / TRANSFORMS_JSON
    try:
        stored = read_json(path)
        want = transforms(track, meshes=_every(run) if _format(run) == "ply" else 0)
        for frame in stored["frames"]:
            frame.pop("file_path", None)  # written by earlier versions
        matrices = [np.array([f.pop("transform_matrix") for f in side["frames"]], float) for side in (stored, want)]
    except OSError:
        yield f"{TRANSFORMS_JSON} is missing"
        return
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        yield f"{TRANSFORMS_JSON} is damaged ({error})"
        return
    if stored != want or matrices[0].shape != matrices[1].shape:
        yield f"{TRANSFORMS_JSON} does not match the track"
    elif np.abs(matrices[0] - matrices[1]).max(initial=0) > MATRIX_TOLERANCE:
        yield f"{TRANSFORMS_JSON} holds other camera poses than the track"
