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
OUTLIER = 0.004
"""Metres from where the skin around the lips would put a lip vertex: further off it is on the other lip."""
STIFFNESS, AGREE_STEPS = 0.15, 40
SLIT, EDGE = 0.003, 0.004
"""Metres: the widest slit between lips at rest that is closed, and how far from its edge a lip is stretched for it."""
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

    Where the lips touch, the deformation folds both onto one canonical place, and a vertex there may end on the other
    lip. Such vertices are started from where they were with the mouth open, moved along with the skin around the lips
    (harmonically), and one that is still solved far from there follows its neighbours.
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
            self.lips = LipZone.find(mesh, rim, z_id.device)
            skin = np.setdiff1d(skin, self.lips.index.cpu().numpy())
        self.skin = torch.from_numpy(skin).to(z_id.device)

    @torch.no_grad()
    def __call__(self, z_ex: Tensor, previous: Carried | None = None) -> Carried:
        """Vertices for z_ex [D_ex]; ``previous`` is the result for the frame before, None starts afresh."""
        if previous is None:
            return self._afresh(z_ex)
        debt = previous.debt + (z_ex - previous.z_ex).norm()
        due = previous.sensitivity * debt > TOLERANCE / 2
        if self.opened is not None:
            due[self.lips.index] = False
        whole = PosedPoints(*(a.clone() for a in vars(previous.posed).values()))
        index = due.nonzero().squeeze(1)
        part = self._solve(index, z_ex, _part(whole, index))
        moved = (part.points - whole.points[index]).norm(dim=-1) + part.residual
        sensitivity = previous.sensitivity.clone()
        sensitivity[index] = (moved / debt[index].clamp_min(1e-9)).clamp_min(TOLERANCE / 2)
        debt[index] = 0
        _put(whole, index, part)
        if self.opened is not None:  # from the open mouth in every frame: a vertex on the wrong lip would stay there
            self._solve_lips(whole, z_ex, self.opened)
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
        self._solve_lips(whole, z_ex, self.opened)
        return Carried(whole, z_ex, unknown, torch.zeros_like(unknown))

    def _solve(self, index: Tensor, z_ex: Tensor, start: PosedPoints) -> PosedPoints:
        return pose_points(self.model, self.canonical[index], self.z_id, z_ex, warm=start, tolerance=TOLERANCE)

    def _solve_lips(self, whole: PosedPoints, z_ex: Tensor, opened: Tensor) -> None:
        lips = self.lips
        guess = opened[lips.index] + lips.extend(whole.points[lips.border] - opened[lips.border])
        slope = lips.extend(whole.inverse_jacobian[lips.border].flatten(1)).unflatten(1, (3, 3))
        solved = self._solve(lips.index, z_ex, PosedPoints(guess, slope, whole.residual[lips.index]))
        points = guess + lips.agree(solved.points - guess) + lips.closing
        _put(whole, lips.index, PosedPoints(points, solved.inverse_jacobian, solved.residual))


