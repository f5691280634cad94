"""Animated binary glTF 2.0: head with morph targets, head pose on its node, camera.

The targets of a run in the template's topology are the person's rig by ARKit's names (``morphs.named_morphs``); others
are found in the motion.

The world is the camera-fixed one. glTF itself is in metres and y up; another ``unit`` or ``up`` is written as asked
and stated in ``asset.extras``. The mesh of node ``head`` has morph targets (``morphs.fit_morphs``), whose error
stands in ``asset.extras``: at the mesh's own weights it is the neutral head, and animated weights move it. Time is
that of the clip, counted from the first frame. While the head is lost its node has scale 0, since glTF animates no
visibility; pose and weights have no keys there. A glTF camera is a centred pinhole: principal point and distortion it
cannot hold are in ``asset.extras`` too.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from nphm_track.export.frames import present_rows
from nphm_track.export.manifest import GENERATOR, camera
from nphm_track.export.morphs import SHARE, Morphs, fit_morphs, named_morphs, sparse
from nphm_track.export.options import ExportOptions
from nphm_track.heads.template import load_template
from nphm_track.rendering.rasteriser import vertex_normals
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import Status, Track
from nphm_track.tracking.run_folder import Run

NEAR, FAR = 0.01, 100.0
"""Clipping distances of the camera, metres."""
FLOAT, UINT = 5126, 5125
VERTEX_DATA, INDEX_DATA = 34962, 34963
SKIN_COLOUR = (0.8, 0.72, 0.66, 1.0)
SKIN = {
    "name": "skin",
    "doubleSided": True,
    "pbrMetallicRoughness": {"baseColorFactor": list(SKIN_COLOUR), "metallicFactor": 0.0, "roughnessFactor": 0.6},
}
PAINTED = {
    "name": "parts",
    "doubleSided": True,
    "pbrMetallicRoughness": {"baseColorFactor": [1.0, 1.0, 1.0, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.6},
}
"""Of a mesh whose vertices have the colours of its parts."""


def write(run: Run, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write the file ``target``."""
    track, rows = run.track, present_rows(run)
    morphs = named_morphs(run, rows, progress) or fit_morphs(run, rows, progress)
    buffer = _Buffer()
    mesh = _mesh(buffer, morphs, options)
    R, t = options.head_pose(track.R[rows], track.t[rows])
    rotations = _continuous(Rotation.from_matrix(R).as_quat())
    tilt = Rotation.from_matrix(options.axes).as_quat()
    content = {
        "asset": {"generator": GENERATOR, "version": "2.0", "extras": _extras(track, morphs, options)},
        "scene": 0,
        "scenes": [{"nodes": [0, 1]}],
        "nodes": [
            {"name": "head", "mesh": 0, "rotation": rotations[0].tolist(), "translation": t[0].tolist()},
            {"name": "camera", "camera": 0, "rotation": tilt.tolist()},
        ],
        "cameras": [_camera(track, options)],
        "materials": [SKIN, PAINTED],
        "meshes": [mesh],
        "animations": [_animation(buffer, track, rows, rotations, t, morphs.weights)],
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": buffer.length}],
    }
    _write_chunks(target, content, buffer)
    K, (width, height) = track.K, track.image_size
    shift = float(np.hypot(K[0, 2] - width / 2, K[1, 2] - height / 2))
    if shift > 0.05 or track.distortion.any():
        progress.note(f"glTF cameras are centred and free of distortion: this one is {shift:.1f} px off centre")
    count, share = len(morphs.targets), f"{100 * SHARE:g} % of the vertices"
    progress.note(
        f"{count} morph targets: {share} within {morphs.error_px:.3f} px, all {morphs.largest_error_px:.3f} px"
    )


