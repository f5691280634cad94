"""Build shards of exact signed distances for the head model from ICT-FaceKit; resumable, a file per 100 heads.

    python training/build_head_sdf.py --ict FOLDER --out SHARDS [--heads 2000] [--seed 0]

Each shard holds, for every head: identity and expression weights, points near its neutral surface with their distance,
and points near its posed surface with their distance (metres, head space, float16 points; distances are exact for the
rounded points). Seeds below 900000 are for training; 900000 and above are held out for evaluation.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from nphm_track.training.ict import (
    NECK_LEVEL,
    IctHeads,
    load_ict,
    sample_expression,
    sample_identity,
    signed_distance,
)

BOX = np.array([[-0.14, NECK_LEVEL, -0.22], [0.14, 0.19, 0.11]], np.float32)
HEADS_A_SHARD = 100


def sample_points(
    rng: np.random.Generator, heads: IctHeads, vertices: NDArray[np.float32], count: int
) -> NDArray[np.float32]:
    """Points [count, 3]: 60 % within 2 mm of the surface, 25 % within 10 mm, the rest in the box; more on the face."""
    corners = vertices[heads.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(normal, axis=1)
    centre = corners.mean(1)
    weight = area * (centre[:, 1] > NECK_LEVEL)
    in_face = (centre[:, 2] > 0) & ~heads.is_pocket[heads.faces[:, 0]]
    weight *= np.where(in_face, 4.0, 1.0)
    lips_or_eye = np.linalg.norm(centre - [0, -0.033, 0.045], axis=1) < 0.03
    weight *= np.where(in_face & (lips_or_eye | heads.is_eye[heads.faces].any(1)), 2.0, 1.0)
    n_box = count * 15 // 100
    n_near = count - n_box
    chosen = rng.choice(len(weight), n_near, p=weight / weight.sum())
    bary = rng.dirichlet([1, 1, 1], n_near)
    points = (corners[chosen] * bary[:, :, None]).sum(1)
    sigma = np.where(rng.random(n_near) < 0.7, 0.002, 0.01)
    points += rng.standard_normal((n_near, 3)) * sigma[:, None]
    points = np.concatenate([points, rng.uniform(BOX[0], BOX[1], (n_box, 3))])
    return np.clip(points, BOX[0], BOX[1]).astype(np.float16).astype(np.float32)


def build_shard(heads: IctHeads, seed: int, n_neutral: int, n_posed: int) -> dict[str, NDArray]:
    """One shard of ``HEADS_A_SHARD`` heads drawn with ``seed``."""
    rng = np.random.default_rng(seed)
    w = sample_identity(rng, HEADS_A_SHARD)
    e = sample_expression(rng, HEADS_A_SHARD, heads.expression_names)
    out: dict[str, list[NDArray]] = {k: [] for k in ("neutral_points", "neutral_sdf", "posed_points", "posed_sdf")}
    for k in range(HEADS_A_SHARD):
        for name, count, expression in (("neutral", n_neutral, None), ("posed", n_posed, e[k])):
            vertices = heads.vertices(w[k], expression)
            points = sample_points(rng, heads, vertices, count)
            out[name + "_points"].append(points.astype(np.float16))
            out[name + "_sdf"].append(signed_distance(heads, vertices, points).astype(np.float16))
    return {"w": w, "e": e, **{k: np.stack(v) for k, v in out.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ict", required=True, help="folder with ict_facekit_light_full.npz")
    parser.add_argument("--out", required=True)
    parser.add_argument("--heads", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--neutral-points", type=int, default=8192)
    parser.add_argument("--posed-points", type=int, default=4096)
    args = parser.parse_args()
    heads = load_ict(args.ict)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for k in track(range(-(-args.heads // HEADS_A_SHARD)), description="shards"):
        path = out / f"heads_{args.seed + k:06d}.npz"
        if path.exists():
            continue
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **build_shard(heads, args.seed + k, args.neutral_points, args.posed_points))
        os.replace(partial, path)


if __name__ == "__main__":
    main()
