"""Rows, meshes and pictures of a finished run, as the export formats ask for them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.errors import InputError
from nphm_track.rendering.rasteriser import rasterise
from nphm_track.tracking.clip import open_clip
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import Status, Track
from nphm_track.tracking.run_folder import Run
from nphm_track.tracking.surface import surface_of, writes_every_mesh
from nphm_track.video.reader import FOLDER_RATE

IMAGES = "images"


def present_rows(run: Run) -> NDArray[np.int64]:
    """Rows of the track that have a head. Raises InputError when none has."""
    rows = np.flatnonzero(run.track.status != Status.LOST)
    if not len(rows):
        raise InputError(f"{run.path} has no frame with a head")
    return rows


def frame_names(track: Track) -> list[str]:
    """[T] what the files of each frame are called, without ending: as the image that the frame is, so that they lie
    beside it in a list, or by the frame's number where it is none or two would be called the same.

    Signs that are no letter, digit, ``.``, ``-`` or ``_`` are ``_``: COLMAP ends a name at a blank.
    """
    names = [re.sub(r"[^\w.-]", "_", Path(name).stem) for name in track.image.tolist()]
    if names and len({name.lower() for name in names}) == len(names):
        return names
    return [f"{frame:06d}" for frame in track.frame.tolist()]


def image_name(track: Track, row: int) -> dict[str, str]:
    """``image``: the file name of the image that a frame is; nothing for one of a video."""
    return {"image": str(track.image[row])} if len(track.image) else {}


def canonical(run: Run) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Neutral head: vertices [V, 3], metres, head space, and faces [F, 3]; from the codes where none is written."""
    mesh = surface_of(run).mesh
    return mesh.vertices, mesh.faces


def check_meshes(run: Run) -> None:
    """Raises InputError when meshes that the run wrote are missing, or have to be made by another head model."""
    rows = present_rows(run)
    surface_of(run)
    if not writes_every_mesh(run):
        return
    if run.info.options.get("mesh_format") == "npz":
        missing = int((~np.isin(run.track.frame[rows], run.mesh_stream.frame)).sum())
    else:
        missing = sum(not run.mesh_path(row).is_file() for row in rows.tolist())
    if missing:
        raise InputError(
            f"{run.path} lacks the meshes of {missing} of {len(rows)} frames: the command that made it makes them again"
        )


def vertices(run: Run, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Each row with its vertices [V, 3], metres, head space. Raises InputError when the topology changes."""
    surface = surface_of(run)
    count = len(surface.mesh.vertices)
    for row in rows.tolist():
        points = surface.vertices_of(row)
        if len(points) != count:
            raise InputError(f"{run.mesh_path(row)} has {len(points)} vertices, the canonical mesh {count}")
        yield row, points


def frame_rate(run: Run) -> float:
    """Nominal frames per second of the clip."""
    return run.info.input.fps or FOLDER_RATE


def clip_frames(run: Run, clip: Path | None = None) -> Iterator[tuple[int, str, NDArray[np.uint8]]]:
    """Each row of the track with its name and its frame [H, W, 3], as it is in the clip, lens distortion included."""
    track, names = run.track, frame_names(run.track)
    with open_clip(run, clip) as source:
        for frame in source:
            row = int(np.searchsorted(track.frame, frame.index))
            if row >= len(track):
                break
            if track.frame[row] == frame.index:
                yield row, names[row], frame.image


def write_images(run: Run, folder: Path, progress: Progress, *, lost: bool = False, clip: Path | None = None) -> None:
    """Write ``images/<name>.png`` [H, W, 3] of each frame with a head; with ``lost`` of all frames."""
    (folder / IMAGES).mkdir()
    progress.stage(IMAGES, len(run.track))
    for row, name, image in clip_frames(run, clip):
        if lost or run.track.status[row] != Status.LOST:
            write_picture(folder / IMAGES / f"{name}.png", image)
        progress.advance()


def write_picture(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image, [H, W, 3] or [H, W]."""
    Image.fromarray(image).save(path, compress_level=3)


def silhouette(run: Run, row: int) -> NDArray[np.bool_]:
    """[H, W] silhouette of a frame's head, True inside, drawn where the lens puts it; without a template's bust, which
    does not go with the person's shoulders.
    """
    track = run.track
    surface = surface_of(run)
    points, faces = surface.vertices_of(row), surface.mesh.faces
    if surface.template is not None:
        points, faces = surface.template.cut_at_neck(points), surface.template.head_faces
    in_camera = points @ track.R[row].T + track.t[row]
    width, height = (int(n) for n in track.image_size)
    if track.distortion.any():
        lens = Intrinsics(track.K, (width, height), track.distortion)
        seen = (lens.project(in_camera) - track.K[[0, 1], 2]) / track.K[[0, 1], [0, 1]]
        in_camera = np.c_[seen, np.ones(len(seen))] * in_camera[:, 2:]
    drawn = rasterise(in_camera, faces, track.K, (width, height))
    return np.asarray(drawn.face_id >= 0)
