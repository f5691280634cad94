"""Geometry error of a predicted head against a real scan, as NoW (RingNet, CVPR 2019) and NeRSemble-SVFR measure it.

Only the scan's face counts: near the nose tip, inside the face's oval, turned to the front and visible from there. The
prediction is brought onto it by its seven points and a robust ICP, with free scale (``similarity``) and without
(``rigid``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.measure import points_in_poly

from nphm_track.errors import InputError
from nphm_track.evaluation.alignment import fit_surface
from nphm_track.evaluation.points7 import NAMES7 as NAMES7
from nphm_track.evaluation.points7 import checked7
from nphm_track.rendering.surface import FloatArray, Surface, face_normals, seen_from_front, unit, vertex_areas
from nphm_track.rigid import Similarity, fit_similarity

RADIUS, DEPTH, MIN_FACING, OVAL_MARGIN = 0.095, 0.075, 0.2, 0.004
"""Region: metres from the nose tip, metres behind it, least cosine to the front, metres added around the oval."""
ICP_POINTS, SURFACE_POINTS = 2500, 6000
"""Samples of the scan that are aligned, and of the prediction that are measured against the scan."""

# Places of Google's canonical face model (Apache-2.0): x to the image's right, y up, z to the front.
_CANONICAL7 = np.array([
    (-44.459, 26.640, 31.734), (-18.564, 25.852, 37.579), (18.564, 25.852, 37.579), (44.459, 26.640, 31.734),
    (0.0, -20.890, 60.583), (-24.562, -43.426, 42.839), (24.562, -43.426, 42.839),
]) * 1e-3  # fmt: skip
_CANONICAL_TIP = np.array([0.0, -4.632, 75.866]) * 1e-3
_TIP_SEARCH = 0.015
_HALF_OVAL = [
    (0.0, 82.618), (18.914, 82.364), (35.240, 80.060), (51.332, 74.856), (62.793, 66.154), (70.880, 54.348),
    (75.558, 41.068), (77.431, 23.650), (76.642, 6.731), (75.422, -10.493), (72.709, -28.909), (67.197, -47.886),
    (59.405, -62.236), (50.853, -71.786), (40.689, -79.931), (32.107, -85.333), (23.090, -89.742), (12.929, -92.959),
    (0.0, -94.034),
]  # fmt: skip
_OVAL = np.array(_HALF_OVAL + [(-x, y) for x, y in _HALF_OVAL[-2:0:-1]]) * 1e-3


@dataclass(frozen=True)
class Measures:
    """Error after one alignment. Lengths are millimetres; the scan's area weighs its vertices."""

    median: float
    mean: float
    std: float
    p90: float
    """Scan-to-mesh distance."""
    mesh_to_scan_mean: float
    mesh_to_scan_median: float
    chamfer_l1: float
    chamfer_l2: float
    """Both directions: mean of the mean distances, and of the mean squared distances (mm^2)."""
    normal_consistency: float
    """Mean cosine between the scan's normals and the mesh's."""
    recall_1mm: float
    recall_2p5mm: float
    completeness: float
    """Share of the scan within 1 mm, within 2.5 mm, and within 5 mm of the mesh's inside."""
    landmark_rms: float
    """RMS distance of the seven aligned points from the scan's."""
    scale: float
    """Factor the prediction was scaled by."""


@dataclass(frozen=True)
class ScanError:
    """Errors after alignment with and without scale."""

    similarity: Measures
    rigid: Measures


