"""Normals and point maps on renders of real scans: E_n and E_p against the landmark mesh they start from.

python benchmarks/geometry.py --scan-error FOLDER --out FOLDER [--model geometry] [--cases lps fran]

FOLDER holds cases.json and the scans. Where head space lies in a scan is a convention: each method gets the one
rotation (normals) or similarity (points) a scan that suits it best over all five views. Only pixels of the face that
both methods know count. Writes geometry.json, geometry.md and a picture a case.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from PIL import Image
from report import machine, machine_line, save, table
from scipy.spatial import cKDTree

from nphm_track._runtime import prepare_torch
from nphm_track.cameras.pnp import solve_pnp
from nphm_track.evaluation.alignment import Similarity, fit_points
from nphm_track.evaluation.scan import NAMES7, Scan
from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.geometry.networks import DENSE, GeometryNet
from nphm_track.geometry.predict import GeometryPredictor
from nphm_track.rendering.rasteriser import interpolate, rasterise, vertex_normals
from nphm_track.training.face_stream import roi_cameras
from nphm_track.training.paint import View

METHODS = ("network", "landmark mesh")


def roi_camera(view: View, roi: NDArray[np.floating], size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intrinsics and image-plane roll [3, 3] of the map of ``size`` px seen through a roi [5]."""
    K, turn = roi_cameras(torch.from_numpy(view.K)[None], torch.from_numpy(roi.astype(float))[None], size)
    return K[0].numpy(), turn[0].numpy()


def truth(
    mesh: trimesh.Trimesh, in_face: NDArray[np.bool_], view: View, roi: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The scan's points, unit normals and face mask [128, 128, 7] in its own frame, through the roi."""
    K, turn = roi_camera(view, roi.astype(float), DENSE)
    camera = mesh.vertices @ (turn @ view.R).T + turn @ view.t
    fragments = rasterise(camera, mesh.faces, K, (DENSE, DENSE))
    normals = vertex_normals(mesh.vertices, mesh.faces)
    away = (normals * (mesh.vertices + view.R.T @ view.t)).sum(1) > 0  # scans come with either winding
    normals = np.where(away[:, None], -normals, normals)
    attributes = np.concatenate([mesh.vertices, normals, in_face[:, None]], 1)
    out = interpolate(fragments, mesh.faces, attributes.astype(np.float32))
    out[..., 3:6] /= np.maximum(np.linalg.norm(out[..., 3:6], axis=-1, keepdims=True), 1e-6)
    return out


def best_rotation(source: NDArray[np.floating], target: NDArray[np.floating]) -> NDArray[np.floating]:
    """R [3, 3] with R source ~ target for unit vectors [N, 3]."""
    u, _, vt = np.linalg.svd(target.T @ source)
    return u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt


def measure_case(predictor: GeometryPredictor, folder: Path, case: dict[str, Any], picture: Path) -> dict[str, Any]:
    mesh = trimesh.load_mesh(folder / case["gt"], process=False)
    scan = Scan(mesh.vertices, mesh.faces, [case["points7"][n] for n in NAMES7], case["nose_tip"])
    in_face = cKDTree(scan.points).query(mesh.vertices)[0] < 1e-6
    seen, tiles = [], []
    for spec in case["views"]:
        image = np.asarray(Image.open(folder / spec["img"]).convert("RGB"))
        K = np.array(spec["K"], float)
        K[:2, 2] += 0.5  # the cases count pixel centres from 0
        view = View(K, np.array(spec["R"], float), np.array(spec["t"], float).ravel(), (image.shape[1], image.shape[0]))
        faces = predictor.landmarker.find(image)
        if not faces:
            continue
        face = predictor.landmarker.observe(image, faces[0].next_roi[None])[0]
        maps = predictor.maps([image], [face])
        lm = predictor.landmark_mesh([face])[0].transpose(1, 2, 0)
        gt = truth(mesh, in_face, view, face.next_roi)
        predicted = {
            "network": (maps.normals[0].numpy(), maps.points[0].numpy()),
            "landmark mesh": (lm[..., 3:6], lm[..., :3] / 10),
        }
        on = (gt[..., 6] > 0.99) & (lm[..., 6] > 0.5)
        seen.append((spec["id"], view, face.next_roi, gt, predicted, on, maps.point_confidence[0].numpy()))
        crop = _crop(image, face.next_roi)
        tiles.append(
            np.concatenate(
                [crop, *(_colours(n) for n in (gt[..., 3:6], predicted["landmark mesh"][0], predicted["network"][0]))],
                0,
            )
        )
    Image.fromarray(np.concatenate(tiles, 1)).save(picture)
    out: dict[str, Any] = {}
    for method in METHODS:
        rotation = best_rotation(
            *(
                np.concatenate(x)
                for x in zip(*((p[method][0][on], gt[..., 3:6][on]) for _, _, _, gt, p, on, _ in seen), strict=True)
            )
        )
        place = fit_points(
            *(
                np.concatenate(x).astype(float)
                for x in zip(*((p[method][1][on], gt[..., :3][on]) for _, _, _, gt, p, on, _ in seen), strict=True)
            ),
            scaled=True,
        )
        for name, view, roi, gt, p, on, sure in seen:
            cosine = ((p[method][0][on] @ rotation.T) * gt[..., 3:6][on]).sum(-1)
            distance = np.linalg.norm(place(p[method][1][on].astype(float)) - gt[..., :3][on], axis=-1)
            row = {
                "normal_deg": float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean()),
                "point_mm": float(np.median(distance) * 1000),
            }
            if method == "network":
                row |= pose_error(p[method][1], sure, view, roi, place)
            out[f"{method} {name}"] = row
    return out


