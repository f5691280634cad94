"""Closest points on a triangle mesh, with what a scan comparison asks of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import ArrayLike, NDArray

from nphm_track.kd_tree import kd_tree
from nphm_track.rendering.kernels import kernel
from nphm_track.rendering.rasteriser import rasterise

FloatArray = NDArray[np.float64]

CANDIDATES = 64
"""Triangles that may be tried for each query, those with the nearest centroids; enough because no edge is long."""
MAX_EDGE = 0.005
"""Metres; longer edges are split, so that a triangle lies near its centroid."""


@dataclass(frozen=True)
class Hits:
    """The closest points on a surface to N queries."""

    distance: FloatArray  # [N]
    point: FloatArray  # [N, 3]
    normal: FloatArray  # [N, 3] unit normal of the triangle
    face: NDArray[np.int64]  # [N] the triangle, of the surface's ``faces``
    on_border: NDArray[np.bool_]  # [N] the point lies on the mesh's open border


class Surface:
    """A triangle mesh (vertices [V, 3] metres, faces [F, 3]) prepared for closest-point queries."""

    def __init__(self, vertices: ArrayLike, faces: ArrayLike, max_edge: float = MAX_EDGE) -> None:
        self.vertices = np.asarray(vertices, np.float64)
        faces = np.asarray(faces, np.int64)
        self.faces = faces[np.linalg.norm(face_normals(self.vertices, faces), axis=1) > 1e-16]
        points, triangles, self._face = trimesh.remesh.subdivide_to_size(
            self.vertices, self.faces, max_edge, max_iter=20, return_index=True
        )
        self._triangles = np.ascontiguousarray(points[triangles])  # [T, 3, 3]
        self._normals = unit(face_normals(points, triangles))
        centroids = self._triangles.mean(1)
        self._centroids = kd_tree(centroids)
        self._reach = float(np.linalg.norm(self._triangles - centroids[:, None], axis=-1).max())
        border = sample_border(self.vertices, self.faces, max_edge / 4)
        self._border = kd_tree(border) if len(border) else None
        self._border_width = 0.6 * max_edge / 4

    def closest(self, queries: FloatArray) -> Hits:
        """Closest points to ``queries`` [N, 3]."""
        k = min(CANDIDATES, len(self._triangles))
        far, candidate = self._centroids.query(queries, k=k)
        found, point = _closest(queries, self._triangles, candidate.reshape(-1, k), far.reshape(-1, k), self._reach)
        on_border = np.zeros(len(queries), bool)
        if self._border is not None:
            on_border = self._border.query(point)[0] < self._border_width
        distance = np.linalg.norm(point - queries, axis=1)
        return Hits(distance, point, self._normals[found], self._face[found], on_border)


def face_normals(vertices: FloatArray, faces: NDArray[np.integer]) -> FloatArray:
    """Normals [F, 3] with twice the triangle's area as their length."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return np.cross(b - a, c - a)


def vertex_areas(vertices: FloatArray, faces: NDArray[np.integer]) -> FloatArray:
    """A third of the area of the faces around each vertex [V]."""
    area = np.linalg.norm(face_normals(vertices, faces), axis=1) / 6
    return np.bincount(faces.ravel(), np.repeat(area, 3), len(vertices)).astype(np.float64)


def unit(vectors: FloatArray) -> FloatArray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30)


def sample_border(vertices: FloatArray, faces: NDArray[np.integer], spacing: float) -> FloatArray:
    """Points [N, 3] on the edges that belong to one face only, at most ``spacing`` apart."""
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    unique, count = np.unique(edges, axis=0, return_counts=True)
    a, b = (vertices[unique[count == 1, i]] for i in range(2))
    pieces = np.maximum(1, np.ceil(np.linalg.norm(b - a, axis=1) / spacing)).astype(int)
    runs = [p + (q - p) * np.linspace(0, 1, n + 1)[:, None] for p, q, n in zip(a, b, pieces, strict=True)]
    return np.concatenate(runs) if runs else np.empty((0, 3))


def seen_from_front(
    points: FloatArray,
    vertices: FloatArray,
    faces: NDArray[np.integer],
    axes: FloatArray,
    centre: FloatArray,
    tolerance: float = 0.004,
) -> NDArray[np.bool_]:
    """Whether points [N, 3] are not more than ``tolerance`` metres behind the mesh, seen along the face's forward axis.

    ``axes`` [3, 3] has the face's right-of-image, up and forward directions as columns; the view is nearly orthographic
    (10 m away), 25 cm wide around ``centre``, in cells of 0.7 mm.
    """
    cells, focal, far = 360, 14300.0, 10.0
    K = np.array([[focal, 0, cells / 2 + 0.5], [0, focal, cells / 2 + 0.5], [0, 0, 1]])

    def to_camera(x: FloatArray) -> FloatArray:
        return (x - centre) @ axes @ np.diag([1.0, -1.0, -1.0]) + [0, 0, far]

    front = rasterise(to_camera(vertices), faces, K, (cells, cells)).depth
    seen = to_camera(points)
    column, row = np.clip(np.floor(seen[:, :2] / seen[:, 2:] * focal + K[:2, 2]).astype(int), 0, cells - 1).T
    depth = front[row, column]
    return (depth == 0) | (seen[:, 2] < depth + tolerance)


@kernel()
def _closest(
    queries: FloatArray, triangles: FloatArray, candidate: NDArray[np.integer], far: FloatArray, reach: float
) -> tuple[NDArray[np.integer], FloatArray]:
    """Index of the closest candidate [N] and the point on it [N, 3]; ``far`` [N, K] is the ascending distance to the
    candidates' centroids, no corner of a triangle is further than ``reach`` from its centroid."""
    found, points = np.empty(len(queries), np.int64), np.empty((len(queries), 3))
    for i in range(len(queries)):
        best = np.inf
        for k in range(candidate.shape[1]):
            if far[i, k] - reach > best:
                break
            a, b, c = triangles[candidate[i, k]]
            point = _closest_on_triangle(queries[i], a, b, c)
            distance = np.sqrt(((point - queries[i]) ** 2).sum())
            if distance < best:
                best, found[i], points[i] = distance, candidate[i, k], point
    return found, points


@kernel()
def _closest_on_triangle(p: FloatArray, a: FloatArray, b: FloatArray, c: FloatArray) -> FloatArray:
    """By the Voronoi region p lies in (Ericson, Real-Time Collision Detection, section 5.1.5)."""
    ab, ac = b - a, c - a
    d1, d2 = (ab * (p - a)).sum(), (ac * (p - a)).sum()
    if d1 <= 0 and d2 <= 0:
        return a
    d3, d4 = (ab * (p - b)).sum(), (ac * (p - b)).sum()
    if d3 >= 0 and d4 <= d3:
        return b
    d5, d6 = (ab * (p - c)).sum(), (ac * (p - c)).sum()
    if d6 >= 0 and d5 <= d6:
        return c
    vc, vb, va = d1 * d4 - d3 * d2, d5 * d2 - d1 * d6, d3 * d6 - d5 * d4
    if vc <= 0 and d1 >= 0 and d3 <= 0:
        return a + ab * (d1 / (d1 - d3))
    if vb <= 0 and d2 >= 0 and d6 <= 0:
        return a + ac * (d2 / (d2 - d6))
    if va <= 0 and d4 >= d3 and d5 >= d6:
        return b + (c - b) * ((d4 - d3) / ((d4 - d3) + (d5 - d6)))
    return a + (ab * vb + ac * vc) / (va + vb + vc)
