"""Carrying a canonical mesh to expressions: the skin by warm starts, the lips along with the skin around them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.inverse import PosedPoints, pose_points
from nphm_track.heads.landmarks import INNER_LIPS
from nphm_track.heads.mesh import CanonicalMesh, open_mouth_code

LIP_ZONE = 0.009
"""Metres around the inner rim of the lips within which a canonical point may belong to either lip."""
TOLERANCE = 2e-4
"""Model units (.05 mm)."""


@dataclass(frozen=True)
class Carried:
    """A mesh in one expression, with what the next frame needs (model units).

    Attributes:
        posed: the vertices [V, 3] and how well they are solved.
        z_ex: [D_ex] the expression.
        sensitivity: [V] how far a vertex moved, when last looked at, for a unit change of the code.
        debt: [V] by how much the code has changed since.
    """

    posed: PosedPoints
    z_ex: Tensor
    sensitivity: Tensor
    debt: Tensor


class MeshCarrier:
    """The vertices of one person's mesh, posed; expressions that follow each other in time are cheapest.

    From frame to frame a vertex is looked at only when, by what it did before, it may have moved by half of
    ``TOLERANCE``: skull, ears and neck rest most of the time.

    Where the lips touch, the deformation folds both onto one canonical place, and a vertex started from a closed mouth
    may end on the other lip. Vertices there are started from where they were with the mouth open, moved along with the
    nearest vertex (along the surface) outside that zone.
    """

    @torch.no_grad()
    def __init__(self, model: NphmDecoder, mesh: CanonicalMesh, z_id: Tensor) -> None:
        self.model, self.z_id = model, z_id
        self.canonical = _tensor(mesh.vertices, z_id)
        self.opened: Tensor | None = None
        code = open_mouth_code(model)
        skin, lips, guide = np.arange(len(mesh.vertices)), np.empty(0, np.int64), np.empty(0, np.int64)
        if mesh.open_vertices is not None and code is not None:
            self.opened, self.code = _tensor(mesh.open_vertices, z_id), code
            rim = (model.landmarks(z_id)[list(INNER_LIPS)] * MODEL_UNIT).cpu().numpy()
            skin, lips, guide = lip_guides(mesh, rim)
        self.skin, self.lips, self.guide = (torch.from_numpy(i).to(z_id.device) for i in (skin, lips, guide))

    @torch.no_grad()
    def __call__(self, z_ex: Tensor, previous: Carried | None = None) -> Carried:
        """Vertices for z_ex [D_ex]; ``previous`` is the result for the frame before, None starts afresh."""
        if previous is None:
            return self._afresh(z_ex)
        debt = previous.debt + (z_ex - previous.z_ex).norm()
        due = previous.sensitivity * debt > TOLERANCE / 2
        due[self.lips] = False
        whole = PosedPoints(*(a.clone() for a in vars(previous.posed).values()))
        index = due.nonzero().squeeze(1)
        part = self._solve(index, z_ex, _part(whole, index))
        moved = (part.points - whole.points[index]).norm(dim=-1) + part.residual
        sensitivity = previous.sensitivity.clone()
        sensitivity[index] = (moved / debt[index].clamp_min(1e-9)).clamp_min(TOLERANCE / 2)
        debt[index] = 0
        _put(whole, index, part)
        if self.opened is not None:  # from the open mouth in every frame: a vertex on the wrong lip would stay there
            along = whole.points[self.guide] - self.opened[self.guide]
            self._solve_lips(whole, z_ex, self.opened[self.lips] + along)
        return Carried(whole, z_ex, sensitivity, debt)

    def _afresh(self, z_ex: Tensor) -> Carried:
        unknown = torch.full_like(self.canonical[:, 0], torch.inf)
        if self.opened is None:
            whole = pose_points(self.model, self.canonical, self.z_id, z_ex, tolerance=TOLERANCE)
            return Carried(whole, z_ex, unknown, torch.zeros_like(unknown))
        skin = pose_points(
            self.model,
            self.canonical[self.skin],
            self.z_id,
            z_ex,
            origin=(self.opened[self.skin], self.code),
            tolerance=TOLERANCE,
            cold_steps=2,
        )
        eye = torch.eye(3).to(self.opened).repeat(len(self.opened), 1, 1)
        whole = PosedPoints(self.opened.clone(), eye, torch.zeros_like(unknown))
        _put(whole, self.skin, skin)
        along = whole.points[self.guide] - self.opened[self.guide]
        self._solve_lips(whole, z_ex, self.opened[self.lips] + along)
        return Carried(whole, z_ex, unknown, torch.zeros_like(unknown))

    def _solve(self, index: Tensor, z_ex: Tensor, start: PosedPoints) -> PosedPoints:
        return pose_points(self.model, self.canonical[index], self.z_id, z_ex, warm=start, tolerance=TOLERANCE)

    def _solve_lips(self, whole: PosedPoints, z_ex: Tensor, guess: Tensor) -> None:
        start = PosedPoints(guess, whole.inverse_jacobian[self.guide], whole.residual[self.lips])
        _put(whole, self.lips, self._solve(self.lips, z_ex, start))


def lip_guides(
    mesh: CanonicalMesh, rim: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Vertices outside the lip zone, those in it, and for each of these the nearest outside, along the open surface.

    ``rim`` [N, 3] are canonical points of the inner rim of the lips, metres.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import dijkstra
    from scipy.spatial import cKDTree

    assert mesh.open_vertices is not None
    n = len(mesh.vertices)
    near = cKDTree(rim).query(mesh.vertices, distance_upper_bound=LIP_ZONE)[0] < LIP_ZONE
    edges = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    edges = edges[near[edges].any(1)]
    length = np.linalg.norm(mesh.open_vertices[edges[:, 0]] - mesh.open_vertices[edges[:, 1]], axis=1)
    graph = coo_matrix((length.clip(1e-7), (edges[:, 0], edges[:, 1])), shape=(n, n)).tocsr()
    border = np.setdiff1d(np.unique(edges), np.flatnonzero(near))
    if len(border) == 0:
        return np.arange(n), np.empty(0, np.int64), np.empty(0, np.int64)
    source = dijkstra(graph, directed=False, indices=border, min_only=True, return_predecessors=True)[2]
    lips = np.flatnonzero(near & (source >= 0))
    return np.setdiff1d(np.arange(n), lips), lips, source[lips].astype(np.int64)


def _tensor(vertices: NDArray[np.float32], like: Tensor) -> Tensor:
    return torch.from_numpy(vertices / MODEL_UNIT).to(like)


def _part(points: PosedPoints, index: Tensor) -> PosedPoints:
    return PosedPoints(points.points[index], points.inverse_jacobian[index], points.residual[index])


def _put(whole: PosedPoints, index: Tensor, part: PosedPoints) -> None:
    whole.points[index], whole.inverse_jacobian[index] = part.points, part.inverse_jacobian
    whole.residual[index] = part.residual
