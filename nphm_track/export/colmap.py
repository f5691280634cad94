"""COLMAP text model in the head-fixed world: ``sparse/0/{cameras,images,points3D}.txt``, ``images/`` on request.

World-to-camera poses with OpenCV axes as COLMAP wants them; pixel centres at 0.5, as COLMAP has them too. The camera is
PINHOLE, or FULL_OPENCV when the lens distorts. Points are vertices of the neutral head, without observations. Lost
frames are left out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from nphm_track.export.frames import canonical, frame_names, present_rows, write_images
from nphm_track.export.manifest import GENERATOR, write_manifest
from nphm_track.export.options import ExportOptions
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import Track
from nphm_track.tracking.run_folder import Run

MAX_POINTS = 20_000
GREY = "128 128 128"


def write(run: Run, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write the model into the folder ``target``."""
    model = target / "sparse" / "0"
    model.mkdir(parents=True)
    for name, lines in {
        "cameras": [_camera(run.track)],
        "images": _images(run, options),
        "points3D": _points(run, options),
    }.items():
        (model / f"{name}.txt").write_text("\n".join([f"# {GENERATOR}", *lines]) + "\n", encoding="utf-8")
    if options.images:
        write_images(run, target, progress, clip=options.clip)
    write_manifest(target, run, "colmap", options, world="head-fixed")


def _camera(track: Track) -> str:
    """CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]"""
    K = track.K
    parameters = [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]
    if track.distortion.any():  # k1, k2, p1, p2, k3, k4, k5, k6
        parameters += [*track.distortion, 0.0, 0.0, 0.0]
    model = "FULL_OPENCV" if track.distortion.any() else "PINHOLE"
    width, height = track.image_size
    return f"1 {model} {width} {height} " + " ".join(f"{value:.17g}" for value in parameters)


def _images(run: Run, options: ExportOptions) -> list[str]:
    """IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, each followed by an empty line of observations."""
    rows = present_rows(run)
    R, t = options.extrinsics(run.track.R[rows], run.track.t[rows])
    quaternions = Rotation.from_matrix(R).as_quat(canonical=True)[:, [3, 0, 1, 2]]
    names, lines = frame_names(run.track), []
    for number, (row, pose) in enumerate(zip(rows, np.hstack([quaternions, t]), strict=True), start=1):
        values = " ".join(f"{value:.17g}" for value in pose)
        lines += [f"{number} {values} 1 {names[row]}.png", ""]
    return lines


def _points(run: Run, options: ExportOptions) -> list[str]:
    """POINT3D_ID X Y Z R G B ERROR"""
    points = canonical(run)[0]
    chosen = options.points(points[:: -(-len(points) // MAX_POINTS)])
    return [f"{i} {x:.9g} {y:.9g} {z:.9g} {GREY} 0" for i, (x, y, z) in enumerate(chosen.tolist(), start=1)]
