"""The control points of a head model (``heads/controlled.py``) in closed form, from linear heads in correspondence.

Positions and tangents of ICT-FaceKit's vertices are linear in its weights, and so are the codes. What a control point
sees of z_id are the codes of nearby members; the map from these is the ridge solution, stiffer for those farther away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra
from scipy.spatial.distance import cdist
from torch import Tensor

from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.config import HeadConfig
from nphm_track.heads.controlled import POWER, WIDTH, ControlledDecoder
from nphm_track.kd_tree import kd_tree
from nphm_track.rendering.rasteriser import vertex_normals
from nphm_track.training.ict import NECK_LEVEL, IctHeads, anchor_vertices, edge_vertices

FINEST, GROWTH, COARSEST = 0.002, 0.2, 0.022
"""Metres between control points at the edges of lids and lips, more per metre from there, and at most."""
FACE, NOSTRILS, EARS, INNER = 0.009, 0.0035, 0.0042, 1.6
"""Metres between control points on the face, at the nostrils and ears, at most; factor on it in pocket and sockets."""
PATCH = 0.8
"""Radius of the skin that a tangent plane is fitted to, in units of the distance of control points."""
MEMBER_GAP = 3.2
"""Distance of members of the ensemble in units of the control points' there."""
APART = {"jawOpen": 0.3, "eyeBlink_L": 0.3, "eyeBlink_R": 0.3}
"""Expression in which the motion of control points is fitted beside neutral: lips that touch tell nothing apart."""
BELOW_NECK = 0.012
"""Metres below ``NECK_LEVEL`` that control points still reach."""


@dataclass(frozen=True)
class Places:
    """Where control points stand: ``vertices`` [K] of the source, the first of them the anchors, and the distance
    ``spacing`` [V] that is wanted between control points at each vertex (metres)."""

    vertices: NDArray[np.int64]
    spacing: NDArray[np.float64]


def spacing(heads: IctHeads, folder: str | Path) -> NDArray[np.float64]:
    """Wanted distance [V] (metres) of control points at each vertex of the mean head."""
    v = heads.neutral
    edge = kd_tree(v[np.concatenate(edge_vertices(heads, folder))]).query(v)[0]
    s = np.clip(FINEST + GROWTH * edge, FINEST, COARSEST)
    face = (v[:, 2] > -0.01) & (v[:, 1] < 0.09) & (v[:, 1] > -0.1)
    s = np.where(face, np.minimum(s, FACE), s)
    inner = heads.is_pocket | heads.is_socket
    s = np.where(inner, np.minimum(INNER * (FINEST + GROWTH * edge), FACE), s)
    nostrils = (np.abs(v - [0, -0.008, 0.05]) < [0.02, 0.012, 0.025]).all(1) & ~inner
    ears = (np.abs(v[:, 0]) > 0.066) & (np.abs(v[:, 1] - 0.008) < 0.045) & (v[:, 2] < -0.012) & (v[:, 2] > -0.075)
    s = np.where(nostrils, np.minimum(s, NOSTRILS), s)
    return np.where(ears, np.minimum(s, EARS), s)


def place(heads: IctHeads, folder: str | Path, factor: float = 1.0) -> Places:
    """Farthest points of the surface's right half and their mirror images, ``factor`` times the spacing apart."""
    s = factor * spacing(heads, folder)
    v = heads.neutral.astype(float)
    used = np.isin(np.arange(len(v)), heads.faces) & (v[:, 1] > NECK_LEVEL - BELOW_NECK)
    chosen = list(anchor_vertices(heads, folder))
    chosen += spread(v, s, np.flatnonzero(used & (v[:, 0] < 1e-5)), chosen, heads.mirror)
    return Places(np.array(chosen), s)


def spread(
    v: NDArray[np.floating],
    gap: NDArray[np.floating],
    pool: NDArray[np.int64],
    taken: list[int],
    mirror: NDArray[np.int64] | None,
) -> list[int]:
    """Vertices of ``pool`` added one by one where the next is farthest in units of ``gap``, with mirror images."""
    distance = kd_tree(v[taken]).query(v[pool])[0] / gap[pool] if len(taken) else np.full(len(pool), np.inf)
    added: list[int] = []
    while distance.max() > 1:
        new = int(pool[distance.argmax()])
        both = [new] if mirror is None or mirror[new] == new else [new, int(mirror[new])]
        added += both
        for k in both:
            distance = np.minimum(distance, np.linalg.norm(v[pool] - v[k], axis=1) / gap[pool])
    return added


