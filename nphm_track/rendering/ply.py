"""Binary PLY: the mesh files of a run folder."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nphm_track.errors import InputError, OutputError
from nphm_track.files.reading import read_bytes, reading

_FACE = np.dtype([("count", "u1"), ("index", "<i4", 3)])
LARGEST = 1 << 30
"""Bytes of a mesh."""
_HEADER = re.compile(
    rb"ply\nformat binary_little_endian 1\.0\n(?:comment [^\n]*\n)*"
    rb"element vertex (\d+)\nproperty float x\nproperty float y\nproperty float z\n"
    rb"(property float nx\nproperty float ny\nproperty float nz\n)?"
    rb"element face (\d+)\nproperty list uchar int vertex_indices\nend_header\n"
)


def write_ply(path: str | Path, vertices: ArrayLike, faces: ArrayLike, normals: ArrayLike | None = None) -> None:
    """Write a triangle mesh atomically: a reader sees the whole file or none.

    Args:
        vertices: [V, 3], stored as float32 in the unit and frame they come in (metres and head space in a run folder).
        faces: [F, 3] vertex indices.
        normals: [V, 3] unit normals, optional.

    Raises OutputError when the file cannot be written.
    """
    columns = [np.asarray(vertices, "<f4").reshape(-1, 3)]
    properties = ["x", "y", "z"]
    if normals is not None:
        columns.append(np.asarray(normals, "<f4").reshape(-1, 3))
        properties += ["nx", "ny", "nz"]
    corners = np.asarray(faces).reshape(-1, 3)
    records = np.empty(len(corners), _FACE)
    records["count"], records["index"] = 3, corners
    header = "\n".join(
        [
            "ply\nformat binary_little_endian 1.0",
            f"element vertex {len(columns[0])}",
            *(f"property float {name}" for name in properties),
            f"element face {len(records)}",
            "property list uchar int vertex_indices\nend_header\n",
        ]
    )
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(header.encode())
            file.write(np.ascontiguousarray(np.hstack(columns)).data)
            file.write(records.data)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None


def read_ply(path: str | Path) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Vertices [V, 3] and faces [F, 3] of a file that ``write_ply`` wrote.

    Raises InputError when the file is missing, truncated, or not of that layout.
    """
    with reading(path, "a mesh"):
        data = read_bytes(path, LARGEST)
    header = _HEADER.match(data)
    if header is None:
        raise InputError(f"{path} is not a binary PLY triangle mesh as this program writes them")
    n_vertices, n_faces, width = int(header[1]), int(header[3]), 6 if header[2] else 3
    split = header.end() + 4 * width * n_vertices
    if len(data) != split + _FACE.itemsize * n_faces:
        raise InputError(f"{path} is damaged: {len(data)} bytes, {split + _FACE.itemsize * n_faces} expected")
    vertices = np.frombuffer(data, "<f4", width * n_vertices, header.end()).reshape(-1, width)[:, :3]
    records = np.frombuffer(data, _FACE, n_faces, split)
    corners = records["index"]
    if n_faces and ((records["count"] != 3).any() or corners.min() < 0 or corners.max() >= n_vertices):
        raise InputError(f"{path} is damaged: its faces name vertices it does not have")
    return vertices.astype(np.float32), corners.astype(np.int32)
