"""The template: one mesh for everybody, ICT-FaceKit's (MIT), with eyes, teeth, gums, tongue, texture coordinates.

Vertices keep ICT-FaceKit's order; left out are the transparent shells in front of its eyes. Shapes of identity and
expression are ICT-FaceKit's too, stored as integers and halves (``models/template/README.md`` states the error).
Everything is metres in head space.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components, dijkstra

from nphm_track.conventions import LIPS, N_LANDMARKS
from nphm_track.errors import ModelError
from nphm_track.heads.mesh import NECK_PLANE
from nphm_track.models import read_weights
from nphm_track.rendering.shading import PORCELAIN

DEFAULT = "template"
SKIN = ("face", "head", "mouth", "socket_left", "socket_right")
"""Parts that are one connected surface; they come first."""
CARDS = ("lashes_left", "lashes_right")
"""Parts that are made to carry a transparent texture and look like slabs without one."""
PART_COLOURS = {
    "mouth": (0.30, 0.12, 0.12),
    "socket_left": (0.55, 0.36, 0.36),
    "socket_right": (0.55, 0.36, 0.36),
    "gums": (0.50, 0.20, 0.21),
    "teeth_upper": (0.86, 0.83, 0.75),
    "teeth_lower": (0.86, 0.83, 0.75),
    "eye_left": (0.90, 0.90, 0.91),
    "eye_right": (0.90, 0.90, 0.91),
    "lashes_left": (0.05, 0.04, 0.04),
    "lashes_right": (0.05, 0.04, 0.04),
}
IRIS_RINGS = (
    (4.0, (0.01, 0.01, 0.01)),  # pupil
    (10.0, (0.16, 0.22, 0.27)),  # iris
    (18.0, (0.18, 0.25, 0.30)),
    (21.0, (0.06, 0.08, 0.10)),  # its rim
    (24.5, (0.90, 0.90, 0.91)),  # white of the eye
)
"""Colours of an eyeball at angles, degrees, from its axis; between them they run into each other."""
LIP_COLOUR, LIP_EDGE = (0.58, 0.43, 0.46), 0.0015
"""Of the red of the lips, and metres over which it ends on the skin."""
TRUSTED = 0.9
"""Trust from which the network's surface is followed rather than the linear shapes."""
GAMMA = 2.2
"""Of screens."""
MIDDLE = 0.005
"""Metres from the middle of the mouth within which its lower part is tongue above all."""
NECK = 0.02
"""Metres above the plane of the cut within which there is neck alone."""
Part = tuple[int, int]


