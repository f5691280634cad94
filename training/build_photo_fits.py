"""Find the face in every photo of the pool and fit an ICT head to its landmarks.

    python training/build_photo_fits.py --ict FOLDER --photos FOLDER --out FILE.npz [--networks]

Writes file names, persons, landmarks [N, 478, 3] px, blendshape scores and fits (``nphm_track.training.photo_fit``) of
the photos in which a face of at least 72 px is found and fitted well. One person in ten is marked held out.

With --networks, a round of self-training: heads are what the current networks see in the photos, and the landmarks
give little more than poses. The photos chosen are the same.
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
from PIL import Image
from rich.progress import track

from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.regressor.image_regressor import Codes
from nphm_track.regressor.predictor import CodePredictor
from nphm_track.tracking.fit import OUTLINE
from nphm_track.training.ict import load_ict
from nphm_track.training.photo_fit import LANDMARKS, fit_photos, landmark_basis, landmark_weights, largest_face
from nphm_track.training.regressor_task import HeadTerms, of_usual_size

MIN_FACE = 72  # px
MAX_ERROR = 0.035  # of the face's RMS radius


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ict", required=True)
    parser.add_argument("--photos", required=True, help="folder with index.csv (file, person)")
    parser.add_argument("--out", required=True)
    parser.add_argument("--networks", action="store_true", help="with the weights that the networks see")
    args = parser.parse_args()
    folder = Path(args.photos)
    with open(folder / "index.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    landmarker = FaceLandmarker.from_pretrained()
    predictor = CodePredictor.from_pretrained(landmarker) if args.networks else None
    if predictor is not None:  # whole identities, not the part that the tracker trusts
        regressor = predictor.regressor
        regressor.image_config = replace(regressor.image_config, identity_trust=1.0)
    found, codes = [], []
    for row in track(rows, description="landmarks"):
        image = np.asarray(Image.open(folder / row["file"]).convert("RGB"))
        face = largest_face(landmarker, image)
        if face is not None and face.presence > 0.9 and np.ptp(face.box[::2]) >= MIN_FACE:
            found.append((row, face, image.shape[1::-1]))
            if predictor is not None:
                codes.append(predictor([image], [face]))
    landmarks = np.stack([f.landmarks for _, f, _ in found])
    size = np.array([s for _, _, s in found], np.float32)
    basis = landmark_basis(load_ict(args.ict))
    weights = landmark_weights(OUTLINE)
    blocks = [slice(k, k + 32) for k in range(0, len(found), 32)]
    parts = [fit_photos(basis, landmarks[k, :, :2], size[k], weights) for k in track(blocks, description="fits")]
    good = np.concatenate([p.error for p in parts]) < MAX_ERROR
    if predictor is not None:
        w, e = _weights(codes, args.ict)
        parts = [fit_photos(basis, landmarks[k, :, :2], size[k], weights, (w[k], e[k])) for k in blocks]
    columns = {k: np.concatenate([getattr(p, k) for p in parts]) for k in ("w", "e", "K", "R", "t", "error")}
    columns["landmarks"], columns["size"] = landmarks, size
    columns["blendshapes"] = np.stack([f.blendshapes for _, f, _ in found])
    columns["photo"] = np.array([r["file"] for r, _, _ in found])
    columns["grey"] = np.array([r["colour"] == "grey" for r, _, _ in found])
    columns["heldout"] = np.array([zlib.crc32(r["person"].encode()) % 10 == 0 for r, _, _ in found])
    partial = Path(args.out).with_suffix(".partial.npz")
    np.savez(partial, **{k: v[good] for k, v in columns.items()})
    os.replace(partial, args.out)
    print(
        f"{len(rows)} photos, {len(found)} faces, {good.sum()} fitted; median error {np.median(columns['error']):.4f}"
    )


def _weights(codes: list[Codes], ict: str) -> tuple[torch.Tensor, torch.Tensor]:
    """ICT weights of codes, of people who are as large as ICT's mean head on average."""
    terms = HeadTerms("nphm-small", ict, LANDMARKS)
    w, e = terms.weights(torch.cat([c.z_id for c in codes]), torch.cat([c.z_ex for c in codes]))
    return of_usual_size(w, terms.identity, terms.placement), e


if __name__ == "__main__":
    main()