class Scan:
    """A real scan prepared for comparisons: the face region of a mesh in metres.

    Args:
        vertices: [V, 3] metres; faces: [F, 3].
        points7: [7, 3] in the order of ``NAMES7``.
        nose_tip: [3]; left out, the scan's foremost point near where a nose is.

    Raises InputError when there is no face around the nose tip.
    """

    def __init__(
        self, vertices: ArrayLike, faces: ArrayLike, points7: ArrayLike, nose_tip: ArrayLike | None = None
    ) -> None:
        self.vertices, self.faces = np.asarray(vertices, np.float64), np.asarray(faces, np.int64)
        self.points7 = checked7(points7)
        self._face = fit_similarity(_CANONICAL7, self.points7, scaled=True)
        self.nose_tip = self._found_tip() if nose_tip is None else np.asarray(nose_tip, np.float64)
        spoke = _OVAL - _OVAL.mean(0)
        self._oval = _OVAL + OVAL_MARGIN * unit(spoke)
        used, near = np.zeros(len(self.vertices), bool), self._distance_to_tip(self.vertices) < RADIUS
        used[self.faces] = True
        if not (used & near).any():
            raise InputError("the scan has no surface near the nose tip")
        normals = self._vertex_normals()
        if np.median((normals @ self.forward)[used & near]) < 0:
            self.faces, normals = self.faces[:, ::-1], -normals
        region: NDArray[np.integer] = np.flatnonzero(
            used & near & self._in_region(self.vertices, normals @ self.forward)
        )
        region = region[seen_from_front(self.vertices[region], self.vertices, self.faces, self._face.R, self.nose_tip)]
        region = self._large_parts(region)
        self.points, self.normals = self.vertices[region], normals[region]
        weight = vertex_areas(self.vertices, self.faces)[region]
        self.weight = weight / weight.sum()
        close = self._distance_to_tip(self.vertices[self.faces].mean(1)) < 0.13
        self.surface = Surface(self.vertices, self.faces[close], 0.006)

    @property
    def forward(self) -> FloatArray:
        """Direction [3] out of the face."""
        return self._face.R[:, 2]

    def error(self, vertices: ArrayLike, faces: ArrayLike, points7: ArrayLike) -> ScanError:
        """Error of a predicted mesh (any position, metres) with its own seven points, as :func:`scan_error`."""
        mesh, points7 = Surface(vertices, faces), checked7(points7)
        return ScanError(*(self._measures(mesh, points7, scaled=scaled) for scaled in (True, False)))

    def align(self, mesh: Surface, points7: FloatArray, *, scaled: bool) -> Similarity:
        """The map of a predicted mesh onto the scan."""
        rng = np.random.default_rng(0)
        some = rng.choice(len(self.points), min(ICP_POINTS, len(self.points)), replace=False, p=self.weight)
        start = fit_similarity(points7, self.points7, scaled=scaled)
        points, normals = self.points[some], self.normals[some]
        return fit_surface(mesh, points, normals, start, points7, self.points7, scaled=scaled)

    def _found_tip(self) -> FloatArray:
        expected = self._face(_CANONICAL_TIP[None])[0]
        near = self.vertices[np.unique(self.faces)]
        near = near[np.linalg.norm(near - expected, axis=1) < _TIP_SEARCH * self._face.scale]
        if not len(near):
            raise InputError("the scan has no nose where its seven points say it is")
        return near[np.argmax(near @ self.forward)]

    def _measures(self, mesh: Surface, points7: FloatArray, *, scaled: bool) -> Measures:
        fit, w = self.align(mesh, points7, scaled=scaled), self.weight
        hits = mesh.closest(fit.inverse(self.points))
        d = hits.distance * fit.scale * 1e3
        cosine = (hits.normal @ fit.R.T * self.normals).sum(1)
        if np.median(cosine) < 0:  # the prediction's faces are turned inside out
            cosine = -cosine
        order = np.argsort(d)
        rising = np.cumsum(w[order])
        median, p90 = (float(d[order][np.searchsorted(rising, q)]) for q in (0.5, 0.9))
        mean, back = float(w @ d), self._from_mesh(mesh, fit) * 1e3
        inside = ~(hits.on_border & (d > 1))
        return Measures(
            median=median,
            mean=mean,
            std=float(np.sqrt(w @ (d - mean) ** 2)),
            p90=p90,
            mesh_to_scan_mean=float(back.mean()),
            mesh_to_scan_median=float(np.median(back)),
            chamfer_l1=float(mean + back.mean()) / 2,
            chamfer_l2=float(w @ d**2 + (back**2).mean()) / 2,
            normal_consistency=float(w @ cosine),
            recall_1mm=float(w @ (d < 1)),
            recall_2p5mm=float(w @ (d < 2.5)),
            completeness=float(w @ ((d < 5) & inside)),
            landmark_rms=float(1e3 * np.sqrt(((fit(points7) - self.points7) ** 2).sum(1).mean())),
            scale=fit.scale,
        )

    def _from_mesh(self, mesh: Surface, fit: Similarity) -> FloatArray:
        """Distances, metres, of samples of the aligned prediction to the scan; where the scan has holes none counts."""
        vertices, faces = fit(mesh.vertices), mesh.faces
        near = self._distance_to_tip(vertices[faces].mean(1)) < 0.1
        normals = face_normals(vertices, faces)
        area, facing = np.linalg.norm(normals, axis=1), normals @ self.forward
        if facing[near].sum() < 0:
            facing = -facing
        front = np.flatnonzero(near & (facing > MIN_FACING * area))
        if not len(front):
            return np.full(1, np.nan)
        rng = np.random.default_rng(0)
        chosen = rng.choice(len(front), SURFACE_POINTS, p=area[front] / area[front].sum())
        weights = rng.dirichlet([1, 1, 1], SURFACE_POINTS)
        points = (vertices[faces[front[chosen]]] * weights[:, :, None]).sum(1)
        points = points[self._in_oval(points) & (self._distance_to_tip(points) < RADIUS)]
        points = points[seen_from_front(points, vertices, faces, self._face.R, self.nose_tip)]
        hits = self.surface.closest(points)
        counts = ~(hits.on_border & (hits.distance > 0.002)) & (hits.distance <= 0.025)
        return hits.distance[counts]

    def _in_region(self, points: FloatArray, facing: FloatArray) -> NDArray[np.bool_]:
        ahead = (points - self.nose_tip) @ self.forward > -DEPTH
        return (facing > MIN_FACING) & ahead & self._in_oval(points)

    def _in_oval(self, points: FloatArray) -> NDArray[np.bool_]:
        return points_in_poly(self._face.inverse(points)[:, :2], self._oval)

    def _distance_to_tip(self, points: FloatArray) -> FloatArray:
        return np.linalg.norm(points - self.nose_tip, axis=1)

    def _vertex_normals(self) -> FloatArray:
        normals = np.zeros_like(self.vertices)
        for corner in range(3):
            np.add.at(normals, self.faces[:, corner], face_normals(self.vertices, self.faces))
        return unit(normals)

    def _large_parts(self, region: NDArray[np.integer]) -> NDArray[np.integer]:
        """Leave out loose pieces, such as hair, that hold less than 2 % of the region."""
        inside = np.zeros(len(self.vertices), bool)
        inside[region] = True
        f = self.faces[inside[self.faces].all(1)]
        n = len(self.vertices)
        links = coo_matrix((np.ones(2 * len(f)), (f[:, [0, 0]].ravel(), f[:, 1:].ravel())), shape=(n, n))
        _, part = connected_components(links, directed=False)
        return region[np.bincount(part[region])[part[region]] > 0.02 * len(region)]


def scan_error(
    vertices: ArrayLike,
    faces: ArrayLike,
    points7: ArrayLike,
    scan_vertices: ArrayLike,
    scan_faces: ArrayLike,
    scan_points7: ArrayLike,
    nose_tip: ArrayLike,
) -> ScanError:
    """Error of a predicted mesh against a scan; both in metres, each in a frame of its own.

    Args:
        vertices, faces: the prediction, [V, 3] and [F, 3].
        points7: [7, 3] eye corners, nose base and mouth corners of the prediction, in the order of ``NAMES7``.
        scan_vertices, scan_faces, scan_points7: the same of the scan.
        nose_tip: [3] of the scan.

    Raises InputError when the points are not seven finite ones or the scan has no face around its nose tip.
    """
    return Scan(scan_vertices, scan_faces, scan_points7, nose_tip).error(vertices, faces, points7)
