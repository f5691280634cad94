"""Normals and point maps on renders of real scans: E_n and E_p against the landmark mesh they start from.

Where head space lies in a scan is a convention: each method gets the one rotation (normals) or similarity (points) a
scan that suits it best over all views. Only pixels of the face that both methods know count. The pose is the one that
PnP finds from the point map alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.data import Array, ScanCase, ScanView, scan_cases
from benchmarks.harness import Only, Out, Report, ScanError, records_table
from nphm_track._runtime import prepare_torch
from nphm_track.cameras.pnp import solve_pnp
from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.faces.roi import crop_rois
from nphm_track.geometry.networks import DENSE, GeometryNet
from nphm_track.geometry.predict import GeometryPredictor
from nphm_track.kd_tree import kd_tree
from nphm_track.rendering.rasteriser import interpolate, rasterise, vertex_normals
from nphm_track.rigid import Similarity, fit_similarity
from nphm_track.training.face_stream import roi_cameras

COLUMNS = {
    "case": "case", "view": "view", "method": "method", "normals mean deg": "normal_deg",
    "points median mm": "point_mm", "pose deg": "pose_deg", "distance %": "distance_percent",
}  # fmt: skip
Maps = NDArray[np.floating]


@dataclass(frozen=True)
class Seen:
    """One view: the camera of its map, the truth [n, n, 7] (points and normals in the scan's frame, face), what each
    method says (normals, points), the pixels that count, and how sure the network is."""

    name: str
    K: Array
    R: Array
    t: Array
    truth: Maps
    methods: dict[str, tuple[Maps, Maps]]
    on: NDArray[np.bool_]
    sure: Maps


def run(scan_error: ScanError, out: Out, only: Only = None, model: str = "geometry", mirror: bool = False) -> Report:
    """``mirror`` averages with the view of the mirrored face. Writes a picture a case, a column a view: the crop, the
    true normals, those of the landmark mesh, those of the network."""
    prepare_torch()
    out.mkdir(parents=True, exist_ok=True)
    predictor = GeometryPredictor(FaceLandmarker.from_pretrained(), GeometryNet.from_pretrained(model), mirror)
    rows = []
    for case in scan_cases(scan_error, only):
        rows += measure(predictor, case, out / f"geometry_{case.name}.png")
    means = []
    for method in dict.fromkeys(row["method"] for row in rows):
        some = [row for row in rows if row["method"] == method]
        figures = {key: float(np.mean([r[key] for r in some])) for key in list(COLUMNS.values())[3:] if key in some[0]}
        means.append({"case": "**mean**", "method": method, **figures})
    return Report({"model": model, "views": rows}, [records_table(COLUMNS, [*means, *rows])])


def measure(predictor: GeometryPredictor, case: ScanCase, picture: Path) -> list[dict[str, Any]]:
    tiles, seen = [], []
    for view in case.views:
        image = np.asarray(Image.open(view.image).convert("RGB"))
        if faces := predictor.landmarker.find(image):
            face = predictor.landmarker.observe(image, faces[0].next_roi[None])[0]
            points = face.landmarks[None]
            maps, mesh = predictor.maps([image], points), predictor.landmark_mesh(points)[0].transpose(1, 2, 0)
            methods = {
                "network": (maps.normals[0].numpy(), maps.points[0].numpy()),
                "landmark mesh": (mesh[..., 3:6], mesh[..., :3] / 10),
            }
            K, R, t, truth = true_maps(case, view, face.next_roi)
            on = (truth[..., 6] > 0.99) & (mesh[..., 6] > 0.5)
            seen.append(Seen(view.name, K, R, t, truth, methods, on, maps.point_confidence[0].numpy()))
            crop = (crop_rois([image], face.next_roi[None], DENSE)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
            shown = (truth[..., 3:6], mesh[..., 3:6], methods["network"][0])
            tiles.append(np.concatenate([crop, *(((np.nan_to_num(n) + 1) * 127.5).astype(np.uint8) for n in shown)]))
    if not seen:
        return []
    Image.fromarray(np.concatenate(tiles, 1)).save(picture)
    rows = []
    for method in ("network", "landmark mesh"):
        normals, points = (np.concatenate([s.methods[method][k][s.on] for s in seen]).astype(float) for k in (0, 1))
        true = np.concatenate([s.truth[s.on] for s in seen]).astype(float)
        u, _, vt = np.linalg.svd(true[:, 3:6].T @ normals)
        turn = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt  # Kabsch
        place = fit_similarity(points, true[:, :3], scaled=True)
        for s in seen:
            cosine = ((s.methods[method][0][s.on] @ turn.T) * s.truth[s.on][:, 3:6]).sum(-1)
            away = np.linalg.norm(place(s.methods[method][1][s.on].astype(float)) - s.truth[s.on][:, :3], axis=-1)
            row: dict[str, Any] = {
                "case": case.name, "view": s.name, "method": method,
                "normal_deg": float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean()),
                "point_mm": float(np.median(away) * 1000),
            }  # fmt: skip
            rows.append(row | (pose_error(s, place) if method == "network" else {}))
    return rows


def true_maps(case: ScanCase, view: ScanView, roi: NDArray[np.float32]) -> tuple[Array, Array, Array, Maps]:
    """Camera of the map seen through a roi [5] (K, and R, t from the scan), and the scan's maps [n, n, 7]."""
    K, roll = roi_cameras(torch.from_numpy(view.K)[None], torch.from_numpy(roi.astype(float))[None], DENSE)
    R, t = roll[0].numpy() @ view.R, roll[0].numpy() @ view.t
    vertices, faces = case.scan.vertices, case.scan.faces
    fragments = rasterise(vertices @ R.T + t, faces, K[0].numpy(), (DENSE, DENSE))
    in_face = kd_tree(case.scan.points).query(vertices)[0] < 1e-6
    attributes = np.concatenate([vertices, vertex_normals(vertices, faces), in_face[:, None]], 1)
    maps = interpolate(fragments, faces, attributes.astype(np.float32))
    maps[..., 3:6] /= np.maximum(np.linalg.norm(maps[..., 3:6], axis=-1, keepdims=True), 1e-6)
    return K[0].numpy(), R, t, maps


def pose_error(seen: Seen, place: Similarity) -> dict[str, float]:
    """Angle (degrees) and distance error (%) of the pose that PnP finds from the point map alone."""
    pixels = np.stack(np.meshgrid(np.arange(DENSE) + 0.5, np.arange(DENSE) + 0.5), -1)
    on = seen.sure > 0.3
    head = place(seen.methods["network"][1][on].astype(float))  # in the scan's frame: its pose is known
    points, image, K, weight = (
        torch.from_numpy(np.asarray(x, float)) for x in (head, pixels[on], seen.K, seen.sure[on])
    )
    pose = solve_pnp(points, image, K, weight)
    R, t = pose.R.numpy(), pose.t.numpy()
    angle = np.degrees(np.arccos(np.clip((np.trace(R @ seen.R.T) - 1) / 2, -1, 1)))
    found, true = (np.linalg.norm(turn @ head.mean(0) + shift) for turn, shift in ((R, t), (seen.R, seen.t)))
    return {"pose_deg": float(angle), "distance_percent": float(100 * abs(found / true - 1))}
