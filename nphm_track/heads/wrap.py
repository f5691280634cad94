"""Wrapping the template on the canonical surface of one person.

The linear prior's head for the identity code is moved onto the zero level of F where the network is the better witness
(``Template.trust``), and follows along where the prior is finer: edges of lids and lips, nostrils, ears. The motion is
one smooth field: it minimises trust * |d - d_surface|^2 + stiffness * |Laplacian d|^2, solved anew after each
projection. Lengths are metres, head space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nphm_track.conventions import LIDS, LIPS, MODEL_UNIT
from nphm_track.errors import ModelError
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.mesh import distance_and_gradient, model_field
from nphm_track.heads.mononphm import known_landmarks
from nphm_track.heads.template import Template, eye_axis, sphere
from nphm_track.rendering.rasteriser import vertex_normals

Array = NDArray[np.float64]
FITTED, FIT_STEPS = 3000, 3
"""Vertices and Gauss-Newton steps of the fit of the linear prior to the surface."""
POINT_SIGMA, SURFACE_SIGMA = 0.001, 0.0005
"""Metres that landmarks and surface are taken to be off by in that fit, where weights are N(0, 1)."""
ROUNDS = 3
STIFFNESS = 1e-11
"""m^4: bumps of about its fourth root (2 mm) and smaller are smoothed away."""
FACING = 0.3
"""Cosine between the vertex's normal and the surface's below which the surface is not the vertex's own."""
LONGEST = 0.004
"""Metres: a vertex this far from the surface, measured along its normal, is thought to face another sheet."""


@dataclass(frozen=True)
class Eyeball:
    """An eyeball's outer shell: centre [3] and radius (metres, head space), the cornea's bulge left out, and the unit
    vector [3] from the centre through the pupil at rest."""

    centre: NDArray[np.float32]
    radius: float
    axis: NDArray[np.float32]


@dataclass(frozen=True)
class WrappedHead:
    """The template of one person, at rest.

    Attributes:
        vertices: [V, 3].
        weights: [K] of the linear prior, where the wrapping started.
        moved: [S, 3] of the skin, from the prior's head.
        distance: [S] signed distance of the skin to the network's surface; 0 where nothing is trusted to it.
        eyes: left and right.
    """

    vertices: NDArray[np.float32]
    weights: NDArray[np.float32]
    moved: NDArray[np.float32]
    distance: NDArray[np.float32]
    eyes: tuple[Eyeball, Eyeball]


def wrap(template: Template, model: NphmDecoder, z_id: Tensor) -> WrappedHead:
    """The template on the canonical surface of identity code z_id [D_id]. Raises ModelError when there is none near."""
    weights = fit_prior(template, model, z_id)
    prior = template.person(weights).astype(np.float64)
    x = prior[: template.skin_size].copy()
    index = np.flatnonzero(template.trust > 0)
    normals = vertex_normals(x, template.faces[(template.faces < len(x)).all(1)])[index].astype(np.float64)
    distance, gradient = distance_and_gradient(model, x[index], z_id, None)
    along = (gradient * normals).sum(1)
    trusted = template.trust[index] * (along > FACING) * np.clip(2 - np.abs(distance) / LONGEST, 0, 1)
    if not trusted.sum() > 0.5 * template.trust.sum():
        raise ModelError("the identity code has no surface near the mean head's")
    field, signed = SkinField(template, x, index, trusted), model_field(model, z_id, None)
    moved = np.zeros_like(x)
    for _ in range(ROUNDS):
        step = np.clip(-distance / np.maximum(along, FACING), -LONGEST, LONGEST)
        wanted = moved[index] + step[:, None] * normals
        moved = field.fit(wanted)
        distance = signed(x[index] + moved[index]).astype(np.float64)
    off = np.zeros(len(x))
    off[index] = distance
    head = prior.copy()
    head[: len(x)] += moved
    eyes = _carry_parts(template, head, moved)
    vertices, start, displaced, away = (a.astype(np.float32) for a in (head, weights, moved, off))
    return WrappedHead(vertices, start, displaced, away, eyes)


