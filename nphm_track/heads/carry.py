"""Carrying a canonical mesh to expressions: the skin by warm starts, the lips along with the skin around them."""

from __future__ import annotations

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


class MeshCarrier:
    """The vertices of one person's mesh, posed; expressions that follow each other in time are cheapest.

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
        skin = np.arange(len(mesh.vertices))
        if mesh.open_vertices is not None and code is not None:
            self.opened, self.code = _tensor(mesh.open_vertices, z_id), code
            rim = (model.landmarks(z_id)[list(INNER_LIPS)] * MODEL_UNIT).cpu().numpy()
            skin, lips, guide = lip_guides(mesh, rim)
            self.lips, self.guide = (torch.from_numpy(i).to(z_id.device) for i in (lips, guide))
        self.skin = torch.from_numpy(skin).to(z_id.device)

    @torch.no_grad()
    def __call__(self, z_ex: Tensor, previous: PosedPoints | None = None) -> PosedPoints:
        """Vertices [V, 3] (model units) for z_ex [D_ex]; ``previous`` is the result for the frame before."""
        if self.opened is None:
            return pose_points(self.model, self.canonical, self.z_id, z_ex, warm=previous)
        origin = self.opened[self.skin], self.code
        warm = None if previous is None else _part(previous, self.skin)
        skin = pose_points(
            self.model, self.canonical[self.skin], self.z_id, z_ex, warm=warm, origin=origin, cold_steps=2
        )
        whole = PosedPoints(
            self.opened.clone(), torch.eye(3).to(self.opened).repeat(len(self.opened), 1, 1), self.opened[:, 0] * 0
        )
        _put(whole, self.skin, skin)
        along = whole.points[self.guide] - self.opened[self.guide]
        start = PosedPoints(
            self.opened[self.lips] + along, whole.inverse_jacobian[self.guide], whole.residual[self.lips]
        )
        _put(whole, self.lips, pose_points(self.model, self.canonical[self.lips], self.z_id, z_ex, warm=start))
        return whole


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