@dataclass(frozen=True)
class Template:
    """The template and its linear shapes.

    Attributes:
        neutral: [V, 3] the mean head.
        quads: [F, 4] outward; -1 in the last column marks a triangle.
        uv: [U, 2] texture coordinates, one tile (UDIM) for each material.
        quad_uv: [F, 4] places in ``uv`` of the corners of ``quads``.
        parts: first vertex and the one after the last of each named part.
        eye_shell: an eyeball's first vertices, so many, are its outer shell; the iris lies behind them.
        trust: [S] of the skin's vertices, 0..1: how far a neural surface is a better witness than the linear shapes.
        jaw: [V] how far a vertex inside the mouth goes with the jaw, 0..1.
        identity: [K, S, 3] displacements of the skin, weights N(0, 1).
        attached: affine maps [K, 3, 4] of "teeth", "eye_left" and "eye_right" about their centres, a mode each.
        lash_vertex: [L] the vertex of the skin that each vertex of the lashes goes with in identities.
        lid_edges: vertices of the loops on the outer edge of the lids' margins, left and right.
        expression_names: E names, ARKit's with ``_L``/``_R`` for the face's own sides.
        expression: [E, V, 3] displacements, weights 0..1.
        landmark_corners, landmark_weights: [478, 3] where the 478 landmarks lie.
    """

    neutral: NDArray[np.float32]
    quads: NDArray[np.int32]
    uv: NDArray[np.float32]
    quad_uv: NDArray[np.int32]
    parts: dict[str, Part]
    eye_shell: int
    trust: NDArray[np.float32]
    jaw: NDArray[np.float32]
    identity: NDArray[np.float32]
    attached: dict[str, NDArray[np.float32]]
    lash_vertex: NDArray[np.int64]
    lid_edges: tuple[NDArray[np.int32], NDArray[np.int32]]
    expression_names: tuple[str, ...]
    expression: NDArray[np.float32]
    landmark_corners: NDArray[np.int64]
    landmark_weights: NDArray[np.float32]

    @property
    def skin_size(self) -> int:
        return len(self.trust)

    def part(self, name: str) -> slice:
        """The vertices of a part."""
        return slice(*self.parts[name])

    @property
    def mouth(self) -> slice:
        """Gums, tongue and teeth."""
        return slice(self.parts["gums"][0], self.parts["teeth_lower"][1])

    @property
    def inside_mouth(self) -> NDArray[np.bool_]:
        """[V] vertices that a closed mouth hides: its inner skin, gums, tongue and teeth."""
        inside = np.zeros(len(self.neutral), bool)
        inside[self.mouth], inside[self.part("mouth")] = True, True
        return inside

    def clear_skin(self, distance: float) -> NDArray[np.int64]:
        """Vertices of the skin where a neural surface is trusted, further than ``distance`` from lids' and lips' edges.

        Metres, measured along the mean head.
        """
        edges = self.edges[(self.edges < self.skin_size).all(1)]
        length = np.linalg.norm(self.neutral[edges[:, 0]] - self.neutral[edges[:, 1]], axis=1)
        graph = coo_matrix((length, edges.T), (self.skin_size, self.skin_size)).tocsr()
        start, stop = self.parts["mouth"]
        inner = (edges >= start) & (edges < stop)
        lips = edges[inner.any(1) & ~inner.all(1)].ravel()
        away = dijkstra(graph, directed=False, indices=np.concatenate([lips, *self.lid_edges]), min_only=True)
        return np.flatnonzero((away > distance) & (self.trust > TRUSTED))

    @cached_property
    def part_of_vertex(self) -> NDArray[np.int32]:
        """[V] place of each vertex's part in ``parts``."""
        sizes = [stop - start for start, stop in self.parts.values()]
        return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)

    @cached_property
    def drawn(self) -> NDArray[np.int64]:
        """Places in ``quads`` of what is drawn: all parts but ``CARDS`` and what lies behind the eyes' outer shells."""
        behind = np.zeros(len(self.neutral), bool)
        for side in ("left", "right"):
            behind[self.part(f"lashes_{side}")] = True
            start, stop = self.parts[f"eye_{side}"]
            behind[start + self.eye_shell : stop] = True
        return np.flatnonzero(~behind[self.quads[:, 0]])

    @cached_property
    def faces(self) -> NDArray[np.int32]:
        """Triangles [F', 3] of what is ``drawn``."""
        return self.quads[self.drawn].ravel()[self._corners].reshape(-1, 3).astype(np.int32)

    @cached_property
    def face_uv(self) -> NDArray[np.int32]:
        """Places in ``uv`` [F', 3] of the corners of ``faces``."""
        return self.quad_uv[self.drawn].ravel()[self._corners].reshape(-1, 3).astype(np.int32)

    @property
    def _corners(self) -> NDArray[np.int64]:
        """Places of the corners of triangles among those of the quads that are drawn."""
        quads = np.arange(4 * len(self.drawn)).reshape(-1, 4)
        return np.concatenate([quads[:, :3], quads[self.quads[self.drawn, 3] >= 0][:, [0, 2, 3]]]).ravel()

    @cached_property
    def tongue(self) -> NDArray[np.int64]:
        """Vertices of the tongue: the chart of texture coordinates with the highest point that moves with the jaw.

        In the middle of the mouth.
        """
        own = self.quads[:, 0]
        start, stop = self.parts["gums"]
        inside = (own >= start) & (own < stop)
        quads, uv = self.quads[inside], self.quad_uv[inside]
        ring = np.where(quads[:, 3:] < 0, [0, 1, 2, 2], [0, 1, 2, 3])
        uv, quads = np.take_along_axis(uv, ring, 1), np.take_along_axis(quads, ring, 1)
        steps = np.concatenate([uv[:, [k, (k + 1) % 4]] for k in range(4)])
        graph = coo_matrix((np.ones(len(steps)), steps.T), (len(self.uv), len(self.uv)))
        chart = connected_components(graph, directed=False)[1][uv[:, 0]]
        middle = np.abs(self.neutral[start:stop, 0]) < MIDDLE
        lower = start + np.flatnonzero(middle & (self.jaw[start:stop] > 0.99))
        top = lower[self.neutral[lower, 1].argmax()]
        return np.unique(quads[chart == chart[(quads == top).any(1)][0]])

    @cached_property
    def head_faces(self) -> NDArray[np.int32]:
        """Those of ``faces`` above the neck: ICT-FaceKit's bust does not go with a tracked person's shoulders."""
        return self.faces[(_above_neck(self.neutral) > 0)[self.faces].any(1)]

    def cut_at_neck(self, vertices: NDArray[np.floating]) -> NDArray[np.floating]:
        """Heads [..., V, 3] with the bust drawn up to the plane where ``head_faces`` end, for a straight border.

        Of the neck above it, whose length differs, nothing hangs below.
        """
        rest, out = _above_neck(self.neutral), vertices.copy()
        neck = rest < NECK
        height = _above_neck(vertices[..., neck, :])
        lift = np.where(rest[neck] > 0, np.minimum(height, 0), height)
        normal = NECK_PLANE[1].astype(vertices.dtype)
        out[..., neck, :] -= lift[..., None] * (normal / (normal @ normal))
        return out

    @cached_property
    def colours(self) -> NDArray[np.float32]:
        """Linear colours [V, 3] for shading the parts: porcelain skin, white eyes with an iris, teeth, gums."""
        out = np.tile(PORCELAIN, (len(self.neutral), 1))
        red = self._redness[:, None]
        out[: self.skin_size] = (1 - red) * PORCELAIN + red * np.array(LIP_COLOUR)
        for name, colour in PART_COLOURS.items():
            out[self.part(name)] = colour
        for side in ("left", "right"):
            own = self.part(f"eye_{side}")
            shell = self.neutral[own][: self.eye_shell]
            centre, _ = sphere(shell)
            away = (shell - centre) / np.linalg.norm(shell - centre, axis=1, keepdims=True)
            angle = np.degrees(np.arccos(np.clip(away @ eye_axis(shell), -1, 1)))
            rings = np.array([colour for _, colour in IRIS_RINGS])
            shades = [np.interp(angle, [a for a, _ in IRIS_RINGS], rings[:, c]) for c in range(3)]
            out[own][: self.eye_shell] = np.stack(shades, 1)
        return out

    def colours_on(self, skin: ArrayLike) -> NDArray[np.float32]:
        """``colours`` [V, 3] on skin of another linear colour [3], which lips change with."""
        out = self.colours.copy()
        out[: self.parts["head"][1]] *= np.asarray(skin, np.float32) / PORCELAIN
        return out

    def painted(self, skin: tuple[int, int, int]) -> NDArray[np.uint8]:
        """``colours`` as a screen shows them, [V, 3] of 0..255, on skin of another such colour."""
        linear = self.colours_on((np.array(skin) / 255) ** GAMMA)
        return np.rint(255 * np.clip(linear, 0, 1) ** (1 / GAMMA)).astype(np.uint8)

    @cached_property
    def _redness(self) -> NDArray[np.float64]:
        """How far a vertex of the skin [S] is within the outer rim of the lips, 0..1, seen from the front."""
        x, rim = self.neutral[: self.skin_size], self.landmarks(self.neutral)[list(LIPS[:20])]
        centre, size = (rim.max(0) + rim.min(0))[:2] / 2, np.ptp(rim, axis=0)[:2] / 2
        (u, v), (a, b) = ((points[:, :2] - centre).T / size[:, None] for points in (x, rim))
        reach = np.interp(np.arctan2(v, u), np.arctan2(b, a), np.hypot(a, b), period=2 * np.pi)
        inside = (reach / np.maximum(np.hypot(u, v), 1e-6) - 1) * np.hypot(u * size[0], v * size[1]) / LIP_EDGE
        return np.clip(inside + 0.5, 0, 1) * (x[:, 2] > rim[:, 2].min() - np.ptp(rim[:, 2]))

    @cached_property
    def edges(self) -> NDArray[np.int64]:
        """Edges [E, 2] of the quads."""
        q = self.quads.astype(np.int64)
        ring = np.where(q[:, 3:] < 0, q[:, [0, 1, 2, 2]], q)
        pairs = np.sort(np.concatenate([ring[:, [k, (k + 1) % 4]] for k in range(4)]), 1)
        return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)

    def person(self, w: NDArray[np.floating]) -> NDArray[np.float32]:
        """Neutral head [V, 3] of identity weights w [K]."""
        out, s = self.neutral.copy(), self.skin_size
        moved = np.tensordot(w.astype(np.float32), self.identity, 1)
        out[:s] += moved
        for name, maps in self.attached.items():
            own = self.mouth if name == "teeth" else self.part(name)
            x = self.neutral[own]
            m = np.tensordot(w.astype(np.float32), maps, 1)
            out[own] += (x - x.mean(0)) @ m[:, :3].T + m[:, 3]
        out[self.parts["lashes_left"][0] : self.parts["lashes_right"][1]] += moved[self.lash_vertex]
        return out

    def landmarks(self, vertices: NDArray[np.floating]) -> NDArray[np.floating]:
        """The 478 landmarks [..., 478, 3] of heads [..., V, 3]."""
        return (vertices[..., self.landmark_corners, :] * self.landmark_weights[..., None]).sum(-2)


