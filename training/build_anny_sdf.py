"""Build shards of exact signed distances for the head model from Anny's heads; resumable, a file per 100 heads.

    python training/build_anny_sdf.py --ict FOLDER --out SHARDS [--heads 600] [--seed 0]
    python training/build_anny_sdf.py --ict FOLDER --calibrate      # writes training/assets/anny_points.npz

A shard has the fields of training/build_head_sdf.py. ``w`` [100, 128] holds ICT's 100 weights (zero), 1, and 27 of
Anny; ``e`` the weights of ICT's expressions that move the landmarks most like Anny's actions. There are also the 65
``anchors`` and 478 ``landmarks`` of the neutral head, and ``canonical_corr``/``posed_corr``, the same points on (and
within 2 mm of) the neutral and the posed surface. The principal basis is kept in the folder of ``--cache``.
Seeds below 900000 are for training; 900000 and above are held out for evaluation.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from build_head_sdf import HEADS_A_SHARD, sample_points
from numpy.typing import NDArray
from rich.progress import track

from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.faces.roi import roi_from_landmarks
from nphm_track.kd_tree import kd_tree
from nphm_track.rigid import fit_similarity
from nphm_track.training import anny
from nphm_track.training.ict import (
    NECK_LEVEL,
    IctHeads,
    anchor_vertices,
    load_ict,
    sample_expression,
    signed_distance,
)
from nphm_track.training.paint import paint, random_view, render
from nphm_track.training.registration import on_surface, register

POINTS = Path(__file__).parent / "assets" / "anny_points.npz"
ICT_LANDMARKS = Path(__file__).parent / "assets" / "ict_landmarks478.npz"
BASIS_SEED = 700000
"""Heads of the basis; no shard is drawn with it."""
AMPLITUDE = 0.6
"""Part of the sampled expression that is used: Anny's actions are artist-made."""
CORRESPONDENCES = 1024
ICT_WEIGHTS = 100
LIDS = ("eyeBlink", "eyeSquint", "eyeLookDown", "cheekRaiser")
SLIDING_MM = 2.5
"""Spread of the detections beyond which a landmark counts as sliding along the silhouette."""


