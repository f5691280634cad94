"""Find where the landmark network's 478 points lie on ICT-FaceKit: detect them on renders and look where they fall.

Most points stay at one place of the skin: the median of their hits. Points of the face's outline slide along the
silhouette with the view (hits spread by centimetres); they get the vertex whose projections lie nearest to the
detections over all views.

    python training/calibrate_landmarks.py --ict FOLDER [--renders 200] [--out training/assets/ict_landmarks478.npz]

Writes ``face`` [478] and ``bary`` [478, 3] on the surface of ``nphm_track.training.ict`` and the spread of the
detections in mm.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import igl
import numpy as np
from rich.progress import track
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.faces.roi import roi_from_landmarks
from nphm_track.training.ict import load_ict, sample_identity
from nphm_track.training.paint import paint, random_view, render

SLIDING_MM = 2.5
"""Median distance of the hits beyond which a point counts as sliding."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ict", required=True)
    parser.add_argument("--renders", type=int, default=200)
    parser.add_argument("--out", default="training/assets/ict_landmarks478.npz")
    parser.add_argument("--picture", help="write one render with its landmarks here")
    args = parser.parse_args()
    heads = load_ict(args.ict)
    rigid = json.loads((Path(args.ict) / "vertex_indices.json").read_text())["idx_to_landmark_verts"]
    landmarks68 = np.searchsorted(heads.source, rigid)
    landmarker = FaceLandmarker.from_pretrained()
    rng = np.random.default_rng(478)
    hits: list[list[np.ndarray]] = [[] for _ in range(478)]
    reprojection = np.zeros((478, len(heads.neutral)), np.float32)
    for k in track(range(args.renders)):
        vertices = heads.vertices(sample_identity(rng, 1)[0] * 0.8)
        view = random_view(rng)
        image, fragments = render(heads, vertices, paint(heads, landmarks68, rng), view, rng)
        pixels = (vertices @ view.R.T + view.t) @ view.K.T
        pixels = (pixels[:, :2] / pixels[:, 2:]).astype(np.float32)
        box = pixels[landmarks68]
        centre, side = (box.min(0) + box.max(0)) / 2, np.ptp(box, axis=0).max() * 1.8
        roi = np.array([[*centre, side, side, 0]])
        seen = landmarker.observe(image, roi)[0]
        seen = landmarker.observe(image, roi_from_landmarks(seen.landmarks)[None])[0]
        if seen.presence < 0.9:
            continue
        if k == 0 and args.picture:
            _picture(args.picture, image, seen.landmarks)
        unit = np.linalg.norm(pixels[landmarks68[36]] - pixels[landmarks68[45]])
        reprojection += np.minimum(cdist(seen.landmarks[:, :2], pixels) / unit, 0.2)
        at = np.floor(seen.landmarks[:, :2]).astype(int).clip(0, view.size[0] - 1)
        face, bary = fragments.face_id[at[:, 1], at[:, 0]], fragments.bary[at[:, 1], at[:, 0]]
        normal = _normals(vertices, heads.faces)[face] @ view.R.T
        for i in np.flatnonzero((face >= 0) & (normal[:, 2] < -0.35)):
            if heads.is_pocket[heads.faces[face[i]]].any():
                continue
            hits[i].append((heads.neutral[heads.faces[face[i]]] * bary[i][:, None]).sum(0))
    points = np.array([np.median(h, axis=0) if len(h) > 5 else np.full(3, np.nan) for h in hits])
    print("landmarks without hits:", np.flatnonzero(np.isnan(points[:, 0])))
    spread = np.full(len(hits), np.nan)
    for i, h in enumerate(hits):
        if h:
            spread[i] = 1000 * np.median(np.linalg.norm(np.array(h) - points[i], axis=1))
    sliding = ~(spread < SLIDING_MM)
    skin = np.isin(np.arange(len(heads.neutral)), heads.faces) & ~heads.is_pocket & ~heads.is_eye
    points[sliding] = heads.neutral[np.where(skin, reprojection[sliding], np.inf).argmin(1)]
    print("sliding points:", int(sliding.sum()))
    points = _symmetric(points)
    neutral = heads.neutral.astype(float)
    _, face, closest = igl.point_mesh_squared_distance(points, neutral, heads.faces.astype(np.int64))
    corners = neutral[heads.faces[face]]
    bary = igl.barycentric_coordinates(closest, *(np.ascontiguousarray(corners[:, i]) for i in range(3)))
    np.savez(args.out, face=face.astype(np.int32), bary=bary.astype(np.float32), spread_mm=spread.astype(np.float32))
    print(f"spread mm: median {np.nanmedian(spread):.2f}, 90 % {np.nanquantile(spread, 0.9):.2f}")


def _normals(v: np.ndarray, f: np.ndarray) -> np.ndarray:
    n = np.cross(v[f[:, 1]] - v[f[:, 0]], v[f[:, 2]] - v[f[:, 0]])
    return n / np.linalg.norm(n, axis=1, keepdims=True).clip(1e-12)


def _symmetric(points: np.ndarray) -> np.ndarray:
    """Average each point with its mirror twin; pairs are mutual nearest neighbours under reflection."""
    mirrored = points * [-1, 1, 1]
    distance, twin = cKDTree(points).query(mirrored)
    mutual = twin[twin] == np.arange(len(points))
    out = points.copy()
    good = mutual & (distance < 0.006)
    out[good] = (points[good] + mirrored[twin[good]]) / 2
    print("symmetric pairs:", int(good.sum()), "of", len(points))
    return out


def _picture(path: str, image: np.ndarray, landmarks: np.ndarray) -> None:
    from PIL import Image, ImageDraw

    big = Image.fromarray(image).resize((960, 960))
    draw = ImageDraw.Draw(big)
    for x, y in landmarks[:, :2] * 3:
        draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=(0, 255, 0))
    big.save(path)


if __name__ == "__main__":
    main()
