"""Find where the landmark network's 478 points lie on ICT-FaceKit: detect them on renders and look where they fall.

Most points stay at one place of the skin: the median of their hits. Points of the face's outline slide along the
silhouette with the view (hits spread by centimetres); they get the vertex whose projections lie nearest to the
detections over all views. A closed mouth does not tell which lip a point is on, nor an eye that stays open whether it
is on the lid: points of lips and lids are looked for on open mouths and closing eyes, and where they fall between lips
or on the eyeball the nearest skin counts.

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
from numpy.typing import NDArray
from rich.progress import track
from scipy.ndimage import distance_transform_edt
from scipy.spatial.distance import cdist

from nphm_track.conventions import LIDS, LIPS
from nphm_track.faces.landmarker import FaceLandmarker, FaceObservation
from nphm_track.faces.roi import roi_from_landmarks
from nphm_track.kd_tree import kd_tree
from nphm_track.rendering.rasteriser import Fragments
from nphm_track.training.ict import IctHeads, load_ict, sample_identity
from nphm_track.training.paint import View, paint, random_view, render

SLIDING_MM = 2.5
"""Median distance of the hits beyond which a point counts as sliding."""
SNAP = 0.1
"""Distances between the outer eye corners within which a point off the skin belongs to the nearest skin."""
Hits = dict[int, list[tuple[int, NDArray[np.float32]]]]
"""For each landmark the faces that it fell on and the places [3] there on the neutral head."""


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
    hits: Hits = {i: [] for i in range(478)}
    reprojection = np.zeros((478, len(heads.neutral)), np.float32)
    for k in track(range(2 * args.renders), description="renders"):
        still = k < args.renders
        w = sample_identity(rng, 1)[0] * 0.8
        vertices = heads.vertices(w) if still else heads.vertices(w, opened(rng, heads.expression_names))
        view = random_view(rng)
        image, fragments = render(heads, vertices, paint(heads, landmarks68, rng), view, rng)
        pixels = _pixels(vertices, view)
        seen = _observe(landmarker, image, pixels[landmarks68])
        if seen.presence < 0.9:
            continue
        if k == 0 and args.picture:
            _picture(args.picture, image, seen.landmarks)
        unit = float(np.linalg.norm(pixels[landmarks68[36]] - pixels[landmarks68[45]]))
        if still:
            reprojection += np.minimum(cdist(seen.landmarks[:, :2], pixels) / unit, 0.2)
            points = [i for i in range(478) if i not in MOVING]
            _look(hits, points, heads, vertices @ view.R.T, fragments, seen.landmarks, 0.0)
        else:
            _look(hits, sorted(MOVING), heads, vertices @ view.R.T, fragments, seen.landmarks, SNAP * unit)

    points, spread = _middles(hits)
    sliding = ~(spread < SLIDING_MM)
    sliding[sorted(MOVING)] = False
    skin = np.isin(np.arange(len(heads.neutral)), heads.faces) & ~heads.is_pocket & ~heads.is_eye
    points[sliding] = heads.neutral[np.where(skin, reprojection[sliding], np.inf).argmin(1)]
    print("sliding points:", int(sliding.sum()))
    points = _symmetric(points)
    face, bary = _on_surface(heads, points, np.arange(len(heads.faces)))
    mirrored = _mirrored_faces(heads)
    for i, twin in MOVING.items():  # on the lip or lid that it fell on, however near the other one lies
        own = np.array(sorted({f for f, _ in hits[i]} | {int(mirrored[f]) for f, _ in hits[twin]}))
        middle = (_middle(hits[i]) + _middle(hits[twin]) * [-1, 1, 1]) / 2
        face[i], bary[i] = (x[0] for x in _on_surface(heads, middle[None], own))
    np.savez(args.out, face=face.astype(np.int32), bary=bary.astype(np.float32), spread_mm=spread.astype(np.float32))
    print(f"spread mm: median {np.nanmedian(spread):.2f}, 90 % {np.nanquantile(spread, 0.9):.2f}")


def twins() -> dict[int, int]:
    """The landmark on the other side of the face for each one of lids and lips."""
    lids, rim = len(LIDS) // 2, len(LIPS) // 2
    out = dict(zip(LIDS, LIDS[lids:] + LIDS[:lids], strict=True))
    for ring in (LIPS[:rim], LIPS[rim:]):  # from corner to corner and back
        out |= {p: ring[(rim // 2 - k) % rim] for k, p in enumerate(ring)}
    return out


MOVING = twins()
"""Points of lips and lids, each with the one on the other side."""


def opened(rng: np.random.Generator, names: tuple[str, ...]) -> NDArray[np.float32]:
    """Expression weights [E]: an open mouth, and in half of the faces eyes that close."""
    e = np.zeros(len(names), np.float32)
    e[names.index("jawOpen")] = rng.uniform(0.2, 0.8)
    e[[names.index("eyeBlink_L"), names.index("eyeBlink_R")]] = rng.uniform(0, 1) * (rng.random() < 0.5)
    for name in ("mouthSmile", "mouthFrown", "mouthLowerDown", "mouthUpperUp"):
        e[[names.index(name + "_L"), names.index(name + "_R")]] = rng.uniform(0, 0.8) * (rng.random() < 0.25)
    e[names.index("mouthPucker")] = rng.uniform(0, 0.8) * (rng.random() < 0.25)
    return e


def _pixels(vertices: np.ndarray, view: View) -> NDArray[np.float32]:
    pixels = (vertices @ view.R.T + view.t) @ view.K.T
    return (pixels[:, :2] / pixels[:, 2:]).astype(np.float32)


def _observe(landmarker: FaceLandmarker, image: NDArray[np.uint8], around: NDArray[np.float32]) -> FaceObservation:
    """The face at pixels ``around`` [N, 2], looked at twice as in a clip's second frame."""
    centre, side = (around.min(0) + around.max(0)) / 2, np.ptp(around, axis=0).max() * 1.8
    seen = landmarker.observe(image, np.array([[*centre, side, side, 0]]))[0]
    return landmarker.observe(image, roi_from_landmarks(seen.landmarks)[None])[0]