def calibrate(folder: str, renders: int, picture: str | None) -> None:
    """Find ICT's anchors and landmarks on Anny's mean head.

    Landmarks detected on renders guide a registration of ICT's mean head, which then carries all named points. Writes
    ``face``/``bary`` of the landmarks, ``anchor_face``/``anchor_bary``, and ``steady``: the landmarks of the rigid fit.
    """
    ict = load_ict(folder)
    source = anny.load_source(ict.expression_names)
    heads = anny.draw(source, np.random.default_rng(BASIS_SEED), anny.DRAWN)
    mean = anny.mean_head(source, heads)
    known = np.load(ICT_LANDMARKS)
    places = surface_points(ict.neutral, ict.faces, known["face"], known["bary"]).astype(float)
    mean += ict.neutral[ict.is_eye].mean(0) - mean[source.is_eye].mean(0)
    fixed = anny.face_vertices(source, mean)
    heads = anny.align(heads, mean, fixed)
    eye = ict.is_eye[ict.faces[known["face"]]].any(1)
    steady = (known["spread_mm"] < SLIDING_MM) & ~eye
    target, warped = source.as_heads(mean), ict.neutral.astype(float)
    for count in (renders // 2, renders):  # first with roughly placed paint, then with paint carried over
        points, spread = detect(ict, target, heads, warped, folder, count, picture)
        use = steady & (spread < SLIDING_MM) & np.isfinite(points).all(1)
        motion = fit_similarity(points[use], places[use], scaled=False)
        mean, points = motion(mean), motion(points)
        heads = heads @ motion.R.T.astype(np.float32) + motion.t.astype(np.float32)
        target = source.as_heads(mean)
        warped = register(ict, target, known["face"][use], known["bary"][use], points[use])
    places_seen = points[use] - points[use].mean(0), places[use] - places[use].mean(0)
    residual = 1000 * np.linalg.norm(places_seen[0] - places_seen[1], axis=1).mean()
    size = np.sqrt((places_seen[0] ** 2).sum() / (places_seen[1] ** 2).sum())
    print(f"steady landmarks {use.sum()}, spread mm {np.median(spread[use]):.2f}, Anny's face is {size:.3f} of ICT's")
    print(f"rigid residual mm {residual:.2f}")
    face, bary = on_surface(target, surface_points(warped, ict.faces, known["face"], known["bary"]), eye)
    lifted = surface_points(mean, target.faces, face, bary)
    print(f"carried to detected mm {1000 * np.median(np.linalg.norm(lifted - points, axis=1)[use]):.2f}")
    anchors = warped[anchor_vertices(ict, folder)]
    anchor_face, anchor_bary = on_surface(target, anchors, np.zeros(len(anchors), bool))
    partial = POINTS.with_suffix(".partial.npz")
    np.savez(partial, face=face, bary=bary, anchor_face=anchor_face, anchor_bary=anchor_bary, steady=use)
    os.replace(partial, POINTS)


def detect(
    ict: IctHeads,
    target: IctHeads,
    heads: NDArray[np.float32],
    warped: NDArray[np.float64],
    folder: str,
    renders: int,
    picture: str | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Landmarks [478, 3] seen on the target's mean and their spread [478] in mm (median over renders of its heads).

    The target is painted like the ICT head whose vertices lie at ``warped``.
    """
    rigid68 = json.loads((Path(folder) / "vertex_indices.json").read_text())["idx_to_landmark_verts"]
    landmarks68 = np.searchsorted(ict.source, rigid68)
    skin = np.flatnonzero(~ict.is_eye & ~ict.is_pocket)
    nearest = np.zeros(len(target.neutral), int)
    for own, theirs in ((~target.is_eye, skin), (target.is_eye, np.flatnonzero(ict.is_eye))):
        nearest[own] = theirs[kd_tree(warped[theirs]).query(target.neutral[own])[1]]
    landmarker = FaceLandmarker.from_pretrained()
    rng = np.random.default_rng(478)
    hits: list[list[NDArray]] = [[] for _ in range(478)]
    for k in track(range(renders), description="renders"):
        vertices = heads[k] if k % 2 else target.neutral
        colour = paint(ict, landmarks68, rng)[nearest]
        colour[target.is_pocket] = [0.15, 0.05, 0.05]
        view = random_view(rng)
        image, fragments = render(target, vertices, colour, view, rng)
        box = (warped[landmarks68] @ view.R.T + view.t) @ view.K.T
        box = box[:, :2] / box[:, 2:]
        centre, side = (box.min(0) + box.max(0)) / 2, np.ptp(box, axis=0).max() * 1.8
        seen = landmarker.observe(image, np.array([[*centre, side, side, 0]]))[0]
        seen = landmarker.observe(image, roi_from_landmarks(seen.landmarks)[None])[0]
        if k == 0 and picture:
            _picture(picture, image, seen.landmarks)
        if seen.presence < 0.9:
            continue
        at = np.floor(seen.landmarks[:, :2]).astype(int).clip(0, view.size[0] - 1)
        face, bary = fragments.face_id[at[:, 1], at[:, 0]], fragments.bary[at[:, 1], at[:, 0]]
        for i in np.flatnonzero(face >= 0):
            if not target.is_pocket[target.faces[face[i]]].any():
                hits[i].append((target.neutral[target.faces[face[i]]] * bary[i][:, None]).sum(0))
    points = np.array([np.median(h, axis=0) if len(h) > 5 else np.full(3, np.nan) for h in hits])
    spread = np.array(
        [np.median(np.linalg.norm(h - p, axis=1)) if len(h) > 5 else np.nan for h, p in zip(hits, points, strict=True)]
    )
    return points, 1000 * spread


def _picture(path: str, image: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> None:
    from PIL import Image, ImageDraw

    big = Image.fromarray(image).resize((960, 960))
    draw = ImageDraw.Draw(big)
    for x, y in landmarks[:, :2] * 3:
        draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=(0, 255, 0))
    big.save(path)


def load_basis(folder: str, cache: Path) -> anny.AnnyBasis:
    """The principal basis in head space, from the cache or computed from ``anny.DRAWN`` heads (half a minute)."""
    path = cache / "anny_basis.npz"
    if path.exists():
        return anny.AnnyBasis.load(path)
    ict, known, points = load_ict(folder), np.load(ICT_LANDMARKS), np.load(POINTS)
    source = anny.load_source(ict.expression_names)
    heads = anny.draw(source, np.random.default_rng(BASIS_SEED), anny.DRAWN)
    mean = anny.mean_head(source, heads)
    steady = points["steady"]
    motion = fit_similarity(
        surface_points(mean, source.faces, points["face"], points["bary"])[steady],
        surface_points(ict.neutral, ict.faces, known["face"], known["bary"])[steady],
        scaled=False,
    )
    moved = [surface_points(a, source.faces, points["face"], points["bary"]) for a in source.expression]
    like = [surface_points(a, ict.faces, known["face"], known["bary"]) for a in ict.expression]
    gain = anny.action_gain(np.stack(moved), np.stack(like))
    basis, explained = anny.principal_basis(source, heads, motion(mean), gain)
    print(f"{anny.COMPONENTS} components explain {100 * explained:.1f} % of the weighted variance")
    cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    basis.save(partial)
    os.replace(partial, path)
    return basis


def surface_points(
    vertices: NDArray[np.floating], faces: NDArray[np.integer], face: NDArray[np.integer], bary: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Points [N, 3] at (``face`` [N], ``bary`` [N, 3])."""
    return (vertices[faces[face]] * bary[..., None]).sum(1)


def correspondences(
    rng: np.random.Generator, heads: IctHeads, neutral: NDArray[np.float32], posed: NDArray[np.float32], action: NDArray
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The same points [N, 3] of the neutral and of the posed head, up to 2 mm off the surface, more on the face.

    Eyeball points of an eye whose lid moves are left out: the lid may lie over them.
    """
    weight = correspondence_weight(heads)
    for side, sign in (("_L", 1), ("_R", -1)):
        lids = [i for i, n in enumerate(heads.expression_names) if n.startswith(LIDS) and n.endswith(side)]
        if action[lids].sum() > 0.1:
            own = heads.is_eye[heads.faces].any(1) & (np.sign(heads.neutral[heads.faces, 0].mean(1)) == sign)
            weight = np.where(own, 0, weight)
    face = rng.choice(len(weight), CORRESPONDENCES, p=weight / weight.sum())
    bary = rng.dirichlet([1, 1, 1], CORRESPONDENCES)
    height = np.clip(rng.normal(0, 0.001, (CORRESPONDENCES, 1)), -0.002, 0.002)
    out = []
    for vertices in (neutral, posed):
        corners = vertices[heads.faces[face]]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normal /= np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-12)
        out.append((surface_points(vertices, heads.faces, face, bary) + height * normal).astype(np.float32))
    return out[0], out[1]


def correspondence_weight(heads: IctHeads) -> NDArray[np.float64]:
    """Sampling weight [F] of the faces: area, more on the face, most at lids and lips; none below the neck."""
    corners = heads.neutral[heads.faces].astype(float)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    centre = corners.mean(1)
    pocket = heads.is_pocket[heads.faces].all(1)
    in_face = (centre[:, 2] > -0.01) & ~pocket
    fine = in_face & (
        (np.linalg.norm(centre - [0, -0.033, 0.045], axis=1) < 0.035)
        | (np.abs(centre - [0, 0.035, 0.03]) < [0.055, 0.02, 0.04]).all(1)
    )
    lid = in_face & (np.abs(np.abs(centre) - [0.0315, 0.035, 0.03]) < [0.018, 0.014, 0.02]).all(1)
    factor = np.where(lid, 60.0, np.where(fine, 12.0, np.where(in_face, 4.0, np.where(pocket, 0.7, 1.0))))
    return area * factor * (centre[:, 1] > NECK_LEVEL)


def build_shard(
    basis: anny.AnnyBasis, source: anny.AnnySource, seed: int, n_neutral: int, n_posed: int
) -> dict[str, Any]:
    """One shard of ``HEADS_A_SHARD`` heads drawn with ``seed``."""
    heads, points = basis.heads, np.load(POINTS)
    rng = np.random.default_rng([seed, 128])
    drawn = anny.draw(source, rng, HEADS_A_SHARD)
    code = basis.weights(anny.align(drawn, heads.neutral, anny.face_vertices(source, heads.neutral))).clip(-3, 3)
    action = AMPLITUDE * sample_expression(rng, HEADS_A_SHARD, heads.expression_names)
    out: dict[str, list[NDArray]] = {}

    def put(name: str, value: NDArray, kind: type = np.float16) -> None:
        out.setdefault(name, []).append(value.astype(kind))

    for k in range(HEADS_A_SHARD):
        shapes = {"neutral": heads.vertices(code[k]), "posed": heads.vertices(code[k], action[k])}
        for name, count in (("neutral", n_neutral), ("posed", n_posed)):
            near = sample_points(rng, heads, shapes[name], count)
            put(name + "_points", near)
            put(name + "_sdf", signed_distance(heads, shapes[name], near))
        neutral = shapes["neutral"]
        put("anchors", surface_points(neutral, heads.faces, points["anchor_face"], points["anchor_bary"]), np.float32)
        put("landmarks", surface_points(neutral, heads.faces, points["face"], points["bary"]), np.float32)
        canonical, posed = correspondences(rng, heads, neutral, shapes["posed"], action[k])
        put("canonical_corr", canonical)
        put("posed_corr", posed)
    w = np.zeros((HEADS_A_SHARD, ICT_WEIGHTS + 1 + anny.COMPONENTS), np.float32)
    w[:, ICT_WEIGHTS], w[:, ICT_WEIGHTS + 1 :] = 1, code
    return {"w": w, "e": (action * basis.gain).astype(np.float32), **{k: np.stack(v) for k, v in out.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ict", required=True, help="folder with ict_facekit_light_full.npz")
    parser.add_argument("--out", help="folder of the shards")
    parser.add_argument("--heads", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--neutral-points", type=int, default=8192)
    parser.add_argument("--posed-points", type=int, default=4096)
    parser.add_argument("--cache", type=Path, default=Path("data/anny_cache"), help="folder of the principal basis")
    parser.add_argument("--calibrate", action="store_true", help="find anchors and landmarks on Anny instead")
    parser.add_argument("--picture", help="with --calibrate: write one render with its landmarks here")
    args = parser.parse_args()
    if args.calibrate:
        calibrate(args.ict, 160, args.picture)
        (args.cache / "anny_basis.npz").unlink(missing_ok=True)
        return
    if not args.out:
        parser.error("--out is needed")
    basis = load_basis(args.ict, args.cache)
    source = anny.load_source(basis.heads.expression_names)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for k in track(range(-(-args.heads // HEADS_A_SHARD)), description="shards"):
        path = out / f"anny_{args.seed + k:06d}.npz"
        if path.exists():
            continue
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **build_shard(basis, source, args.seed + k, args.neutral_points, args.posed_points))
        os.replace(partial, path)


if __name__ == "__main__":
    main()
