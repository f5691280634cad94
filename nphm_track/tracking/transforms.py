"""Cameras for NeRF and Gaussian avatar training: nerfstudio's ``transforms.json`` in a head-fixed world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nphm_track.tracking.records import Status, Track, replacing

OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0])
"""OpenCV camera axes (y down, z forward) to OpenGL's (y up, z backward) and back."""


def camera_to_world(R: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.float64]:
    """[4, 4] pose of the camera in head space (metres, OpenGL camera axes) of a head pose x_cam = R x_head + t."""
    matrix = np.eye(4)
    matrix[:3, :3] = R.T @ OPENGL_FROM_OPENCV
    matrix[:3, 3] = -R.T @ t
    return matrix


def transforms(track: Track, *, meshes: int = 1) -> dict[str, Any]:
    """Contents of ``transforms.json``: the world is head space (metres, y up); the head stands still, the camera moves.

    Lost frames are left out. ``mesh`` is there for every ``meshes``-th row, whose PLY file the run wrote; 0: for none.
    """
    width, height = (int(n) for n in track.image_size)
    names = ("k1", "k2", "p1", "p2", "k3")
    frames = [
        {
            **({"mesh": f"meshes/{track.frame[i]:06d}.ply"} if meshes and i % meshes == 0 else {}),
            "frame": int(track.frame[i]),
            "time": float(track.time[i]),
            "transform_matrix": camera_to_world(track.R[i], track.t[i]).tolist(),
        }
        for i in np.flatnonzero(track.status != Status.LOST)
    ]
    return {
        "camera_model": "OPENCV",
        "fl_x": float(track.K[0, 0]),
        "fl_y": float(track.K[1, 1]),
        "cx": float(track.K[0, 2]),
        "cy": float(track.K[1, 2]),
        "w": width,
        "h": height,
        **{name: float(value) for name, value in zip(names, track.distortion, strict=True)},
        "frames": frames,
    }


def write_transforms(path: str | Path, track: Track, *, meshes: int = 1) -> None:
    """Write ``transforms.json`` atomically."""
    with replacing(Path(path)) as partial:
        partial.write_text(json.dumps(transforms(track, meshes=meshes), indent=1) + "\n", encoding="utf-8")
