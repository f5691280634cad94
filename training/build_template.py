"""Build ``models/template``: ICT-FaceKit's mesh, its shapes and what wrapping needs to know about its vertices.

    python training/build_template.py --ict FOLDER [--out models/template]

Identity modes are stored for the skin alone, as integers: the ``FINE`` strongest in 16 bits, the others in 8. Teeth,
gums and eyeballs are carried by an affine map of each mode, which is what their modes are to a tenth of a millimetre.
Prints the errors of all this.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra

from nphm_track.kd_tree import kd_tree
from nphm_track.models import write_weights
from nphm_track.rendering.occlusion import ambient_occlusion
from nphm_track.training.ict import NECK_LEVEL, ORIGIN, load_ict

ICT_PARTS = {
    "face": (0, 9409),
    "head": (9409, 11248),
    "mouth": (11248, 13294),
    "socket_left": (13294, 13678),
    "socket_right": (13678, 14062),
    "gums": (14062, 17039),
    "teeth_upper": (17039, 19247),
    "teeth_lower": (19247, 21451),
    "eye_left": (21451, 23021),
    "eye_right": (23021, 24591),
    "lashes_left": (25351, 26035),
    "lashes_right": (26035, 26719),
}
"""Vertices of the parts in ICT-FaceKit. Left out: the transparent shells in front of the eyes (24591 to 25350)."""
SKIN_END = 14062
FINE = 20
"""Identity modes stored in 16 bits."""
STILL = 2e-5
"""Metres: a shape leaves those vertices alone that it moves less."""
LEFT_OUT = ("PupilDilate",)
LID_REACH, LIP_REACH = (0.0035, 0.009), (0.0035, 0.009)
"""Metres along the skin from lid edges and the parting of the lips: up to the first the prior is followed, from the
second the network's surface."""
LANDMARKS = Path(__file__).parent / "assets" / "ict_landmarks478.npz"
HIDDEN = 0.2
"""Share of the sky below which a vertex counts as inside a hollow, where the prior is followed."""
MARGIN = 3
EYE_SHELL = 770
"""The first vertices of an eyeball are its outer shell (sclera and cornea), the others the iris behind it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ict", required=True)
    parser.add_argument("--out", default="models/template")
    args = parser.parse_args()
    data = np.load(Path(args.ict) / "ict_facekit_light_full.npz", allow_pickle=False)
    kept = np.concatenate([np.arange(*span) for span in ICT_PARTS.values()])
    neutral = (data["neutral"] / 100 - ORIGIN)[kept].astype(np.float32)
    identity = (data["identity_deltas"] / 100)[:, kept]
    names = [str(n) for n in data["expression_names"]]
    moving = [i for i, n in enumerate(names) if not n.startswith(LEFT_OUT)]
    expression = (data["expression_deltas"][moving] / 100)[:, kept]
    place = np.full(len(data["neutral"]), -1)
    place[kept] = np.arange(len(kept))
    quads, uvs = data["faces"], data["face_uv"]
    whole = (place[quads[:, :3]] >= 0).all(1)
    quads = np.where(quads[whole] >= 0, place[quads[whole]], -1)
    parts = {n: (int(place[a]), int(place[b - 1]) + 1) for n, (a, b) in ICT_PARTS.items()}
    jaw = jaw_share(neutral, expression[[names[i] for i in moving].index("jawOpen")], parts)
    tensors = {
        "neutral": neutral,
        "quads": quads.astype(np.int32),
        "uv": data["uv"].astype(np.float32),
        "quad_uv": uvs[whole].astype(np.int32),
        "trust": trust(neutral, quads, parts).astype(np.float32),
        "jaw": jaw.astype(np.float32),
        **identity_tensors(neutral, identity, parts),
        **expression_tensors(without_mouth(expression, parts)),
        **bindings(neutral, parts),
        **{f"lid_edge_{side}": lid_edge(quads, parts[f"socket_{side}"]) for side in ("left", "right")},
        **landmarks(args.ict, place),
    }
    config = {
        "kind": "template",
        "parts": parts,
        "eye_shell": EYE_SHELL,
        "expression_names": [names[i] for i in moving],
    }
    out = Path(args.out)
    write_weights(
        out / "model.safetensors", {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in tensors.items()}, config
    )
    shutil.copy(Path(args.ict) / "LICENSE", out / "LICENSE")
    print(json.dumps({k: [list(v.shape), str(v.dtype), v.nbytes] for k, v in tensors.items()}, indent=1))
    print(f"{(out / 'model.safetensors').stat().st_size / 1e6:.2f} MB")


def edges_of(quads: NDArray[np.integer]) -> NDArray[np.int64]:
    """Edges [E, 2] of quads [F, 4]; -1 in the last column marks a triangle."""
    three = quads[:, 3] < 0
    ring = np.where(three[:, None], quads[:, [0, 1, 2, 2]], quads)
    pairs = np.concatenate([ring[:, [k, (k + 1) % 4]] for k in range(4)])
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], 1)
    return np.unique(pairs, axis=0)


def trust(
    neutral: NDArray[np.float32], quads: NDArray[np.integer], parts: dict[str, tuple[int, int]]
) -> NDArray[np.float64]:
    """How far the network's surface is to be followed at each vertex of the skin [S], 0..1."""
    n, x = SKIN_END, neutral[:SKIN_END].astype(np.float64)
    own = edges_of(quads)
    own = own[(own < n).all(1)]
    graph = coo_matrix((np.linalg.norm(x[own[:, 0]] - x[own[:, 1]], axis=1), own.T), (n, n)).tocsr()

    def seam(name: str) -> NDArray[np.int64]:
        """Vertices of the face beside a part."""
        a, b = parts[name]
        inner = (own >= a) & (own < b)
        return np.unique(own[inner.any(1) & ~inner.all(1)])

    def ramp(sources: NDArray[np.int64], reach: tuple[float, float]) -> NDArray[np.float64]:
        away = dijkstra(graph, directed=False, indices=sources, min_only=True)
        t = np.clip((away - reach[0]) / (reach[1] - reach[0]), 0, 1)
        return t * t * (3 - 2 * t)

    lids = np.concatenate([seam("socket_left"), seam("socket_right")])
    follow = ramp(lids, LID_REACH) * ramp(seam("mouth"), LIP_REACH)
    for name in ("mouth", "socket_left", "socket_right"):
        follow[slice(*parts[name])] = 0
    print("lid edge vertices", len(lids), "lip edge vertices", len(seam("mouth")))
    ears = (np.abs(x[:, 0]) > 0.07) & (x[:, 1] > -0.045) & (x[:, 1] < 0.055) & (x[:, 2] > -0.06) & (x[:, 2] < 0.02)
    follow[ears] = 0
    follow[hidden(neutral, quads)] = 0
    below = np.clip((x[:, 1] - NECK_LEVEL) / 0.015, 0, 1)
    return smoothed(follow, own, 6) * (follow > 0) * below


