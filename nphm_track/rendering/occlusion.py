"""How much of the sky each point of a mesh sees: what makes mouth, nostrils and the corners of the eyes dark."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nphm_track.rendering.rasteriser import rasterise, vertex_normals

_DISTANCE = 4.0  # metres between mesh and viewpoint: nearly parallel rays
_SIZE = 160  # px of a side of each view
_BIAS = 0.003  # metres by which a point may lie behind the surface that a view shows there


def ambient_occlusion(vertices: ArrayLike, faces: ArrayLike, views: int = 48) -> NDArray[np.float32]:
    """Share of the sky over each vertex that nothing of the mesh hides, [V] in 0..1.

    Args:
        vertices: [V, 3] metres. faces: [F, 3] outward.
        views: directions, spread evenly over the sphere, from which the mesh is looked at.
    """
    points, triangles = np.asarray(vertices, np.float32), np.asarray(faces, np.int32)
    points = points - points.mean(0)
    normals = vertex_normals(points, triangles)
    radius = float(np.linalg.norm(points, axis=1).max())
    K = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 2]]) * _SIZE / 2
    K[2, 2], K[0, 0], K[1, 1] = 1, _SIZE / 2 * _DISTANCE / radius, _SIZE / 2 * _DISTANCE / radius
    seen, total = np.zeros(len(points)), np.full(len(points), 1e-6)
    for direction in _spread(views):
        camera = (points @ _looking_along(-direction).T).astype(np.float32)
        camera[:, 2] += _DISTANCE
        facing = normals @ direction
        drawn = rasterise(camera, triangles, K, (_SIZE, _SIZE))
        depth = np.where(drawn.face_id >= 0, drawn.depth, np.inf)
        pixel = camera[:, :2] / camera[:, 2:] * K[0, 0] + K[:2, 2]
        column, row = np.clip(pixel.astype(int), 0, _SIZE - 1).T
        # A sloping surface is deeper at the pixel's centre than at the vertex: allow for the slope too.
        allowed = _BIAS + 2 * radius / _SIZE / np.maximum(facing, 0.1)
        weight = np.maximum(facing, 0)
        seen += weight * (camera[:, 2] < depth[row, column] + allowed)
        total += weight
    return (seen / total).astype(np.float32)


def _spread(count: int) -> NDArray[np.float64]:
    """Directions [count, 3] on a Fibonacci spiral."""
    i = np.arange(count) + 0.5
    z, angle = 1 - 2 * i / count, np.pi * (1 + 5**0.5) * i
    return np.stack([np.cos(angle) * np.sqrt(1 - z * z), np.sin(angle) * np.sqrt(1 - z * z), z], 1)


def _looking_along(forward: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation [3, 3] whose last row is ``forward``."""
    helper = np.eye(3)[np.argmin(np.abs(forward))]
    right = np.cross(helper, forward)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])
