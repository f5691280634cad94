"""Photo-like renders of ICT heads on disk, for held-out figures and for training from stored data; resumable shards.

    python training/build_face_renders.py --ict FOLDER --photos FOLDER --fits FITS.npz --out SHARDS [--samples 500]

The renders are those that the faces recipe draws as it trains (``nphm_track.training.face_stream``), those left out in
which the landmark network finds no face. Seeds of 900000 and above use the held-out people.
"""

from __future__ import annotations

import argparse
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from nphm_track._runtime import prepare_torch
from nphm_track.training.face_stream import FaceStream

A_SHARD = 250
A_BATCH = 25
HELDOUT_SEED = 900_000
SHARDS_APART = 1000


def build_shard(stream: FaceStream, seed: int) -> dict[str, NDArray[Any]]:
    """Columns of one shard: codes, camera, observation, maps (points in metres, normals * 127), crops as JPEG."""
    parts: list[dict[str, NDArray[Any]]] = []
    crops: list[NDArray[np.uint8]] = []
    for k in range(SHARDS_APART):
        batch = stream.draw(seed * SHARDS_APART + k, A_BATCH)
        good = batch.valid > 0
        columns = {name: value[good].cpu() for name, value in batch.columns().items()}
        crops += list((columns["crop"].permute(0, 2, 3, 1) * 255 + 0.5).byte().numpy())
        part = {name: columns[name].numpy() for name in ("w", "e", "K", "R", "t", "size", "roi", "landmarks")}
        part["blendshapes"] = columns["scores"].numpy()
        part["points"] = columns["points"].permute(0, 2, 3, 1).half().numpy()
        part["normals"] = (columns["normals"].permute(0, 2, 3, 1) * 127).round().char().numpy()
        part["mask"] = columns["mask"].bool().numpy()
        parts.append(part)
        if len(crops) >= A_SHARD:
            break
    jpegs = [_jpeg(crop) for crop in crops[:A_SHARD]]
    table = {name: np.concatenate([p[name] for p in parts])[:A_SHARD] for name in parts[0]}
    return {**table, "jpeg": np.concatenate(jpegs), "jpeg_end": np.cumsum([len(j) for j in jpegs])}


def _jpeg(crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
    stream = io.BytesIO()
    Image.fromarray(crop).save(stream, "JPEG", quality=93)
    return np.frombuffer(stream.getvalue(), np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ict", required=True)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--fits", required=True, help="written by training/build_photo_fits.py")
    parser.add_argument("--out", required=True)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    prepare_torch()
    heldout = args.seed >= HELDOUT_SEED
    stream = FaceStream.open(args.ict, args.photos, args.fits, heldout=heldout, device=args.device)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for k in track(range(-(-args.samples // A_SHARD)), description="shards"):
        path = out / f"faces_{args.seed + k:06d}.npz"
        if path.exists():
            continue
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **build_shard(stream, args.seed + k))
        os.replace(partial, path)


if __name__ == "__main__":
    main()
