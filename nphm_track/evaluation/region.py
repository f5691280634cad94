"""Scan-to-mesh comparison as the NoW benchmark makes it (RingNet, CVPR 2019), which NeRSemble-SVFR follows.

The scan is cropped to a ball around the face; the prediction is brought onto it by its seven points, then by least
squares of the distances of scan points, with scale or without.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nphm_track.errors import InputError
from nphm_track.evaluation.alignment import fit_distances
from nphm_track.evaluation.points7 import checked7
from nphm_track.rendering.surface import Surface
from nphm_track.rigid import fit_similarity

MASK = 1.4
"""Radius of the ball over the mean of the eyes' outer distance and the nose's length."""
MASK_HEIGHT = 0.3
"""Its centre between the nose base (0) and the bridge between the inner eye corners (1)."""
SAMPLES = 5000
"""Scan points that are aligned. NoW aligns all, which is as much as some 40 times the work for 0.001 mm."""


@dataclass(frozen=True)
class Deviation:
    """N scan points against an aligned prediction."""

    distance: NDArray[np.float32]
    """[N] metres."""
    offset: NDArray[np.float32]
    """[N, 3] from the scan to the closest point of the mesh, metres, in the scan's frame."""
    cosine: NDArray[np.float32] | None
    """[N] between the scan's normals and the mesh's; None when the scan has none."""
    scale: float
    """Factor the prediction was scaled by."""


class FaceRegion:
    """The part of a scan that counts.

    Args:
        vertices: [V, 3] metres, of a mesh or a point cloud.
        points7: [7, 3] in the order of ``points7.NAMES7``.
        normals: [V, 3] unit normals, optional; their sign is free as a whole.

    Raises InputError when there is no scan around the points.
    """

    def __init__(self, vertices: ArrayLike, points7: ArrayLike, normals: ArrayLike | None = None) -> None:
        vertices, self.points7 = np.asarray(vertices, np.float64), checked7(points7)
        bridge, base = self.points7[1:3].mean(0), self.points7[4]
        eyes = np.linalg.norm(self.points7[0] - self.points7[3])
        self.centre = base + MASK_HEIGHT * (bridge - base)
        self.radius = float(MASK * (eyes + np.linalg.norm(bridge - base)) / 2)
        inside = np.linalg.norm(vertices - self.centre, axis=1) <= self.radius
        if np.count_nonzero(inside) < 100:
            raise InputError("the scan has no surface around its seven points")
        self.points = vertices[inside]
        self.normals = None if normals is None else np.asarray(normals, np.float64)[inside]

    def compare(self, mesh: Surface, points7: ArrayLike, *, scaled: bool) -> Deviation:
        """Deviation of a prediction (metres, any position) with its own seven points [7, 3]."""
        start = fit_similarity(checked7(points7), self.points7, scaled=scaled)
        rng = np.random.default_rng(0)
        count = len(self.points)
        some = rng.choice(count, SAMPLES, replace=False) if count > SAMPLES else np.arange(count)
        fit = fit_distances(mesh, self.points[some], start, scaled=scaled)
        hits = mesh.closest(fit.inverse(self.points))
        cosine = None
        if self.normals is not None:
            cosine = (hits.normal @ fit.R.T * self.normals).sum(1).astype(np.float32)
            if np.median(cosine) < 0:
                cosine = -cosine
        offset = fit(hits.point) - self.points
        return Deviation(
            (hits.distance * fit.scale).astype(np.float32), offset.astype(np.float32), cosine, float(fit.scale)
        )
