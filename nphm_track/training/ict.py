"""ICT-FaceKit (MIT, USC ICT) as a source of training heads: one closed outer surface with exact correspondence.

The surface is the outer skin (face, head, neck) with the mouth pocket behind the lips. Each eye is closed by the front
of the eyeball, or, where eyeballs are parts of their own, by the socket behind the lids, so that lids have edges and a
thickness as lips have. Teeth, gums, tongue, lashes and the rear of the eyeballs are left out. The neck stays open and
is capped only for the sign of distances. Positions are metres in head space (docs/architecture.md); ICT's centimetres
are scaled and moved by ``ORIGIN``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from nphm_track.conventions import ANCHOR_LANDMARKS
from nphm_track.errors import InputError
from nphm_track.kd_tree import kd_tree

ORIGIN = np.array([0.0, 0.0, 0.06], dtype=np.float32)
"""Point of ICT's frame (metres) that becomes the origin of head space: inside the head, as FLAME's."""
SKIN_END, SOCKET_END = 13294, 14062  # face, head, neck, mouth pocket | eye sockets
EYEBALLS = (21451, 24591)
POCKET, SOCKETS = (11248, 13294), (13294, 14062)
GAZE_AND_PUPIL = ("PupilDilate", "eyeLookIn", "eyeLookOut")
NECK_LEVEL = -0.13
"""Metres; nothing below this height of head space is used."""


@dataclass(frozen=True)
class IctHeads:
    """Linear head model ``neutral + w @ identity + e @ expression`` on the closed outer surface.

    Attributes:
        neutral: [V, 3] metres.
        identity: [100, V, 3], unit normal weights.
        expression: [E, V, 3], weights in [0, 1].
        expression_names: E names, ARKit's with ``_L``/``_R`` for the face's own sides.
        faces: [F, 3] the surface (skin, mouth pocket, eyeball fronts or eye sockets).
        closing: [C, 3] extra triangles that close it (neck cap; with eyeballs also eye openings and eyeball rears), for
            signs only.
        is_eye, is_pocket: [V] bool, vertices of the eyeball fronts and of the mouth pocket.
        mirror: [V] index of the mirrored vertex.
        source: [V] vertex index in ICT-FaceKit.
    """

    neutral: NDArray[np.float32]
    identity: NDArray[np.float32]
    expression: NDArray[np.float32]
    expression_names: tuple[str, ...]
    faces: NDArray[np.int32]
    closing: NDArray[np.int32]
    is_eye: NDArray[np.bool_]
    is_pocket: NDArray[np.bool_]
    mirror: NDArray[np.int64]
    source: NDArray[np.int64]

    @property
    def is_socket(self) -> NDArray[np.bool_]:
        """[V] bool, vertices of ICT-FaceKit's eye sockets; there are none beside eyeballs."""
        return (self.source >= SOCKETS[0]) & (self.source < SOCKETS[1])

    def vertices(self, w: NDArray[np.float32], e: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Vertices [V, 3] of identity weights ``w`` [100] and expression weights ``e`` [E]."""
        v = self.neutral + np.tensordot(w, self.identity, 1)
        return v if e is None else v + np.tensordot(e, self.expression, 1)


def load_ict(folder: str | Path, *, eyeballs: bool = True) -> IctHeads:
    """Read ``ict_facekit_light_full.npz`` of ``folder``; without ``eyeballs`` the surface has the sockets behind lids.

    Raises InputError when it is not there.
    """
    path = Path(folder) / "ict_facekit_light_full.npz"
    if not path.is_file():
        raise InputError(f"no {path.name} in {folder}")
    data = np.load(path, allow_pickle=False)
    neutral = data["neutral"] / 100 - ORIGIN
    quads = data["faces"]
    triangles = np.concatenate([quads[:, :3], quads[quads[:, 3] >= 0][:, [0, 2, 3]]]).astype(np.int64)
    skin = triangles[(triangles < (SKIN_END if eyeballs else SOCKET_END)).all(1)]
    eye_front, eye_rear = _eyeball_shell(neutral) if eyeballs else (skin[:0], skin[:0])
    caps = [_fan(neutral, loop) for loop in _boundary_loops(skin)]
    centres = np.stack([c for c, _ in caps]).astype(np.float32)
    # Fan centres are appended vertices that follow the mean of their loop.
    n_all = len(neutral)
    fans = np.concatenate(
        [np.stack([loop, np.roll(loop, -1), np.full(len(loop), n_all + i)], 1) for i, (_, loop) in enumerate(caps)]
    )
    names = [str(n) for n in data["expression_names"]]
    keep = [i for i, n in enumerate(names) if not n.startswith(GAZE_AND_PUPIL)]
    bases = [data["identity_deltas"] / 100, data["expression_deltas"][keep] / 100]
    bases[1][:, EYEBALLS[0] : EYEBALLS[1]] = 0  # gaze is not a matter of the surface
    with_centres = [
        np.concatenate([b, np.stack([b[:, loop].mean(1) for _, loop in caps], 1)], 1).astype(np.float32) for b in bases
    ]
    neutral = np.concatenate([neutral, centres]).astype(np.float32)
    surface = np.concatenate([skin, eye_front])
    closing = np.concatenate([fans, eye_rear])
    used = np.unique(np.concatenate([surface.ravel(), closing.ravel()]))
    compact = np.full(len(neutral), -1)
    compact[used] = np.arange(len(used))
    vertices = neutral[used]
    return IctHeads(
        neutral=vertices,
        identity=np.ascontiguousarray(with_centres[0][:, used]),  # products need no copy
        expression=np.ascontiguousarray(with_centres[1][:, used]),
        expression_names=tuple(names[i] for i in keep),
        faces=compact[surface].astype(np.int32),
        closing=compact[closing].astype(np.int32),
        is_eye=(used >= EYEBALLS[0]) & (used < EYEBALLS[1]),
        is_pocket=(used >= POCKET[0]) & (used < POCKET[1]),
        mirror=kd_tree(vertices).query(vertices * np.array([-1, 1, 1], np.float32))[1],
        source=used,
    )


def _eyeball_shell(neutral: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Convex hull of each eyeball as (front, rear) triangles, outward; front = may be seen between the lids."""
    ids = np.arange(*EYEBALLS)
    front, rear = [], []
    for side in (-1, 1):
        own = ids[np.sign(neutral[ids, 0]) == side]
        points = neutral[own].astype(np.float64)
        hull = ConvexHull(points)
        tri = hull.simplices.copy()
        normal = np.cross(points[tri[:, 1]] - points[tri[:, 0]], points[tri[:, 2]] - points[tri[:, 0]])
        flip = (normal * hull.equations[:, :3]).sum(1) < 0
        tri[flip] = tri[flip][:, ::-1]
        centre = points.mean(0)
        outward = (points[tri].mean(1) - centre) / np.linalg.norm(points[tri].mean(1) - centre, axis=1, keepdims=True)
        ahead = outward[:, 2] > 0.35
        front.append(own[tri[ahead]])
        rear.append(own[tri[~ahead]])
    return np.concatenate(front), np.concatenate(rear)


def _boundary_loops(triangles: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Open borders as vertex loops, each directed so that a fan over it closes the surface outward."""
    edges = {(a, b) for t in triangles.tolist() for a, b in ((t[0], t[1]), (t[1], t[2]), (t[2], t[0]))}
    following = {b: a for a, b in edges if (b, a) not in edges}  # reversed: the fan runs against its neighbour
    loops = []
    while following:
        start, current = next(iter(following.items()))
        loop = [start]
        del following[start]
        while current != start:
            loop.append(current)
            current = following.pop(current)
        loops.append(np.array(loop))
    return loops


def _fan(vertices: NDArray[np.float32], loop: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return vertices[loop].mean(0), loop


def sample_identity(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Identity weights [count, 100] of the scans' own statistics, N(0, 1), cut at 3 sigma."""
    return np.clip(rng.standard_normal((count, 100)), -3, 3).astype(np.float32)


def sample_expression(rng: np.random.Generator, count: int, names: tuple[str, ...]) -> NDArray[np.float32]:
    """Expression weights [count, E] in [0, 1]: neutral, sparse, everyday combinations and dense weak mixtures.

    Left and right move together four times out of five.
    """
    index = {n: i for i, n in enumerate(names)}
    e = np.zeros((count, len(names)), np.float32)
    kind = rng.choice(4, count, p=[0.1, 0.45, 0.3, 0.15])
    for row in range(count):
        if kind[row] == 1:
            active = rng.choice(len(names), rng.integers(1, 7), replace=False)
            e[row, active] = rng.uniform(0.1, 1, len(active))
        elif kind[row] == 2:
            active = rng.choice(len(names), rng.integers(2, 5), replace=False)
            e[row, active] = rng.uniform(0, 0.6, len(active))
            if rng.random() < 0.6:
                e[row, index["jawOpen"]] = rng.beta(1, 2)
            for pair in ("eyeBlink", "mouthSmile"):
                if rng.random() < 0.35:
                    e[row, [index[pair + "_L"], index[pair + "_R"]]] = rng.uniform(0.2, 1)
            if rng.random() < 0.3:
                e[row, [index["eyeBlink_L"], index["eyeBlink_R"]]] = rng.uniform(0.6, 1)
        elif kind[row] == 3:
            e[row] = rng.uniform(0, 0.25, len(names)) * (rng.random(len(names)) < 0.5)
        if rng.random() < 0.8:
            for name, i in index.items():
                if name.endswith("_L"):
                    j = index[name[:-2] + "_R"]
                    strong = max(e[row, i], e[row, j])
                    e[row, i], e[row, j] = strong, strong * rng.uniform(0.85, 1)
    conflicts = (("eyeBlink", "eyeWide"), ("mouthFrown", "mouthSmile"))
    for first, second in conflicts:
        for side in ("_L", "_R"):
            a, b = index[first + side], index[second + side]
            weaker = np.where(e[:, a] < e[:, b], a, b)
            e[np.arange(count), weaker] *= 0.2
    return e


def signed_distance(heads: IctHeads, vertices: NDArray[np.float32], points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Exact signed distance [N] (metres, positive outside) of ``points`` [N, 3] to a head's surface; needs libigl.

    The sign comes from the winding number of the closed surface, so eyeballs and skin form a union.
    """
    import igl

    squared = igl.point_mesh_squared_distance(
        points.astype(np.float64), vertices.astype(np.float64), heads.faces.astype(np.int64)
    )[0]
    return (np.sqrt(squared) * np.where(inside(heads, vertices, points), -1, 1)).astype(np.float32)


def inside(heads: IctHeads, vertices: NDArray[np.float32], points: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether points [N, 3] lie inside a head: by the winding number, as lips that press overlap; needs libigl."""
    import igl

    closed = np.concatenate([heads.faces, heads.closing]).astype(np.int64)
    winding: NDArray[np.float64] = igl.fast_winding_number(
        vertices.astype(np.float64), closed, points.astype(np.float64)
    )
    return winding > 0.5


def edge_vertices(heads: IctHeads, folder: str | Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Vertices along the edges of the lids and of the lips: where the skin goes over into the sockets and the pocket,
    and the iBUG points of eyes and inner lips, as the pocket begins well behind the lips."""
    landmarks = np.searchsorted(heads.source, _ibug_vertices(folder))
    edges = []
    for behind, points in ((heads.is_socket, landmarks[36:48]), (heads.is_pocket, landmarks[60:68])):
        border = behind[heads.faces].any(1) & ~behind[heads.faces].all(1)
        own = np.unique(heads.faces[border])
        edges.append(np.union1d(own[~behind[own]], points))
    return edges[0], edges[1]


def _ibug_vertices(folder: str | Path) -> list[int]:
    import json

    values: list[int] = json.loads((Path(folder) / "vertex_indices.json").read_text())["idx_to_landmark_verts"]
    return values


def anchor_vertices(heads: IctHeads, folder: str | Path, n_pairs: int = 30, n_middle: int = 5) -> NDArray[np.int64]:
    """Vertex of each of the 65 anchors: 35 at an iBUG point each, the others spread over the rest of the head.

    Even anchors below ``2 * n_pairs`` lie on the face's right (x < 0), the next odd one at the mirrored vertex.
    """
    landmarks = _ibug_vertices(folder)
    chosen = np.full(2 * n_pairs + n_middle, -1)
    for anchor, point in ANCHOR_LANDMARKS.items():
        if anchor % 2 == 0 or anchor >= 2 * n_pairs:
            chosen[anchor] = int(np.searchsorted(heads.source, landmarks[point]))
    x, y = heads.neutral[:, 0], heads.neutral[:, 1]
    outer = ~heads.is_eye & ~heads.is_socket & ~heads.is_pocket & (y > NECK_LEVEL)
    outer &= np.isin(np.arange(len(x)), heads.faces)
    right, middle = outer & (x < -0.012), outer & (np.abs(x) < 0.002)
    for anchor in range(len(chosen)):
        paired = anchor < 2 * n_pairs
        if chosen[anchor] < 0 and (not paired or anchor % 2 == 0):
            taken = heads.neutral[chosen[chosen >= 0]]
            pool = np.flatnonzero(right if paired else middle)
            distance = kd_tree(taken).query(heads.neutral[pool])[0]
            chosen[anchor] = pool[np.argmax(distance)]
    for anchor in range(1, 2 * n_pairs, 2):
        chosen[anchor] = heads.mirror[chosen[anchor - 1]]
    return chosen