def _look(
    hits: Hits, points: list[int], heads: IctHeads, turned: np.ndarray, fragments: Fragments, landmarks: np.ndarray,
    snap: float,
) -> None:  # fmt: skip
    """Note where on the neutral head each of ``points`` falls. With ``snap`` only skin counts, and a point beside it
    falls on the nearest within so many pixels."""
    height, width = fragments.face_id.shape
    x, y = np.floor(landmarks[points, :2]).astype(int).clip(0, [width - 1, height - 1]).T
    near = np.ones(len(points), bool)
    if snap:
        bare = heads.is_pocket | heads.is_eye
        shown = (fragments.face_id >= 0) & ~bare[heads.faces[fragments.face_id]].any(-1)
        away, (row, column) = distance_transform_edt(~shown, return_indices=True)
        near, (x, y) = away[y, x] < snap, (column[y, x], row[y, x])
    face, bary = fragments.face_id[y, x], fragments.bary[y, x]
    corners = turned[heads.faces[face]]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    facing = normal[:, 2] < (-0.35 if not snap else 0) * np.linalg.norm(normal, axis=1)
    use = near & (face >= 0) & facing & ~heads.is_pocket[heads.faces[face]].any(1)
    for k in np.flatnonzero(use):
        place = (heads.neutral[heads.faces[face[k]]] * bary[k][:, None]).sum(0)
        hits[points[k]].append((int(face[k]), place))


def _middle(hits: list[tuple[int, NDArray[np.float32]]]) -> NDArray[np.float32]:
    """Median place [3] of hits, NaN of less than six."""
    return np.median([p for _, p in hits], axis=0) if len(hits) > 5 else np.full(3, np.nan)


def _middles(hits: Hits) -> tuple[np.ndarray, np.ndarray]:
    """Median place [478, 3] of every landmark, and the median distance [478] of its hits from there in mm."""
    points = np.array([_middle(h) for h in hits.values()])
    print("landmarks without hits:", np.flatnonzero(np.isnan(points[:, 0])))
    spread = np.full(len(points), np.nan)
    for i, h in hits.items():
        if h:
            spread[i] = 1000 * np.median(np.linalg.norm([p - points[i] for _, p in h], axis=1))
    return points, spread


def _symmetric(points: np.ndarray) -> np.ndarray:
    """Average each point with its mirror twin; pairs are mutual nearest neighbours under reflection."""
    mirrored = points * [-1, 1, 1]
    distance, twin = kd_tree(points).query(mirrored)
    mutual = twin[twin] == np.arange(len(points))
    out = points.copy()
    good = mutual & (distance < 0.006)
    out[good] = (points[good] + mirrored[twin[good]]) / 2
    print("symmetric pairs:", int(good.sum()), "of", len(points))
    return out


def _mirrored_faces(heads: IctHeads) -> NDArray[np.int64]:
    """The face nearest to the mirror image of each face."""
    centre = heads.neutral[heads.faces].mean(1)
    return kd_tree(centre).query(centre * [-1, 1, 1])[1]


def _on_surface(
    heads: IctHeads, points: np.ndarray, rows: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Of the faces ``rows`` those nearest to points [N, 3], and barycentric coordinates there."""
    neutral, faces = heads.neutral.astype(float), heads.faces[rows].astype(np.int64)
    _, face, closest = igl.point_mesh_squared_distance(np.asarray(points, float), neutral, faces)
    face, closest = np.atleast_1d(face), closest.reshape(-1, 3)
    corners = neutral[faces[face]]
    bary = igl.barycentric_coordinates(closest, *(np.ascontiguousarray(corners[:, i]) for i in range(3)))
    return rows[face], bary.reshape(-1, 3)


def _picture(path: str, image: np.ndarray, landmarks: np.ndarray) -> None:
    from PIL import Image, ImageDraw

    big = Image.fromarray(image).resize((960, 960))
    draw = ImageDraw.Draw(big)
    for x, y in landmarks[:, :2] * 3:
        draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=(0, 255, 0))
    big.save(path)


if __name__ == "__main__":
    main()
