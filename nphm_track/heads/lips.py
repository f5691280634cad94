"""The lips of a mesh: where they touch, a canonical point belongs to both, and the skin around them has to decide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.mesh import CanonicalMesh, edges_of

LIP_ZONE = 0.009
"""Metres around the inner rim of the lips within which a canonical point may belong to either lip."""
OUTLIER = 0.004
"""Metres from where the skin around the lips would put a lip vertex: further off it is on the other lip."""
STIFFNESS, AGREE_STEPS = 0.15, 40
SLIT, EDGE = 0.003, 0.004
"""Metres: the widest slit between lips at rest that is closed, and how far from its edge a lip is stretched for it."""


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

        from nphm_track.kd_tree import kd_tree

        assert mesh.open_vertices is not None
        n = len(mesh.vertices)
        near = kd_tree(rim).query(mesh.vertices, distance_upper_bound=LIP_ZONE)[0] < LIP_ZONE
        pairs = edges_of(mesh.faces)
        pairs = pairs[near[pairs].any(1)]
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