def fit_prior(template: Template, model: NphmDecoder, z_id: Tensor) -> Array:
    """Weights [K] of the linear prior: by the model's own landmarks, then to its surface.

    Landmarks tell where on the skin a point is, the surface tells the rest; both hold for any head model and for codes
    off its prior.
    """
    known = [i for i in known_landmarks(model) if i < 468 and i not in LIDS and i not in LIPS]
    target = model.landmarks(z_id)[known].cpu().numpy().astype(np.float64) * MODEL_UNIT
    basis = template.identity.astype(np.float64)
    corners, share = template.landmark_corners[known], template.landmark_weights[known][..., None]
    shapes = (basis[:, corners] * share).sum(2).reshape(len(basis), -1).T / POINT_SIGMA
    lacking = (target - (template.neutral[corners] * share).sum(1)).ravel() / POINT_SIGMA
    normal = shapes.T @ shapes + np.eye(len(basis))
    w = np.linalg.solve(normal, shapes.T @ lacking)
    chosen = _spread_out(np.flatnonzero(template.trust > 0.9), FITTED)
    rows = template.neutral[chosen].astype(np.float64)
    for _ in range(FIT_STEPS):
        x = rows + np.tensordot(w, basis[:, chosen], 1)
        distance, gradient = distance_and_gradient(model, x, z_id, None)
        slope = np.einsum("kvc,vc->vk", basis[:, chosen], gradient) / SURFACE_SIGMA
        robust = 1 / (1 + (distance / 0.002) ** 2)
        gram = slope.T @ (slope * robust[:, None]) + normal
        w = w + np.linalg.solve(
            gram, shapes.T @ (lacking - shapes @ w) - w - slope.T @ (robust * distance) / SURFACE_SIGMA
        )
    return w


class SkinField:
    """Smooth displacements of the skin, given where they are known."""

    def __init__(self, template: Template, x: Array, index: NDArray[np.int64], trusted: Array) -> None:
        """The skin lies at ``x`` [S, 3]; displacements are known at ``index`` [N], to be ``trusted`` [N]."""
        from scipy.sparse import coo_matrix, diags
        from scipy.sparse.linalg import splu

        n = len(x)
        edges = template.edges[(template.edges < n).all(1)]
        length = np.maximum(np.linalg.norm(x[edges[:, 0]] - x[edges[:, 1]], axis=1), 2e-4)
        graph = coo_matrix((1 / length, edges.T), (n, n)).tocsr()
        graph = graph + graph.T
        mass = np.bincount(edges.ravel(), np.repeat(length, 2), n) / 4
        laplacian = diags(np.asarray(graph.sum(1)).ravel()) - graph
        bending = laplacian.T @ diags(1 / mass) @ laplacian
        self.index, self.n, self.weight = index, n, mass[index] * trusted
        known = mass * 1e-6  # holds what is far from all known places: the bust
        known[index] += self.weight
        self.solver = splu((diags(known) + STIFFNESS * bending).tocsc())

    def fit(self, wanted: Array) -> Array:
        """Displacements [S, 3] of the skin, near ``wanted`` [N, 3] where they are known."""
        right = np.zeros((self.n, 3))
        right[self.index] = self.weight[:, None] * wanted
        return self.solver.solve(right)


def _carry_parts(template: Template, head: Array, moved: Array) -> tuple[Eyeball, Eyeball]:
    """Move what is no skin along with it, in place; returns the eyeballs, left and right."""
    near = _around(template, "mouth")
    head[template.mouth] += moved[near].mean(0)
    lashes = slice(template.parts["lashes_left"][0], template.parts["lashes_right"][1])
    head[lashes] += moved[template.lash_vertex]
    left, right = (_place_eye(template, head, f"eye_{side}", f"socket_{side}") for side in ("left", "right"))
    return left, right


def _place_eye(template: Template, head: Array, eye: str, socket: str) -> Eyeball:
    """Put an eyeball behind its lids, as far behind their edges as in the mean head, by its size and a shift."""
    own, edge = template.part(eye), _around(template, socket)
    x = template.neutral[own].astype(np.float64)
    rest = sphere(x[: template.eye_shell])
    before = template.neutral[edge].astype(np.float64) - rest[0]
    reach = np.linalg.norm(before, axis=1)
    centre, scale = head[own].mean(0) + rest[0] - x.mean(0), 1.0
    for _ in range(5):  # Gauss-Newton on |edge - centre| = scale * reach
        away = head[edge] - centre
        length = np.linalg.norm(away, axis=1)
        slope = np.concatenate([-away / length[:, None], -reach[:, None]], 1)
        prior = np.diag([0.0, 0.0, 0.0, len(edge) * (0.0005 / 0.03) ** 2])  # edges fit to 0.5 mm, sizes spread by 3 %
        step = np.linalg.solve(slope.T @ slope + prior, -slope.T @ (length - scale * reach) - prior[:, 3] * (scale - 1))
        centre, scale = centre + step[:3], scale + step[3]
    head[own] = centre + scale * (x - rest[0])
    axis = eye_axis(x[: template.eye_shell]).astype(np.float32)
    return Eyeball(centre.astype(np.float32), float(scale * rest[1]), axis)


def _around(template: Template, part: str) -> NDArray[np.int64]:
    """Vertices of the face beside a part of the skin."""
    a, b = template.parts[part]
    edges = template.edges[(template.edges < template.skin_size).all(1)]
    inner = (edges >= a) & (edges < b)
    rim = np.unique(edges[inner.any(1) & ~inner.all(1)])
    return rim[(rim < a) | (rim >= b)]


def _spread_out(index: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return index[np.unique(np.linspace(0, len(index) - 1, min(count, len(index))).astype(int))]
