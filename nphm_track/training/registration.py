"""Carry named points from one head surface to another by non-rigid registration (Amberg et al. 2007, simplified).

The displacement of the source's skin is a smooth field that obeys point correspondences first and closest points of the
target later, with falling stiffness; left and right are averaged, so the source must be symmetric about x = 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

from nphm_track.kd_tree import kd_tree
from nphm_track.rendering.rasteriser import vertex_normals
from nphm_track.training.ict import IctHeads

STIFFNESS = (30.0, 10.0, 3.0, 1.0, 0.3, 0.3)
"""Weight of the smoothness terms against unit weight of a closest point, one solve each."""
LANDMARK_WEIGHT = 20.0
REACH = 0.03
"""Metres; a closest point farther off is not believed."""


def register(
    source: IctHeads,
    target: IctHeads,
    face: NDArray[np.integer],
    bary: NDArray[np.floating],
    landmarks: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Places [V, 3] of the source's vertices on the target's neutral surface.

    ``landmarks`` [N, 3] on the target belong to the points (``face`` [N], ``bary`` [N, 3]) of the source. Eyeballs move
    as a whole (centre and size), where the source has any.
    """
    v = source.neutral.astype(float)
    n = len(v)
    skin = np.unique(source.faces[~source.is_eye[source.faces].any(1)])
    smooth, membrane = _smoothness(source, n)
    pick = sparse.csr_matrix(
        (bary.ravel(), (np.repeat(np.arange(len(face)), 3), source.faces[face].ravel())), (len(face), n)
    )
    wanted = landmarks - pick @ v
    goal = _outer(target)
    goal_points = target.neutral[goal].astype(float)
    goal_normals = vertex_normals(target.neutral, target.faces)[goal]
    tree = kd_tree(goal_points)
    follows = np.intersect1d(_outer(source), np.flatnonzero(v[:, 1] > -0.16))
    d = np.zeros((n, 3))
    for k, stiffness in enumerate(STIFFNESS):
        weight, target_d = np.zeros(n), np.zeros((n, 3))
        if k:
            moved = v + d
            normals = vertex_normals(moved.astype(np.float32), source.faces)
            distance, nearest = tree.query(moved[follows])
            offset = goal_points[nearest] - moved[follows]
            along = (offset * goal_normals[nearest]).sum(1, keepdims=True) * goal_normals[nearest]
            good = (distance < REACH) & ((normals[follows] * goal_normals[nearest]).sum(1) > 0.5)
            weight[follows] = good
            target_d[follows] = d[follows] + along  # to the tangent plane: points may slide along the surface
        normal_matrix = (
            stiffness * (smooth + 0.002 * membrane) + sparse.diags(weight + 1e-9) + LANDMARK_WEIGHT * (pick.T @ pick)
        )
        right = weight[:, None] * target_d + LANDMARK_WEIGHT * (pick.T @ wanted)
        d = splu(normal_matrix.tocsc()).solve(right)
        d[skin] = (d[skin] + d[source.mirror[skin]] * [-1, 1, 1]) / 2
    out = v + d
    for side in (-1, 1):
        own, other = (h.is_eye & (np.sign(h.neutral[:, 0]) == side) for h in (source, target))
        if not own.any():
            continue
        a, b = v[own], target.neutral[other].astype(float)
        size = np.linalg.norm(b - b.mean(0), axis=1).mean() / np.linalg.norm(a - a.mean(0), axis=1).mean()
        out[own] = (a - a.mean(0)) * size + b.mean(0)
    return out


def _outer(heads: IctHeads) -> NDArray[np.integer]:
    """Vertices of the outer skin."""
    used = np.unique(heads.faces)
    return used[~heads.is_eye[used] & ~heads.is_pocket[used]]


def _smoothness(heads: IctHeads, n: int) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Quadratic forms of the bending (second differences) and of the stretching of a field on the mesh."""
    edges = np.concatenate([heads.faces[:, [0, 1]], heads.faces[:, [1, 2]], heads.faces[:, [2, 0]]])
    edges = np.unique(np.sort(edges, 1), axis=0)
    adjacency = sparse.coo_matrix((np.ones(len(edges)), edges.T), (n, n))
    adjacency = (adjacency + adjacency.T).tocsr()
    degree = np.asarray(adjacency.sum(1)).ravel()
    membrane = sparse.diags(degree) - adjacency
    laplacian = sparse.diags(1 / np.maximum(degree, 1)) @ membrane
    return (laplacian.T @ laplacian).tocsr() * 100, membrane.tocsr()


def on_surface(
    heads: IctHeads, points: NDArray[np.floating], eye: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Closest points of the neutral surface as (face [N], bary [N, 3]): on eyeballs where ``eye``, else on the skin."""
    import igl

    v = heads.neutral.astype(float)
    eyeballs = heads.is_eye[heads.faces].any(1)
    pocket = heads.is_pocket[heads.faces].any(1)
    face, bary = np.zeros(len(points), np.int32), np.zeros((len(points), 3), np.float32)
    for rows, own in ((eye, eyeballs), (~eye, ~eyeballs & ~pocket)):
        if not rows.any():
            continue
        ids = np.flatnonzero(own)
        _, nearest, closest = igl.point_mesh_squared_distance(
            points[rows].astype(float), v, heads.faces[ids].astype(np.int64)
        )
        face[rows] = ids[nearest]
        corners = v[heads.faces[face[rows]]]
        bary[rows] = igl.barycentric_coordinates(closest, *(np.ascontiguousarray(corners[:, i]) for i in range(3)))
    return face, bary