def pose_error(
    points: NDArray[np.float32], sure: NDArray[np.float32], view: View, roi: NDArray[np.float32], place: Similarity
) -> dict[str, float]:
    """Angle (degrees) and distance error (%) of the pose that PnP finds from the point map alone."""
    K, turn = roi_camera(view, roi.astype(float), DENSE)
    pixels = np.stack(np.meshgrid(np.arange(DENSE) + 0.5, np.arange(DENSE) + 0.5), -1)
    on = sure > 0.3
    head = place(points[on].astype(float))  # in the scan's frame: its pose is known
    pose = solve_pnp(
        torch.from_numpy(head), torch.from_numpy(pixels[on]), torch.from_numpy(K), torch.from_numpy(sure[on]).double()
    )
    R, t = pose.R.numpy(), pose.t.numpy()
    true_R, true_t = turn @ view.R, turn @ view.t
    angle = np.degrees(np.arccos(np.clip((np.trace(R @ true_R.T) - 1) / 2, -1, 1)))
    centre = head.mean(0)
    found, true = R @ centre + t, true_R @ centre + true_t
    return {
        "pose_deg": float(angle),
        "distance_percent": float(100 * abs(np.linalg.norm(found) / np.linalg.norm(true) - 1)),
    }


def _crop(image: NDArray[np.uint8], roi: NDArray[np.float32]) -> NDArray[np.uint8]:
    from nphm_track.faces.roi import crop_rois

    return (crop_rois([image], roi[None], DENSE)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)


def _colours(normals: NDArray[np.float32]) -> NDArray[np.uint8]:
    return ((np.nan_to_num(normals) * 0.5 + 0.5) * 255).astype(np.uint8)


def markdown(facts: dict[str, Any]) -> str:
    rows = []
    for case, results in facts["cases"].items():
        for key, r in results.items():
            rows.append([case, key, r["normal_deg"], r["point_mm"], r.get("pose_deg"), r.get("distance_percent")])
    means = []
    for method in METHODS:
        some = [r for results in facts["cases"].values() for k, r in results.items() if k.startswith(method)]
        keys = ("normal_deg", "point_mm", "pose_deg", "distance_percent")
        means.append([method, *(np.mean([r[k] for r in some]) if k in some[0] else None for k in keys)])
    columns = ["normals mean deg", "points median mm", "pose deg", "distance %"]
    return "\n\n".join(
        [
            machine_line(facts["machine"]),
            table(["mean of all views", *columns], means),
            table(["case", "view", *columns], rows),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan-error", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="geometry")
    parser.add_argument("--cases", nargs="+", default=["lps", "fran"])
    parser.add_argument("--mirror", action="store_true", help="average with the look at the mirrored face")
    args = parser.parse_args()
    prepare_torch()
    args.out.mkdir(parents=True, exist_ok=True)
    cases = json.loads((args.scan_error / "cases.json").read_text(encoding="utf-8"))
    predictor = GeometryPredictor(
        FaceLandmarker.from_pretrained(), GeometryNet.from_pretrained(args.model), args.mirror
    )
    results = {
        c: measure_case(predictor, args.scan_error, cases[c], args.out / f"geometry_{c}.png") for c in args.cases
    }
    facts = {"machine": machine(), "model": args.model, "cases": results}
    save(args.out, "geometry", facts, markdown(facts))


if __name__ == "__main__":
    main()