def patches(heads: IctHeads, places: Places) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """For each control point the vertices around it [n] and weights [2, n].

    Sums of a quantity over the vertices are its derivatives along two directions of the template's tangent plane (those
    of a fitted quadric).
    """
    v, faces = heads.neutral.astype(float), heads.faces
    normals = vertex_normals(heads.neutral, faces).astype(float)
    edges = np.unique(np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), 1), axis=0)
    length = np.linalg.norm(v[edges[:, 0]] - v[edges[:, 1]], axis=1)
    graph = coo_matrix((length, edges.T), (len(v), len(v))).tocsr()
    ring = (graph + graph.T) > 0
    out = []
    for k in places.vertices:
        reach = PATCH * places.spacing[k]
        near = np.flatnonzero(np.isfinite(dijkstra(graph, False, k, limit=reach)))
        while len(near) < ENOUGH:  # along edges, so that skin that touches other skin is not taken for it
            near = np.unique(np.concatenate([near, ring[near].indices]))
        n = normals[k] / np.linalg.norm(normals[k])
        first = np.cross(n, [0.0, 1.0, 0.0] if abs(n[1]) < 0.8 else [1.0, 0.0, 0.0])
        first /= np.linalg.norm(first)
        u, w = ((v[near] - v[k]) @ np.stack([first, np.cross(n, first)], 1)).T
        distance = np.hypot(u, w)
        trust = np.exp(-np.square(distance / (0.7 * max(reach, 0.8 * distance.max())))) * np.where(near == k, 3, 1)
        scale = np.array([1, reach, reach, reach**2, reach**2, reach**2])
        powers = np.stack([np.ones_like(u), u, w, u * u / 2, u * w, w * w / 2], 1) / scale
        gram = (powers.T * trust) @ powers + 1e-4 * trust.sum() * np.diag([0, 0, 0, 1, 1, 1])
        out.append((near, (np.linalg.solve(gram, powers.T * trust) / scale[:, None])[1:3]))
    return out


ENOUGH = 9
"""Vertices of a patch, at least."""


def coordinates(values: NDArray[np.floating], places: Places, pieces: list) -> NDArray[np.float64]:
    """Control points' coordinates [..., K, 9] (model units) of vertex positions or modes [..., V, 3] (metres)."""
    tangents = [np.einsum("tn,...nc->...tc", weights, values[..., near, :].astype(float)) for near, weights in pieces]
    along = np.stack(tangents, -3)
    return np.concatenate([values[..., places.vertices, :] / MODEL_UNIT, along.reshape(*along.shape[:-2], 6)], -1)


