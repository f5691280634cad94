"""Rows, meshes and pictures of a finished run, as the export formats ask for them."""

from __future__ import annotations

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
from nphm_track.tracking.records import Status
from nphm_track.tracking.run_folder import Run
from nphm_track.video.reader import FOLDER_RATE

IMAGES = "images"
MASKS = "masks"
PICTURE = "{:06d}.png"


def present_rows(run: Run) -> NDArray[np.int64]:
    """Rows of the track that have a head. Raises InputError when none has."""
    rows = np.flatnonzero(run.track.status != Status.LOST)
    if not len(rows):
        raise InputError(f"{run.path} has no frame with a head")
    return rows


def canonical(run: Run) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Neutral head: vertices [V, 3], metres, head space, and faces [F, 3]. Raises InputError when it has none."""
    if not run.info.options.get("meshes", True):
        raise InputError(
            f"{run.path} was made without meshes, which this format needs: track again without --no-meshes"
        )
    return run.canonical()


def check_meshes(run: Run) -> None:
    """Raises InputError unless every frame with a head has its mesh."""
    canonical(run)
    rows = present_rows(run)
    if run.info.options.get("mesh_format") == "npz":
        missing = int((~np.isin(run.track.frame[rows], run.mesh_stream.frame)).sum())
    else:
        missing = sum(not run.mesh_path(row).is_file() for row in rows.tolist())
    if missing:
        remedy = "without --mesh-every" if run.info.options.get("mesh_every", 1) > 1 else "with --overwrite"
        raise InputError(
            f"{run.path} lacks the meshes of {missing} of {len(rows)} frames, which this format needs: "
            f"track again {remedy}"
        )


def vertices(run: Run, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Each row with its vertices [V, 3], metres, head space. Raises InputError when the topology changes."""
    count = len(canonical(run)[0])
    for row in rows.tolist():
        points = run.mesh(row)[0]
        if len(points) != count:
            raise InputError(f"{run.mesh_path(row)} has {len(points)} vertices, the canonical mesh {count}")
        yield row, points


def frame_rate(run: Run) -> float:
    """Nominal frames per second of the clip."""
    return run.info.input.fps or FOLDER_RATE


def write_images(
    run: Run, folder: Path, progress: Progress, *, masks: bool, lost: bool = False, clip: Path | None = None
) -> None:
    """Write ``images/<frame>.png`` [H, W, 3] of each frame with a head (with ``lost``: of all frames), as they are in
    the clip, lens distortion included, and ``masks/<frame>.png`` [H, W]: 255 where the head is, 0 elsewhere.
    """
    track = run.track
    (folder / IMAGES).mkdir()
    if masks:
        (folder / MASKS).mkdir()
    progress.stage(IMAGES, len(track))
    with open_clip(run, clip) as source:
        for row, frame in enumerate(source):
            if row >= len(track):
                break
            name = PICTURE.format(int(track.frame[row]))
            has_head = track.status[row] != Status.LOST
            if has_head or lost:
                Image.fromarray(frame.image).save(folder / IMAGES / name, compress_level=3)
            if has_head and masks:
                Image.fromarray(head_mask(run, row)).save(folder / MASKS / name)
            progress.advance()


def head_mask(run: Run, row: int) -> NDArray[np.uint8]:
    """[H, W] silhouette of a frame's head, 255 inside, drawn where the lens puts it."""
    track = run.track
    points, faces = run.mesh(row)
    in_camera = points @ track.R[row].T + track.t[row]
    width, height = (int(n) for n in track.image_size)
    if track.distortion.any():
        lens = Intrinsics(track.K, (width, height), track.distortion)
        seen = (lens.project(in_camera) - track.K[[0, 1], 2]) / track.K[[0, 1], [0, 1]]
        in_camera = np.c_[seen, np.ones(len(seen))] * in_camera[:, 2:]
    drawn = rasterise(in_camera, faces, track.K, (width, height))
    return np.where(drawn.face_id >= 0, np.uint8(255), np.uint8(0))