def _above_neck(points: NDArray[np.floating]) -> NDArray[np.floating]:
    point, normal = NECK_PLANE
    return (points - point.astype(points.dtype)) @ normal.astype(points.dtype)


def sphere(points: NDArray[np.floating]) -> tuple[NDArray[np.float64], float]:
    """Centre [3] and radius of the sphere through most of points [N, 3], by least squares on those near it."""
    x, kept = np.asarray(points, np.float64), np.ones(len(points), bool)
    for _ in range(3):
        p = x[kept]
        solution = np.linalg.lstsq(np.c_[2 * p, np.ones(len(p))], (p**2).sum(1), rcond=None)[0]
        centre, radius = solution[:3], float(np.sqrt(solution[3] + (solution[:3] ** 2).sum()))
        off = np.abs(np.linalg.norm(x - centre, axis=1) - radius)
        kept = off <= max(3 * np.median(off), 1e-5)
    return centre, radius


def eye_axis(shell: NDArray[np.floating]) -> NDArray[np.float64]:
    """Unit vector [3] from an eyeball's centre through the top of the cornea, of its outer shell [N, 3] at rest."""
    centre, _ = sphere(shell)
    away = shell - centre
    length = np.linalg.norm(away, axis=1)
    top = away[length > np.quantile(length, 0.97)].mean(0)
    return np.asarray(top / np.linalg.norm(top), np.float64)


