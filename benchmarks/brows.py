"""Whether landmarks above the eyes lie on ICT heads where people have them: photos fitted without those landmarks.

python benchmarks/brows.py --ict FOLDER --photos FITS.npz --out FOLDER

FITS, written by training/build_photo_fits.py, is read for its landmarks. Brows are painted for
training/calibrate_landmarks.py as far below ICT's own brow landmarks (``training.paint.BROW_DROP``) as leaves nothing
here. Writes brows.json and brows.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from report import machine, machine_line, save, table

from nphm_track._runtime import prepare_torch
from nphm_track.conventions import BROWS, LIDS
from nphm_track.tracking.fit import OUTLINE
from nphm_track.training.ict import load_ict
from nphm_track.training.photo_fit import LANDMARKS, LandmarkBasis, fit_photos, landmark_basis, landmark_weights

PHOTOS, MAX_YAW = 1000, 12.0
ABOVE = 0.003
"""Metres above the lids beyond which a landmark is not fitted."""
GROUPS = {
    "brows, upper edge": BROWS[:5] + BROWS[10:15],
    "brows, lower edge": BROWS[5:10] + BROWS[15:],
    "between the brows": (8, 9),
    "forehead": (10, 151),
    "bridge of the nose": (6, 197),
    "upper lids": (159, 386),
}


def offsets(basis: LandmarkBasis, photos: NDArray, unseen: NDArray[np.int64]) -> NDArray[np.float64]:
    """Where landmarks are seen beside where fits without ``unseen`` have them: [N, 478, 3] of N frontal photos, metres,
    head space, in the image plane."""
    yaw = np.degrees(np.arctan2(photos["R"][:, 2, 0], -photos["R"][:, 2, 2]))
    rows = np.flatnonzero((np.abs(yaw) < MAX_YAW) & ~photos["heldout"])[:PHOTOS]
    pixels, size = photos["landmarks"][rows, :, :2], photos["size"][rows]
    weights = landmark_weights(OUTLINE, unseen.tolist())
    found = []
    for k in range(0, len(rows), 32):
        some = slice(k, k + 32)
        fit = fit_photos(basis, pixels[some], size[some], weights)
        points = basis.points(torch.from_numpy(fit.w).double(), torch.from_numpy(fit.e).double()).numpy()
        camera = points @ fit.R.swapaxes(1, 2) + fit.t[:, None]
        z, focal = camera[..., 2:], fit.K[:, None, :1, 0]
        away = (pixels[some] - (camera[..., :2] / z * focal + fit.K[:, None, :2, 2])) * z / focal
        found.append(np.concatenate([away, np.zeros_like(z)], -1) @ fit.R)
    return np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("ict", "photos"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--landmarks", default=LANDMARKS)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    prepare_torch()
    basis = landmark_basis(load_ict(args.ict), args.landmarks)
    height = basis.mean[:, 1].numpy()
    found = offsets(basis, np.load(args.photos), np.flatnonzero(height > height[list(LIDS)].max() + ABOVE))
    upwards = {name: 1000 * float(np.median(found[:, rows, 1])) for name, rows in GROUPS.items()}
    facts = {"machine": machine(), "photos": len(found), "upwards_mm": upwards}
    note = f"{len(found)} photos: how far above its place on the fitted head a landmark is seen (median)."
    text = table(["", "mm"], [list(row) for row in upwards.items()])
    save(args.out, "brows", facts, "\n\n".join([machine_line(facts["machine"]), note, text]))


if __name__ == "__main__":
    main()
