"""Fit the appearance signature of ``models/face_landmarker``: a linear discriminant on frozen landmark features.

    python training/fit_face_signature.py FACES models/face_landmarker

FACES holds photographs and ``index.csv`` with the columns file, person and colour. Each photograph is seen five times,
four of them smaller, darker, blurred, tinted, lit from a side and through a shaken roi; the projection keeps what
differs between people and shrinks what these changes (and a person's other photographs) alter. Takes three minutes.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from scipy.linalg import eigh

from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.faces.networks import AppearanceSignature
from nphm_track.faces.roi import crop_rois
from nphm_track.models import read_weights, resolve, sha256, write_weights

VIEWS = 5
SINGLE_PEOPLE = 200  # people with one photograph, beside all with several
SHRINKAGE = 0.3


def worsen(image: np.ndarray, roi: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The photograph as a poor video would show it, and its roi a little off."""
    picture, size = Image.fromarray(image), float(roi[2])
    shrink = rng.uniform(40, 200) / size
    if shrink < 1:
        small = picture.resize([max(8, int(n * shrink)) for n in picture.size], Image.Resampling.BILINEAR)
        picture = small.resize(picture.size, Image.Resampling.BILINEAR)
    if rng.random() < 0.4:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.03) * size))
    pixels = (np.asarray(picture, np.float32) / 255) ** np.exp(rng.uniform(-0.4, 1.0))
    pixels *= np.exp(rng.uniform(-1.6, 0.2)) * np.exp(rng.normal(0, 0.1, 3))
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    across = ((x - roi[0]) * np.cos(angle) + (y - roi[1]) * np.sin(angle)) * 2 / size
    pixels *= np.clip(1 + rng.uniform(-0.5, 0.5) * across, 0.15, 2)[..., None]
    pixels += rng.normal(0, rng.uniform(0, 0.03), pixels.shape)
    shake = np.array([*rng.normal(0, 0.03, 2) * size, *[rng.normal(0, 0.06) * size] * 2, rng.normal(0, 0.1)])
    return (pixels.clip(0, 1) * 255).astype(np.uint8), (roi + shake).astype(np.float32)


def collect(folder: Path, landmarker: FaceLandmarker, pool: AppearanceSignature) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features [N, 512] and the person of each [N]."""
    with open(folder / "index.csv", newline="") as file:
        rows = sorted((r for r in csv.DictReader(file) if r["colour"] == "colour"), key=lambda r: r["file"])
    photographs = Counter(row["person"] for row in rows)
    single = [row for row in rows if photographs[row["person"]] == 1]
    chosen = [row for row in rows if photographs[row["person"]] > 1]
    chosen += single[:: max(1, len(single) // SINGLE_PEOPLE)]
    rng = np.random.default_rng(0)
    features, people = [], []
    for row in chosen:
        image = np.array(Image.open(folder / row["file"]).convert("RGB"))
        faces = landmarker.find(image, thorough=False)
        if not faces:
            continue
        roi = max((face.next_roi for face in faces), key=lambda roi: float(roi[2]))
        views = [(image, roi)] + [worsen(image, roi, rng) for _ in range(VIEWS - 1)]
        for view, seen_through in views:
            with torch.inference_mode():
                encoded = landmarker.landmark_net(crop_rois([view], seen_through[None]), True)
            features.append(pool.pool(encoded["features_16"])[0].numpy())
            people.append(row["person"])
    return np.array(features, np.float64), np.unique(people, return_inverse=True)[1]


def discriminant(x: np.ndarray, people: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and projection [D, size] that make people differ and views of one person agree (Fisher)."""
    mean = x.mean(0)
    x = x - mean
    centres = np.stack([x[people == person].mean(0) for person in range(people.max() + 1)])
    spread = x - centres[people]
    within = spread.T @ spread / len(x)
    within += SHRINKAGE * (np.diag(np.diag(within)) + 0.1 * np.trace(within) / len(within) * np.eye(len(within)))
    _, vectors = eigh(centres.T @ centres / len(centres), within)
    projection = vectors[:, ::-1][:, :size]
    return mean, projection / (x @ projection).std()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faces", type=Path, help="folder of photographs with index.csv")
    parser.add_argument("model", type=Path, help="folder of the converted model, changed in place")
    args = parser.parse_args()
    tensors, config = read_weights(args.model)
    landmarker = FaceLandmarker.from_pretrained(args.model)
    x, people = collect(args.faces, landmarker, AppearanceSignature(**config["signature"]))
    mean, projection = discriminant(x, people, config["signature"]["size"])
    tensors["signature.mean"] = torch.from_numpy(mean)
    tensors["signature.projection"] = torch.from_numpy(projection)
    config["source"]["signature"] = {"people": int(people.max() + 1), "views": len(x)}
    path = resolve(args.model)
    write_weights(path, tensors, config, half=True)
    print(f"{path}: {path.stat().st_size} bytes, sha256 {sha256(path)}")


if __name__ == "__main__":
    main()