def hidden(neutral: NDArray[np.float32], quads: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Vertices [S] of the skin that see little of the sky: nostrils and the folds of ears."""
    skin = quads[(quads < SKIN_END).all(1)]
    faces = np.concatenate([skin[:, :3], skin[skin[:, 3] >= 0][:, [0, 2, 3]]])
    return ambient_occlusion(neutral[:SKIN_END], faces.astype(np.int32)) < HIDDEN


def smoothed(values: NDArray[np.float64], edges: NDArray[np.int64], steps: int) -> NDArray[np.float64]:
    n = len(values)
    graph = coo_matrix((np.ones(len(edges)), edges.T), (n, n)).tocsr()
    graph = graph + graph.T
    degree = np.maximum(np.asarray(graph.sum(1)).ravel(), 1)
    for _ in range(steps):
        values = 0.5 * values + 0.5 * (graph @ values) / degree
    return values


def jaw_share(
    neutral: NDArray[np.float32], opening: NDArray[np.float32], parts: dict[str, tuple[int, int]]
) -> NDArray[np.float64]:
    """How far gums, tongue and teeth [V] go with the jaw, 0..1: their motion under jawOpen along the lower teeth's."""
    low = slice(*parts["teeth_lower"])
    homogeneous = np.pad(neutral.astype(np.float64), ((0, 0), (0, 1)), constant_values=1)
    motion = homogeneous @ np.linalg.lstsq(homogeneous[low], opening[low], rcond=None)[0]
    along = (opening * motion).sum(1) / np.maximum((motion**2).sum(1), 1e-12)
    share = np.zeros(len(opening))
    gums = slice(*parts["gums"])
    share[gums], share[low] = np.clip(along[gums], 0, 1), 1
    return share


def identity_tensors(neutral, identity, parts) -> dict[str, NDArray]:
    skin = identity[:, :SKIN_END]
    peak = np.abs(skin).max((1, 2))
    fine, coarse = skin[:FINE], skin[FINE:]
    # Shoulders vary by centimetres where the face varies by millimetres: each vertex has a step of its own.
    own = np.abs(coarse / peak[FINE:, None, None]).max((0, 2))
    steps = (peak[:FINE, None, None] / 32767, peak[FINE:, None, None] * own[:, None] / 127)
    out = {
        "identity_fine": np.rint(fine / steps[0]).astype(np.int16),
        "identity_coarse": np.rint(coarse / steps[1]).astype(np.int8),
        "identity_peak": peak.astype(np.float32),
        "identity_reach": own.astype(np.float32),
    }
    back = np.concatenate([out["identity_fine"] * steps[0], out["identity_coarse"] * steps[1]])
    w = np.random.default_rng(0).standard_normal((20, len(identity))).astype(np.float32)
    off = np.linalg.norm(np.tensordot(w, back - skin, 1), axis=-1)
    face = off[:, slice(*parts["face"])]
    print(f"identity modes, random heads, micrometres: mean {1e6 * off.mean():.1f}, largest {1e6 * off.max():.1f}")
    print(f"... in the face: mean {1e6 * face.mean():.1f}, largest {1e6 * face.max():.1f}")
    return out | attached(neutral, identity, parts)


def attached(
    neutral: NDArray[np.float32], identity: NDArray[np.float32], parts: dict[str, tuple[int, int]]
) -> dict[str, NDArray]:
    """Affine map [100, 3, 4] of each mode for mouth and eyes; a uniform scale and a shift for eyes."""
    out = {}
    groups = {
        "teeth": (parts["gums"][0], parts["teeth_lower"][1]),
        "eye_left": parts["eye_left"],
        "eye_right": parts["eye_right"],
    }
    w = np.random.default_rng(0).standard_normal((20, len(identity)))
    for name, (a, b) in groups.items():
        x, moved = neutral[a:b].astype(np.float64), identity[:, a:b].astype(np.float64)
        centre = x.mean(0)
        basis = np.concatenate([x - centre, np.ones((len(x), 1))], 1)
        if name == "teeth":
            maps = np.linalg.lstsq(basis, moved.transpose(1, 0, 2).reshape(len(x), -1), rcond=None)[0]
            maps = maps.reshape(4, len(moved), 3).transpose(1, 2, 0)
        else:
            shift = moved.mean(1)
            scale = ((moved - shift[:, None]) * (x - centre)).sum((1, 2)) / ((x - centre) ** 2).sum()
            maps = np.concatenate([scale[:, None, None] * np.eye(3), shift[..., None]], 2)
        off = np.tensordot(w, moved - np.einsum("kij,vj->kvi", maps, basis), 1)
        print(f"{name}: affine maps are off by {1000 * np.sqrt((off**2).sum(-1).mean()):.3f} mm (rms)")
        out[f"{name}_maps"] = maps.astype(np.float32)
    return out


def without_mouth(expression: NDArray[np.float32], parts: dict[str, tuple[int, int]]) -> NDArray[np.float32]:
    """Shapes [E, V, 3] of the skin and the lashes, and of the lower teeth under the four of the jaw."""
    kept = expression.copy()
    kept[:, parts["gums"][0] : parts["teeth_lower"][0]] = 0
    kept[:, parts["eye_left"][0] : parts["eye_right"][1]] = 0
    return kept


def expression_tensors(expression: NDArray[np.float32]) -> dict[str, NDArray]:
    """Shapes one after the other: how many vertices each moves, which, and how far in halves."""
    moves = [np.flatnonzero(np.linalg.norm(d, axis=1) > STILL) for d in expression]
    return {
        "expression_count": np.array([len(m) for m in moves], np.int32),
        "expression_vertex": np.concatenate(moves).astype(np.int16),
        "expression_moved": np.concatenate([d[m] for d, m in zip(expression, moves, strict=True)]).astype(np.float16),
    }


def lid_edge(quads: NDArray[np.integer], socket: tuple[int, int]) -> NDArray[np.int32]:
    """The loop of vertices on the outer edge of the lids' margin: ``MARGIN`` rings of quads around the socket."""
    skin = quads[(quads < SKIN_END).all(1)]
    inside = np.zeros(SKIN_END, bool)
    inside[slice(*socket)] = True
    for _ in range(MARGIN + 1):
        ring = np.setdiff1d(skin[inside[skin].any(1)], np.flatnonzero(inside))
        ring = ring[ring >= 0]
        inside[ring] = True
    return ring.astype(np.int32)


def bindings(neutral: NDArray[np.float32], parts: dict[str, tuple[int, int]]) -> dict[str, NDArray]:
    """The vertex of the skin that each vertex of the lashes goes with in identities: the nearest."""
    lashes = np.concatenate([np.arange(*parts[f"lashes_{side}"]) for side in ("left", "right")])
    return {"lash_vertex": kd_tree(neutral[:SKIN_END]).query(neutral[lashes])[1].astype(np.int16)}


def landmarks(folder: str, place: NDArray[np.integer]) -> dict[str, NDArray]:
    """Corners [478, 3] and weights [478, 3] of the landmarks on the template."""
    heads, points = load_ict(folder), np.load(LANDMARKS, allow_pickle=False)
    corners = place[heads.source[heads.faces[points["face"]]]]
    return {"landmark_corners": corners.astype(np.int32), "landmark_weights": points["bary"]}


if __name__ == "__main__":
    main()
