"""Render painted ICT heads with known codes and run the landmark network on them; resumable shards of 250.

    python training/build_landmark_renders.py --ict FOLDER --out SHARDS [--renders 3000] [--seed 0]

A shard holds identity and expression weights, camera (K, R, t), the detected 478 points, blendshape scores and
presence. Seeds below 900000 are for training.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.training.ict import IctHeads, load_ict, sample_expression, sample_identity
from nphm_track.training.paint import paint, random_view, render

A_SHARD = 250


def build_shard(
    heads: IctHeads, landmarks68: NDArray[np.int64], landmarker: FaceLandmarker, seed: int
) -> dict[str, NDArray]:
    rng = np.random.default_rng([seed, 68])
    w = sample_identity(rng, A_SHARD)
    e = sample_expression(rng, A_SHARD, heads.expression_names)
    columns: dict[str, list[NDArray]] = {k: [] for k in ("K", "R", "t", "landmarks", "blendshapes", "presence")}
    for k in range(A_SHARD):
        vertices = heads.vertices(w[k], e[k])
        wide = rng.random() < 0.4
        view = random_view(rng, size=256, yaw=50 if wide else 25, pitch=25 if wide else 12, roll=15)
        image, _ = render(heads, vertices, paint(heads, landmarks68, rng), view, rng)
        pixels = (vertices[landmarks68] @ view.R.T + view.t) @ view.K.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        centre, side = (pixels.min(0) + pixels.max(0)) / 2, np.ptp(pixels, axis=0).max() * rng.uniform(1.55, 1.8)
        seen = landmarker.observe(image, np.array([[*centre, side, side, rng.normal() * 0.1]]))[0]
        row = (view.K, view.R, view.t, seen.landmarks, seen.blendshapes, np.float32(seen.presence))
        for name, value in zip(columns, row, strict=True):
            columns[name].append(np.asarray(value, np.float32))
    return {"w": w, "e": e, **{k: np.stack(v) for k, v in columns.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ict", required=True, help="folder with ict_facekit_light_full.npz")
    parser.add_argument("--out", required=True)
    parser.add_argument("--renders", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    heads = load_ict(args.ict)
    rigid = json.loads((Path(args.ict) / "vertex_indices.json").read_text())["idx_to_landmark_verts"]
    landmarks68 = np.searchsorted(heads.source, rigid)
    landmarker = FaceLandmarker.from_pretrained()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for k in track(range(-(-args.renders // A_SHARD)), description="shards"):
        path = out / f"landmarks_{args.seed + k:06d}.npz"
        if path.exists():
            continue
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **build_shard(heads, landmarks68, landmarker, args.seed + k))
        os.replace(partial, path)


if __name__ == "__main__":
    main()