@lru_cache(maxsize=2)
def load_template(name_or_path: str | Path = DEFAULT) -> Template:
    """The released template. Raises ModelError when it is missing or damaged."""
    tensors, config = read_weights(name_or_path)
    if config.get("kind") != "template":
        raise ModelError(f"{name_or_path} is not a template")
    try:
        return _build({k: v.numpy() for k, v in tensors.items()}, config)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise ModelError(f"{name_or_path} is damaged ({error})") from None


def _build(t: dict[str, NDArray[Any]], config: dict[str, Any]) -> Template:
    peak = t["identity_peak"][:, None, None]
    fine, coarse = t["identity_fine"], t["identity_coarse"]
    reach = t["identity_reach"][:, None] / 127
    identity = np.concatenate(
        [fine * (peak[: len(fine)] / 32767), coarse * (peak[len(fine) :] * reach)], dtype=np.float32
    )
    count = t["expression_count"]
    expression = np.zeros((len(count), *t["neutral"].shape), np.float32)
    expression[np.repeat(np.arange(len(count)), count), t["expression_vertex"]] = t["expression_moved"]
    corners = t["landmark_corners"].astype(np.int64)
    if corners.shape != (N_LANDMARKS, 3):
        raise ValueError(f"{len(corners)} landmarks")
    return Template(
        neutral=t["neutral"],
        quads=t["quads"],
        uv=t["uv"],
        quad_uv=t["quad_uv"],
        parts=dict(sorted(((n, (int(a), int(b))) for n, (a, b) in config["parts"].items()), key=lambda part: part[1])),
        eye_shell=int(config["eye_shell"]),
        trust=t["trust"],
        jaw=t["jaw"],
        identity=identity,
        attached={name: t[f"{name}_maps"] for name in ("teeth", "eye_left", "eye_right")},
        lash_vertex=t["lash_vertex"].astype(np.int64),
        lid_edges=(t["lid_edge_left"], t["lid_edge_right"]),
        expression_names=tuple(config["expression_names"]),
        expression=expression,
        landmark_corners=corners,
        landmark_weights=t["landmark_weights"],
    )
