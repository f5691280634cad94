"""Find the face in every photo of the pool and fit an ICT head to its landmarks.

    python training/build_photo_fits.py --ict FOLDER --photos FOLDER --out FILE.npz [--heads FILE | --networks]

Writes file names, persons, landmarks [N, 478, 3] px, blendshape scores and fits (``nphm_track.training.photo_fit``) of
the photos in which a face of at least 72 px is found and fitted well. One person in ten is marked held out.

With --networks, a round of self-training: heads are what the current networks see in the photos, and the landmarks
give little more than poses. The photos chosen are the same. Networks change with every release: --write-heads keeps the
heads of such a round, and --heads builds the same fits from them at any time.
"""

from __future__ import annotations

import argparse
import csv
import os
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.regressor.image_regressor import Codes
from nphm_track.regressor.predictor import CodePredictor
from nphm_track.training.head_terms import HeadTerms, of_usual_size
from nphm_track.training.ict import load_ict
from nphm_track.training.photo_fit import LANDMARKS, fit_photos, landmark_basis, landmark_weights, largest_face

MIN_FACE = 72  # px
MAX_ERROR = 0.035  # of the face's RMS radius
HELD = 10.0  # noise of landmarks that leaves given heads as they are: only poses follow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ict", required=True)
    parser.add_argument("--photos", required=True, help="folder with index.csv (file, person)")
    parser.add_argument("--out", required=True)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--networks", action="store_true", help="with the weights that the networks see")
    source.add_argument("--heads", type=Path, help="with the weights of a file written by --write-heads")
    parser.add_argument("--write-heads", type=Path, help="where to keep the weights of the photos")
    args = parser.parse_args()
    folder = Path(args.photos)
    known = read_heads(args.heads) if args.heads else {}
    with open(folder / "index.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    landmarker = FaceLandmarker.from_pretrained()
    predictor = CodePredictor.from_pretrained(landmarker) if args.networks else None
    if predictor is not None:  # whole identities, not the part that the tracker trusts
        regressor = predictor.regressor
        regressor.image_config = replace(regressor.image_config, identity_trust=1.0)
    found, codes = [], []
    for row in track([r for r in rows if not known or r["file"] in known], description="landmarks"):
        image = np.asarray(Image.open(folder / row["file"]).convert("RGB"))
        face = largest_face(landmarker, image)
        if face is not None and face.presence > 0.9 and np.ptp(face.box[::2]) >= MIN_FACE:
            found.append((row, face, image.shape[1::-1]))
            if predictor is not None:
                codes.append(predictor([image], [face]))
    landmarks = np.stack([f.landmarks for _, f, _ in found])
    size = np.array([s for _, _, s in found], np.float32)
    basis = landmark_basis(load_ict(args.ict))
    weights = landmark_weights()
    blocks = [slice(k, k + 32) for k in range(0, len(found), 32)]
    observed = [(landmarks[k, :, :2], size[k], weights) for k in blocks]
    seen, noise = None, None
    if known:
        w, e = zip(*(known[r["file"]] for r, _, _ in found), strict=True)
        seen, noise = (torch.stack(w), torch.stack(e)), HELD
        good = np.ones(len(found), bool)
    else:
        parts = [fit_photos(basis, *o) for o in track(observed, description="fits")]
        good = np.concatenate([p.error for p in parts]) < MAX_ERROR
        if predictor is not None:
            seen = _weights(codes, args.ict)
    if seen is not None:
        of = ((seen[0][k], seen[1][k]) for k in blocks)
        parts = [fit_photos(basis, *o, heads, noise) for o, heads in zip(observed, of, strict=True)]
    columns = {k: np.concatenate([getattr(p, k) for p in parts]) for k in ("w", "e", "K", "R", "t", "error")}
    columns["landmarks"], columns["size"] = landmarks, size
    columns["blendshapes"] = np.stack([f.blendshapes for _, f, _ in found])
    columns["photo"] = np.array([r["file"] for r, _, _ in found])
    columns["grey"] = np.array([r["colour"] == "grey" for r, _, _ in found])
    columns["heldout"] = np.array([zlib.crc32(r["person"].encode()) % 10 == 0 for r, _, _ in found])
    partial = Path(args.out).with_suffix(".partial.npz")
    np.savez(partial, **{k: v[good] for k, v in columns.items()})
    os.replace(partial, args.out)
    if args.write_heads:
        write_heads(args.write_heads, *(columns[k][good] for k in ("photo", "w", "e")))
    print(
        f"{len(rows)} photos, {len(found)} faces, {good.sum()} fitted; median error {np.median(columns['error']):.4f}"
    )


def _weights(codes: list[Codes], ict: str) -> tuple[torch.Tensor, torch.Tensor]:
    """ICT weights of codes, of people who are as large as ICT's mean head on average."""
    terms = HeadTerms("nphm-small", ict, LANDMARKS)
    w, e = terms.weights(torch.cat([c.z_id for c in codes]), torch.cat([c.z_ex for c in codes]))
    return of_usual_size(w, terms.identity, terms.placement), e


def write_heads(path: Path, photo: NDArray[np.str_], w: NDArray[np.float32], e: NDArray[np.float32]) -> None:
    """Keep the ICT weights w [N, 100], e [N, E] of photos, half precision."""
    np.savez_compressed(path, photo=photo, w=w.astype(np.float16), e=e.astype(np.float16))


def read_heads(path: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """ICT weights (w [100], e [E]) of photos by file name."""
    with np.load(path, allow_pickle=False) as data:
        w, e = (torch.from_numpy(data[k].astype(np.float32)) for k in "we")
        return {str(name): (w[i], e[i]) for i, name in enumerate(data["photo"])}


if __name__ == "__main__":
    main()