def new_model(
    heads: IctHeads, folder: str | Path, config: HeadConfig, codes: dict[str, Tensor], factor: float = 1.0
) -> ControlledDecoder:
    """An untrained model: its control points in closed form, its correction zero.

    Args:
        heads: ICT-FaceKit.
        folder: of ICT-FaceKit.
        config: sizes; numbers of control points and detail pairs are set here.
        codes: the state of an earlier model, whose ``identity_basis`` [D_id, K_id], ``expression_basis`` [D_ex, E] and
            landmarks stay as they are.
        factor: on the distance of control points.
    """
    places = place(heads, folder, factor)
    modes = np.concatenate([heads.identity, landmark_modes(heads, codes).astype(np.float32)])
    v = heads.neutral.astype(float)
    pieces = patches(heads, places)
    mean, identity, expression = (coordinates(x, places, pieces) for x in (v, modes, heads.expression))
    anchors = anchor_vertices(heads, folder)
    detail = detail_members(heads, places, anchors)
    config = replace(config, control_points=len(mean), detail_pairs=len(detail) // 2)
    model = ControlledDecoder(config)
    A, B = codes["identity_basis"].double().numpy(), codes["expression_basis"].double().numpy()
    near = kd_tree(v[anchors]).query(v[places.vertices], k=config.control_members)[1]
    radius = places.spacing[places.vertices]
    motion = fitted_motion(heads, places, radius)
    state = {
        "controls.mean": mean,
        "controls.identity": local_maps(config, A, identity, near, v[anchors], v[places.vertices]),
        "controls.expression": expression.transpose(1, 2, 0),
        "controls.motion": motion.transpose(1, 2, 0),
        "controls.members": near,
        "controls.radius": radius / MODEL_UNIT,
        "controls.lift": fitted_lift(heads, places, pieces),
        "mean_anchors": v[anchors] / MODEL_UNIT,
        "detail_anchors": v[detail] / MODEL_UNIT,
        "member_scale": MODEL_UNIT / (MEMBER_GAP * places.spacing[np.concatenate([anchors, detail])]),
        "neighbours": symmetric_neighbours(v[anchors], v[np.concatenate([anchors, detail])], config),
        "mirrored_weights": mirrored_weights(heads, modes),
        "identity_basis": A,
        "expression_basis": B,
    }
    own = model.state_dict()
    own.update({k: torch.as_tensor(np.asarray(value)).to(own[k]) for k, value in state.items()})
    own.update({k: value for k, value in codes.items() if k in own and k.startswith(("landmark_", "mean_landmarks"))})
    model.load_state_dict(own)
    with torch.no_grad():
        model.ensemble.weights[-1].zero_()
    model.identity_basis.requires_grad_(False)
    model.expression_basis.requires_grad_(False)
    for layer in (model.landmark_down, model.landmark_up):
        layer.requires_grad_(False)
    return model


def detail_members(heads: IctHeads, places: Places, anchors: NDArray[np.int64]) -> NDArray[np.int64]:
    """Vertices of further members in pairs, right then left, where the anchors leave gaps."""
    v, gap = heads.neutral.astype(float), MEMBER_GAP * places.spacing
    pool = places.vertices[(v[places.vertices, 0] < -0.004) & (v[places.vertices, 1] > NECK_LEVEL)]
    right = spread(v, gap, pool, list(anchors), None)
    return np.stack([right, heads.mirror[right]], 1).ravel().astype(np.int64)


def symmetric_neighbours(anchors: NDArray, members: NDArray, config: HeadConfig) -> NDArray[np.int64]:
    """The coded members nearest to each member; an odd one of a pair has its partner's, as it sees mirrored codes."""
    near: NDArray[np.int64] = kd_tree(anchors).query(members, k=config.control_members)[1]
    for pairs in (np.arange(0, 2 * config.n_pairs, 2), np.arange(len(anchors), len(members), 2)):
        near[pairs + 1] = near[pairs]
    return near


def local_maps(
    config: HeadConfig, A: NDArray, modes: NDArray, near: NDArray, anchors: NDArray, points: NDArray
) -> NDArray[np.float64]:
    """Maps [K, 9, G + 8 L] from the codes a control point sees to its modes [K_id, K, 9]."""
    glob, local = A[: config.global_dim], A[config.global_dim :].reshape(config.n_members, config.local_dim, -1)
    out = np.empty((len(near), modes.shape[-1], config.global_dim + near.shape[1] * config.local_dim))
    typical = np.square(A).sum(1).mean()
    for k, members in enumerate(near):
        code = np.concatenate([glob, local[members].reshape(-1, A.shape[1])])  # [C, K_id]
        distance = np.linalg.norm(anchors[members] - points[k], axis=1)
        stiff = 1 + (distance / 0.02) ** 2
        loose = np.concatenate([np.ones(len(glob)), 1 / np.repeat(stiff, config.local_dim)])
        # Ridge in the dual: of all maps that give these modes the one with the least weighted norm.
        gram = (code.T * loose) @ code
        ridge = RIDGE * typical * np.eye(len(gram))
        out[k] = (np.linalg.solve(gram + ridge, modes[:, k]).T @ code.T) * loose
    return out


RIDGE = 1e-5
"""Of the mean square of a code: a control point is true to some hundredths of a millimetre with it."""


def fitted_motion(heads: IctHeads, places: Places, radius: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients [E, K, 3] (model units) whose blends come nearest to the expressions at the surface's vertices."""
    some = vertices_between(heads, places)
    blends = []
    for shape in (heads.neutral.astype(float), apart(heads)):
        u = (1 + _squared(shape[some], shape[places.vertices]) / radius**2) ** -float(POWER)
        blends.append(u / u.sum(1, keepdims=True))
    W = np.concatenate(blends)
    target = np.concatenate([heads.expression[:, some]] * 2, 1).transpose(1, 0, 2).reshape(len(W), -1) / MODEL_UNIT
    gram = W.T @ W + 1e-3 * np.eye(W.shape[1])
    out: NDArray[np.float64] = np.linalg.solve(gram, W.T @ target).reshape(W.shape[1], -1, 3).transpose(1, 0, 2)
    return out


def fitted_lift(heads: IctHeads, places: Places, pieces: list) -> NDArray[np.float64]:
    """Lifts [K] (model units) of the planes with which their blends come nearest to the mean head's surface."""
    shape, some = apart(heads), vertices_between(heads, places)
    c = coordinates(shape, places, pieces)
    normal = np.cross(c[:, 3:6], c[:, 6:])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    t = _squared(shape[some], shape[places.vertices]) / (WIDTH * places.spacing[places.vertices]) ** 2
    W = np.exp(0.5 * (t.min(1, keepdims=True) - t))
    W /= W.sum(1, keepdims=True)
    height = (shape[some] / MODEL_UNIT) @ normal.T - (normal * c[:, :3]).sum(1)
    out: NDArray[np.float64] = np.linalg.solve(W.T @ W + 0.01 * np.eye(W.shape[1]), W.T @ (W * height).sum(1))
    return out


def apart(heads: IctHeads) -> NDArray[np.float64]:
    """The mean head in the expression ``APART``, [V, 3]."""
    weights = np.array([APART.get(n, 0.0) for n in heads.expression_names])
    return heads.neutral.astype(float) + np.tensordot(weights, heads.expression, 1)


def vertices_between(heads: IctHeads, places: Places) -> NDArray[np.int64]:
    """Vertices of the surface, as dense as the control points but more, and the control points themselves."""
    v, rng = heads.neutral, np.random.default_rng(0)
    used = np.flatnonzero(np.isin(np.arange(len(v)), heads.faces) & (v[:, 1] > NECK_LEVEL - BELOW_NECK))
    order = np.argsort(rng.random(len(used)) * places.spacing[used])
    some = np.union1d(used[order[: 2 * len(places.vertices)]], places.vertices)
    return np.union1d(some, heads.mirror[some])  # as symmetric as the head


def _squared(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
    """Squared distances [N, M] of points [N, 3] and [M, 3]."""
    out: NDArray[np.floating] = cdist(a, b, "sqeuclidean")
    return out


def landmark_modes(heads: IctHeads, codes: dict[str, Tensor]) -> NDArray[np.float64]:
    """Identity modes [K_id - 100, V, 3] (metres) of what moves the landmarks beyond ICT's own, on ICT's vertices.

    Thin-plate splines through the landmarks and anchors of the model that ``codes`` is the state of.
    """
    known = heads.identity.shape[0]
    columns = codes["identity_basis"][:, known:].float()
    if not columns.shape[1]:
        return np.zeros((0, *heads.neutral.shape))
    marks = (codes["landmark_up.weight"].float() @ (codes["landmark_down.weight"].float() @ columns)).T
    h = columns[: codes["anchor_mlp.0.weight"].shape[1]].T  # anchors are not quite linear: their change from the mean
    zero = torch.zeros_like(h[:1])
    for k in range(3):
        layer = [codes[f"anchor_mlp.{k}.{part}"].float() for part in ("weight", "bias")]
        h, zero = (x @ layer[0].T + layer[1] for x in (h, zero))
        h, zero = (x.relu() if k < 2 else x for x in (h, zero))
    moved = torch.cat([marks.unflatten(1, (-1, 3)), (h - zero).unflatten(1, (-1, 3))], 1).transpose(0, 1)
    places = torch.cat([codes["mean_landmarks"], codes["mean_anchors"]]).double().numpy() * MODEL_UNIT
    spline = RBFInterpolator(places, moved.flatten(1).double().numpy() * MODEL_UNIT, smoothing=1e-6)
    out: NDArray[np.float64] = spline(heads.neutral.astype(float)).reshape(len(heads.neutral), -1, 3)
    return out.transpose(1, 0, 2)


def mirrored_weights(heads: IctHeads, modes: NDArray[np.floating]) -> NDArray[np.float64]:
    """The matrix [K_id, K_id] from identity weights to those of the mirrored head; each source mirrors into itself."""
    some = np.arange(0, len(heads.neutral), 5)
    flat = modes[:, some].reshape(len(modes), -1).astype(float)
    other = (modes[:, heads.mirror[some]] * np.array([-1, 1, 1])).reshape(len(modes), -1).astype(float)
    out = np.zeros((len(modes), len(modes)))
    for part in (slice(0, 100), slice(100, None)):
        if len(flat[part]):
            out[part, part] = np.linalg.lstsq(flat[part].T, other[part].T, rcond=None)[0]
    return out
