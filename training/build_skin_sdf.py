"""Build shards of exact signed distances for the head model from ICT-FaceKit; resumable, a file per 100 heads.

    python training/build_skin_sdf.py --ict FOLDER --out SHARDS [--heads 2000] [--seed 0]

Each shard holds, for every head: identity and expression weights ``w``, ``e``; points on its skin with their normals,
but for skin that other skin covers; and points around it with their signed distance (metres, head space). Points are as
dense as the control points of the head model: most at the edges of lids and lips, then at nostrils and ears. Every
third head shows one expression alone. Seeds below 900000 are for training; 900000 and above are held out.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from nphm_track.rendering.rasteriser import vertex_normals
from nphm_track.training.controls import spacing
from nphm_track.training.ict import (
    NECK_LEVEL,
    IctHeads,
    inside,
    load_ict,
    sample_expression,
    sample_identity,
    signed_distance,
)

BOX = np.array([[-0.14, NECK_LEVEL, -0.22], [0.14, 0.19, 0.11]], np.float32)
HEADS_A_SHARD = 100
HEIGHTS = {0.0005: 0.45, 0.002: 0.35, 0.01: 0.2}
"""Spread in metres of the points around the skin: the share of them that has it."""
IN_BOX = 0.08
"""Share of the points that lies anywhere in ``BOX``."""
COVERED = 0.0003
"""Metres above a point of the skin; where this is inside the head, the skin is covered by other skin."""


def sample_skin(
    rng: np.random.Generator, heads: IctHeads, vertices: NDArray[np.float32], gap: NDArray[np.floating], count: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Points and unit normals [count, 3] of the surface, as dense as ``gap`` [V] (metres) asks."""
    f = heads.faces
    corners = vertices[f]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    weight = area / gap[f].mean(1) ** 2 * (corners[..., 1].mean(1) > NECK_LEVEL)
    chosen = rng.choice(len(f), count, p=weight / weight.sum())
    bary = rng.dirichlet([1, 1, 1], count)[..., None]
    normals = (vertex_normals(vertices, f)[f[chosen]] * bary).sum(1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-9)
    return (corners[chosen] * bary).sum(1).astype(np.float32), normals.astype(np.float32)


def build_head(
    rng: np.random.Generator, heads: IctHeads, vertices: NDArray[np.float32], gap: NDArray[np.floating], count: int
) -> dict[str, NDArray]:
    """``count`` points on the skin and as many around it, of one head."""
    skin, normals = sample_skin(rng, heads, vertices, gap, count * 3 // 2)
    free = np.flatnonzero(~inside(heads, vertices, skin + COVERED * normals))
    free = np.resize(free, count)
    start, up = sample_skin(rng, heads, vertices, gap, count)
    height = rng.standard_normal(count) * rng.choice(list(HEIGHTS), count, p=list(HEIGHTS.values()))
    points = start + height[:, None].astype(np.float32) * up
    points = np.where(rng.random((count, 1)) < IN_BOX, rng.uniform(*BOX, (count, 3)), points).astype(np.float32)
    return {
        "skin": skin[free],
        "normals": normals[free].astype(np.float16),
        "points": points,
        "sdf": signed_distance(heads, vertices, points).astype(np.float16),
    }


def expressions(rng: np.random.Generator, count: int, names: tuple[str, ...]) -> NDArray[np.float32]:
    """Expression weights [count, E]; every third row shows one expression alone, on both sides or one, nearly full."""
    e = sample_expression(rng, count, names)
    for row in range(0, count, 3):
        name = names[rng.integers(len(names))]
        strength = rng.uniform(0.6, 1)
        sides = [name]
        if name.endswith(("_L", "_R")) and rng.random() < 0.7:
            sides = [name[:-1] + side for side in "LR"]
        if name == "mouthClose":
            sides.append("jawOpen")
        e[row] = np.isin(names, sides) * strength
    close, jaw = (
        names.index("mouthClose"),
        names.index("jawOpen"),
    )  # it only undoes what the jaw does
    e[:, close] = np.minimum(e[:, close], e[:, jaw])
    return e


def build_shard(heads: IctHeads, gap: NDArray[np.floating], seed: int, count: int) -> dict[str, NDArray]:
    """One shard of ``HEADS_A_SHARD`` heads drawn with ``seed``."""
    rng = np.random.default_rng(seed)
    w = sample_identity(rng, HEADS_A_SHARD)
    e = expressions(rng, HEADS_A_SHARD, heads.expression_names)
    parts = [build_head(rng, heads, heads.vertices(w[k], e[k]), gap, count) for k in range(HEADS_A_SHARD)]
    return {"w": w, "e": e, **{name: np.stack([p[name] for p in parts]) for name in parts[0]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ict", required=True, help="folder with ict_facekit_light_full.npz")
    parser.add_argument("--out", required=True)
    parser.add_argument("--heads", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--points", type=int, default=1024, help="of each kind a head")
    args = parser.parse_args()
    heads = load_ict(args.ict, eyeballs=False)
    gap = spacing(heads, args.ict)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for k in track(range(-(-args.heads // HEADS_A_SHARD)), description="shards"):
        path = out / f"heads_{args.seed + k:06d}.npz"
        if path.exists():
            continue
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **build_shard(heads, gap, args.seed + k, args.points))
        os.replace(partial, path)


if __name__ == "__main__":
    main()