@dataclass(frozen=True)
class LipZone:
    """The part of a mesh that may belong to either lip, and the skin that holds it.

    Attributes:
        index: [L] vertices of the zone.
        border: [B] vertices next to it.
        harmonic: [L, B] weights with which fields on the border continue harmonically over the zone, on the open mouth.
        edges: [2, E] pairs of places in ``index``, both ways round.
        weights: [E] of the edges.
        degree: [L] sum of a vertex's weights, those of edges to the border included.
        closing: [L, 3] what the edges of the lips lack to meet at rest (model units).
    """

    index: Tensor
    border: Tensor
    harmonic: Tensor
    edges: Tensor
    weights: Tensor
    degree: Tensor
    closing: Tensor

    @classmethod
    def find(cls, mesh: CanonicalMesh, rim: NDArray[np.floating], device: torch.device) -> LipZone:
        """Vertices within ``LIP_ZONE`` of canonical points ``rim`` [N, 3] (metres) that reach its border."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components, laplacian
        from scipy.spatial import cKDTree

        assert mesh.open_vertices is not None
        n = len(mesh.vertices)
        near = cKDTree(rim).query(mesh.vertices, distance_upper_bound=LIP_ZONE)[0] < LIP_ZONE
        pairs = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
        pairs = np.unique(np.sort(pairs[near[pairs].any(1)], 1), axis=0)
        label = connected_components(coo_matrix((np.ones(len(pairs)), pairs.T), (n, n)), directed=False)[1]
        held = np.zeros(n, bool)
        held[label[pairs[~near[pairs].all(1)]].ravel()] = True  # parts that reach the border
        inside, border = np.flatnonzero(near & held[label]), np.setdiff1d(pairs, np.flatnonzero(near))
        length = np.linalg.norm(mesh.open_vertices[pairs[:, 0]] - mesh.open_vertices[pairs[:, 1]], axis=1)
        weight = 1 / np.maximum(length, 1e-4)
        graph = coo_matrix((weight, pairs.T), (n, n)).tocsr()
        whole = laplacian(graph + graph.T).tocsr()
        dense = whole[inside][:, inside].toarray()
        harmonic = np.linalg.solve(dense, -whole[inside][:, border].toarray())
        row, column = np.nonzero(dense - np.diag(np.diag(dense)))
        closing = lip_closing(mesh.vertices[inside], mesh.open_vertices[inside]) / MODEL_UNIT
        arrays = (inside, border, harmonic, np.stack([row, column]), -dense[row, column], np.diag(dense), closing)
        return cls(
            *(
                torch.tensor(a, dtype=torch.long if a.dtype.kind == "i" else torch.float32, device=device)
                for a in arrays
            )
        )

    def extend(self, field: Tensor) -> Tensor:
        """Values [L, C] in the zone of a field [B, C] on the border."""
        return self.harmonic @ field

    def agree(self, moved: Tensor) -> Tensor:
        """Displacements [L, 3] (model units) without outliers: the further one is, the more it follows its neighbours.

        A field c with sum_i w_i |c_i - moved_i|^2 + stiffness |grad c|^2 smallest, zero on the border; Tukey's weights.
        """
        own = (1 - (moved.norm(dim=-1) * MODEL_UNIT / OUTLIER).square()).clamp_min(0).square().unsqueeze(1)
        stiff = STIFFNESS / self.degree.mean()
        c = own * moved
        for _ in range(AGREE_STEPS):
            around = torch.zeros_like(c).index_add_(0, self.edges[0], self.weights[:, None] * c[self.edges[1]])
            c = (own * moved + stiff * around) / (own + stiff * self.degree[:, None]).clamp_min(1e-9)
        return c


def lip_closing(closed: NDArray[np.floating], opened: NDArray[np.floating]) -> NDArray[np.float64]:
    """Displacements [L, 3] (metres) that let the edges of the lips, vertices [L, 3] at rest and open, meet at rest.

    The distance field rounds the edges off, so a closed mouth would show a slit of one or two millimetres. Each lip
    gets half of it at its edge, less away from it, nothing at the corners, where no vertex is clearly one lip's.
    """
    drop = closed[:, 1] - opened[:, 1]
    low, high = np.quantile(drop, [0.05, 0.95])
    side = np.clip(2 * (drop - low) / max(high - low, 1e-6) - 1, -1, 1)  # -1: upper lip, 1: lower lip
    x = closed[:, 0]
    places = np.linspace(x.min(), x.max(), 31)
    edges = np.full((2, len(places)), np.nan)
    for k, place in enumerate(places):
        near = np.abs(x - place) < 0.0025
        for edge, lip, pick in ((0, near & (side < -0.4), np.min), (1, near & (side > 0.4), np.max)):
            if lip.any():
                edges[edge, k] = pick(closed[lip, 1])
    known = np.isfinite(edges).all(0)
    if known.sum() < 5:
        return np.zeros_like(closed, np.float64)
    upper, lower = (np.interp(x, places[known], e[known]) for e in edges)
    slit = np.clip(upper - lower, 0, SLIT)
    off = closed[:, 1] - np.where(side < 0, upper, lower)
    lift = 0.5 * slit * np.tanh(3 * side) * np.exp(-((off / EDGE) ** 2))
    return np.stack([0 * lift, lift, 0 * lift], 1)


def _tensor(vertices: NDArray[np.float32], like: Tensor) -> Tensor:
    return torch.from_numpy(vertices / MODEL_UNIT).to(like)


def _part(points: PosedPoints, index: Tensor) -> PosedPoints:
    return PosedPoints(points.points[index], points.inverse_jacobian[index], points.residual[index])


def _put(whole: PosedPoints, index: Tensor, part: PosedPoints) -> None:
    whole.points[index], whole.inverse_jacobian[index] = part.points, part.inverse_jacobian
    whole.residual[index] = part.residual
