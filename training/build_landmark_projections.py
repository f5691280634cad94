"""Landmark samples without rendering: project 478 points of ICT heads, add the network's own errors, score blendshapes.

    python training/build_landmark_projections.py --ict FOLDER --renders SHARDS --out FOLDER [--samples 40000]

The errors are those of the detections on renders (``build_landmark_renders.py``), taken in the face's frame and unit,
and put onto other heads and views at random, scaled by 0.3 to 1.2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.training.ict import load_ict, sample_expression, sample_identity
from nphm_track.training.paint import random_view
from nphm_track.training.regressor_task import read_samples

A_SHARD = 5000


def project(points: np.ndarray, K: np.ndarray, R: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Head points [B, 478, 3] (metres) -> [B, 478, 3]: pixels, and depth about its mean at the face's scale."""
    camera = points @ R.swapaxes(-1, -2) + t[:, None]
    focal = K[:, None, :1, 0]
    pixels = camera[..., :2] / camera[..., 2:] * focal + K[:, None, :2, 2]
    depth = camera[..., 2:] - camera[..., 2:].mean(1, keepdims=True)
    return np.concatenate([pixels, depth * focal / camera[..., 2:].mean(1, keepdims=True)], -1)


def face_frame(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In-plane turn [B, 2, 2] (rows: face axes in the image) and RMS radius [B] px."""
    along = landmarks[:, 263, :2] - landmarks[:, 33, :2]
    along = along / np.linalg.norm(along, axis=1, keepdims=True)
    turn = np.stack([along, np.stack([-along[:, 1], along[:, 0]], -1)], 1)
    xy = landmarks[..., :2]
    return turn, np.sqrt(((xy - xy.mean(1, keepdims=True)) ** 2).sum(-1).mean(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ict", required=True)
    parser.add_argument("--renders", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--samples", type=int, default=40000)
    args = parser.parse_args()
    heads = load_ict(args.ict)
    where = np.load(Path(__file__).parent / "assets/ict_landmarks478.npz")
    corner, bary = heads.faces[where["face"]], where["bary"][..., None]
    neutral = (heads.neutral[corner] * bary).sum(1)
    identity = (heads.identity[:, corner] * bary).sum(2).reshape(len(heads.identity), -1)
    expression = (heads.expression[:, corner] * bary).sum(2).reshape(len(heads.expression), -1)
    place = lambda w, e: neutral + (w @ identity + e @ expression).reshape(-1, 478, 3)  # noqa: E731

    seen = {k: v.numpy() for k, v in read_samples(Path(args.renders), "landmarks").items()}
    clean = project(place(seen["w"], seen["e"]), seen["K"], seen["R"], seen["t"])
    turn, radius = face_frame(clean)
    errors = seen["landmarks"] - clean
    errors[..., 2] -= errors[..., 2].mean(1, keepdims=True)
    errors[..., :2] = errors[..., :2] @ turn.swapaxes(-1, -2)
    errors /= radius[:, None, None]
    good = np.median(np.linalg.norm(errors[..., :2], axis=-1), axis=1) < 0.15
    errors = errors[good]
    median = np.median(np.linalg.norm(errors[..., :2], axis=-1))
    print(f"{len(errors)} error samples; median {median:.4f} of the RMS radius")

    landmarker = FaceLandmarker.from_pretrained()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for k in track(range(-(-args.samples // A_SHARD)), description="shards"):
        path = out / f"projected_{k:06d}.npz"
        if path.exists():
            continue
        rng = np.random.default_rng([k, 4780])
        w = sample_identity(rng, A_SHARD)
        e = sample_expression(rng, A_SHARD, heads.expression_names)
        views = [
            random_view(rng, size=256, yaw=50 if rng.random() < 0.4 else 25, pitch=20, roll=15) for _ in range(A_SHARD)
        ]
        K, R, t = (np.stack([getattr(v, a) for v in views]).astype(np.float32) for a in ("K", "R", "t"))
        landmarks = project(place(w, e), K, R, t)
        turn, radius = face_frame(landmarks)
        noise = errors[rng.integers(len(errors), size=A_SHARD)] * rng.uniform(0.3, 1.2, (A_SHARD, 1, 1))
        noise[..., :2] = noise[..., :2] @ turn
        landmarks = (landmarks + noise * radius[:, None, None]).astype(np.float32)
        with torch.inference_mode():
            parts = torch.from_numpy(landmarks[..., :2]).split(64)
            scores = torch.cat([landmarker.blendshape_net(p) for p in parts]).numpy()
        presence = np.ones(A_SHARD, np.float32)
        np.savez(path, w=w, e=e, K=K, R=R, t=t, landmarks=landmarks, blendshapes=scores, presence=presence)


if __name__ == "__main__":
    main()