class _Buffer:
    """The binary chunk: arrays with their accessors."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.length = 0
        self.views: list[dict[str, int]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, values: ArrayLike, type: str, *, target: int | None = None, bounds: bool = False) -> int:
        """Index of the accessor of an array: float32, or uint32 for integers; rows are elements."""
        array = np.asarray(values)
        integer = array.dtype.kind in "iu"
        array = np.ascontiguousarray(array, "<u4" if integer else "<f4")
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[type]
        accessor = {
            "bufferView": self._view(array, target),
            "componentType": UINT if integer else FLOAT,
            "count": array.size // width,
            "type": type,
        }
        if bounds:
            table = array.reshape(-1, width)
            accessor |= {"min": table.min(0).tolist(), "max": table.max(0).tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def add_sparse(self, points: NDArray[np.floating], moving: NDArray[np.integer]) -> int:
        """Index of the accessor of points [V, 3] of which only the rows ``moving`` [M] are not zero."""
        values = np.ascontiguousarray(points[moving], "<f4")
        self.accessors.append(
            {
                "componentType": FLOAT,
                "count": len(points),
                "type": "VEC3",
                "min": values.min(0, initial=0).tolist(),
                "max": values.max(0, initial=0).tolist(),
                "sparse": {
                    "count": len(moving),
                    "indices": {"bufferView": self._view(moving.astype("<u4")), "componentType": UINT},
                    "values": {"bufferView": self._view(values)},
                },
            }
        )
        return len(self.accessors) - 1

    def _view(self, array: NDArray[Any], target: int | None = None) -> int:
        self.views.append({"buffer": 0, "byteOffset": self.length, "byteLength": array.nbytes})
        if target is not None:
            self.views[-1]["target"] = target
        self.parts.append(array.tobytes())
        self.length += array.nbytes  # all components have four bytes: alignment is kept
        return len(self.views) - 1


def _mesh(buffer: _Buffer, morphs: Morphs, options: ExportOptions) -> dict[str, Any]:
    def points(values: NDArray[np.float32]) -> int:
        return buffer.add(options.points(values), "VEC3", target=VERTEX_DATA, bounds=True)

    normals = vertex_normals(morphs.neutral, morphs.faces)
    normals[~normals.any(1)] = (0, 0, 1)  # glTF wants unit length of unused vertices too
    primitive: dict[str, Any] = {
        "attributes": {
            "POSITION": points(morphs.base),
            "NORMAL": buffer.add(normals @ options.axes.T, "VEC3", target=VERTEX_DATA),
        },
        "indices": buffer.add(morphs.faces.ravel(), "SCALAR", target=INDEX_DATA),
        "material": 0,
    }
    if morphs.names:
        primitive["attributes"]["COLOR_0"] = buffer.add(
            load_template().colours_on(SKIN_COLOUR[:3]), "VEC3", target=VERTEX_DATA
        )
        primitive["material"] = 1
    mesh: dict[str, Any] = {"name": "head", "primitives": [primitive]}

    def displacements(target: NDArray[np.float32]) -> int:
        moving = np.flatnonzero(target.any(1))
        few = len(moving) and sparse(len(moving), len(target))
        return buffer.add_sparse(options.points(target), moving) if few else points(target)

    if len(morphs.targets):
        primitive["targets"] = [{"POSITION": displacements(target)} for target in morphs.targets]
        mesh["weights"] = morphs.rest.tolist()
        mesh["extras"] = {"targetNames": list(morphs.names) or [f"motion_{k:02d}" for k in range(len(morphs.targets))]}
    return mesh


def _animation(
    buffer: _Buffer,
    track: Track,
    rows: NDArray[np.int64],
    rotations: NDArray[np.float64],
    translations: NDArray[np.float64],
    weights: NDArray[np.float32],
) -> dict[str, Any]:
    samplers: list[dict[str, Any]] = []
    channels: list[dict[str, Any]] = []

    def animate(path: str, times: int, values: int, interpolation: str = "LINEAR") -> None:
        channels.append({"sampler": len(samplers), "target": {"node": 0, "path": path}})
        samplers.append({"input": times, "output": values, "interpolation": interpolation})

    clock = track.time - track.time[0]
    times = buffer.add(clock[rows], "SCALAR", bounds=True)
    animate("rotation", times, buffer.add(rotations, "VEC4"))
    animate("translation", times, buffer.add(translations, "VEC3"))
    if weights.shape[1]:
        animate("weights", times, buffer.add(weights.ravel(), "SCALAR"))
    if len(rows) < len(track):
        seen = np.repeat((track.status != Status.LOST).astype(np.float32)[:, None], 3, 1)
        animate("scale", buffer.add(clock, "SCALAR", bounds=True), buffer.add(seen, "VEC3"), "STEP")
    return {"name": "performance", "samplers": samplers, "channels": channels}


def _camera(track: Track, options: ExportOptions) -> dict[str, Any]:
    (width, height), K = track.image_size, track.K
    return {
        "name": "camera",
        "type": "perspective",
        "perspective": {
            "yfov": float(2 * np.arctan(height / (2 * K[1, 1]))),
            "aspectRatio": float(width / K[0, 0] / (height / K[1, 1])),
            "znear": NEAR * options.scale,
            "zfar": FAR * options.scale,
        },
    }


def _extras(track: Track, morphs: Morphs, options: ExportOptions) -> dict[str, Any]:
    return {
        **options.described(),
        "camera": camera(track),
        "start_time": float(track.time[0]),
        **({"images": track.image.tolist()} if len(track.image) else {}),
        "morph_error_px": round(morphs.error_px, 4),
        "morph_largest_error_px": round(morphs.largest_error_px, 4),
    }


def _continuous(quaternions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quaternions [N, 4] with signs such that neighbours are on the same half of the sphere, for interpolation."""
    flips = np.sign((quaternions[1:] * quaternions[:-1]).sum(1))
    flips[flips == 0] = 1
    return quaternions * np.cumprod(np.r_[1.0, flips])[:, None]


def _write_chunks(path: Path, content: dict[str, Any], buffer: _Buffer) -> None:
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    with open(path, "wb") as file:
        file.write(struct.pack("<4sII", b"glTF", 2, 28 + len(text) + buffer.length))
        file.write(struct.pack("<I4s", len(text), b"JSON") + text)
        file.write(struct.pack("<I4s", buffer.length, b"BIN\0"))
        file.writelines(buffer.parts)
