"""Photo-like renders of ICT heads for the geometry networks and the image regressor; resumable shards of 250.

    python training/build_face_renders.py --ict FOLDER --photos FOLDER --fits FITS.npz --out SHARDS [--samples 16000]

Fields: see ``nphm_track.training.face_renders.SampleMaker``. Seeds of 900000 and above use the held-out people.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from nphm_track.training.face_renders import PhotoPool, SampleMaker
from nphm_track.training.ict import load_ict
from nphm_track.training.photo_fit import landmark_basis

A_SHARD = 250
HELDOUT_SEED = 900_000


def build_shard(maker: SampleMaker, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, 320])
    rows = []
    while len(rows) < A_SHARD:
        sample = maker.draw(rng)
        if sample is not None:
            rows.append(sample)
    jpegs = [r.pop("jpeg") for r in rows]
    columns = {k: np.stack([r[k] for r in rows]) for k in rows[0]}
    return {**columns, "jpeg": np.concatenate(jpegs), "jpeg_end": np.cumsum([len(j) for j in jpegs])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ict", required=True)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--fits", required=True, help="written by training/build_photo_fits.py")
    parser.add_argument("--out", required=True)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    heads = load_ict(args.ict)
    rigid = json.loads((Path(args.ict) / "vertex_indices.json").read_text())["idx_to_landmark_verts"]
    basis = landmark_basis(heads)
    points = torch.cat([basis.mean[None], basis.identity, basis.expression]).numpy()
    pool = PhotoPool.read(args.fits, args.photos, heldout=args.seed >= HELDOUT_SEED)
    maker = SampleMaker(heads, points, np.searchsorted(heads.source, rigid), pool)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for k in track(range(-(-args.samples // A_SHARD)), description="shards"):
        path = out / f"faces_{args.seed + k:06d}.npz"
        if path.exists():
            continue
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **build_shard(maker, args.seed + k))
        os.replace(partial, path)


if __name__ == "__main__":
    main()
