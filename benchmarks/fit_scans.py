"""Registration to real scans against a linear fit: lps, fran, mmdemo, and the twelve faces of MeshMonk's simpop.

python benchmarks/fit_scans.py --data FOLDER --scan-error FOLDER --out FOLDER [--only lps simpop03] [--head-model NAME]

Both methods get the same scan points and the same landmarks, found on renderings (``--seven``: the cases' own seven
points). The linear one is ICT-FaceKit: its identity modes with a standard normal prior and its expressions in 0..1, by
Gauss-Newton on point-to-plane distances with pose and scale free. Writes fit_scans.json, .md and a picture a case.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image
from report import machine, machine_line, save, table
from scipy.spatial import cKDTree

from nphm_track._runtime import prepare_torch
from nphm_track.conventions import MODEL_UNIT, POINTS7_478
from nphm_track.evaluation.scan import NAMES7, Scan
from nphm_track.heads.registration import FACE_MARGIN, Pose, robust_similarity
from nphm_track.rendering.rasteriser import interpolate, rasterise, vertex_normals
from nphm_track.rendering.shading import shade
from nphm_track.rendering.surface import Surface, unit
from nphm_track.scans.fitting import RED, FitOptions, ScanFitter
from nphm_track.scans.landmarks import ScanLandmarks
from nphm_track.scans.reading import ScanGeometry, read_scan
from nphm_track.training.ict import IctHeads, load_ict

Array = NDArray[np.float64]
INDEX7 = [POINTS7_478[name] for name in NAMES7]
NOSE_TIP = 4
CASES = ("lps", "fran", "mmdemo")


@dataclass(frozen=True)
class Case:
    name: str
    geometry: ScanGeometry  # metres
    points7: Array
    ruler: Scan


@dataclass(frozen=True)
class Head:
    """A fitted head: vertices and its seven points, in any frame, and the map to the scan."""

    vertices: Array
    faces: NDArray[np.integer]
    points7: Array
    pose: Pose


def cases(args: argparse.Namespace, fitter: ScanFitter) -> Iterator[Case]:
    known = json.loads((args.scan_error / "cases.json").read_text(encoding="utf-8"))
    for name in CASES:
        if not args.only or name in args.only:
            geometry = read_scan(args.scan_error / known[name]["gt"])
            points7 = np.array([known[name]["points7"][n] for n in NAMES7])
            assert geometry.faces is not None
            yield Case(
                name, geometry, points7, Scan(geometry.vertices, geometry.faces, points7, known[name]["nose_tip"])
            )
    faces12 = np.load(args.data / "scans" / "meshmonk_simpop.npz")
    shapes, faces = faces12["vertices"] / 1e3, faces12["faces"]
    names = [f"simpop{k:02d}" for k in range(len(shapes))]
    if args.only and not set(names) & set(args.only):
        return
    # The ruler's points: found on the mean face, carried to the others by their common vertices.
    average = shapes.mean(0)
    marks = fitter.landmarks(_mesh(average, faces))
    place = {i: int(cKDTree(average).query(p)[1]) for i, p in zip(marks.index, marks.points, strict=True)}
    for name, shape in zip(names, shapes, strict=True):
        if not args.only or name in args.only:
            points7 = shape[[place[i] for i in INDEX7]].astype(np.float64)
            yield Case(name, _mesh(shape, faces), points7, Scan(shape, faces, points7, shape[place[NOSE_TIP]]))


def _mesh(vertices: Array, faces: NDArray[np.integer]) -> ScanGeometry:
    vertices = np.asarray(vertices, np.float64)
    return ScanGeometry(vertices, np.asarray(faces, np.int64), vertex_normals(vertices, faces).astype(np.float64))


def fit_neural(fitter: ScanFitter, case: Case, landmarks: ScanLandmarks) -> tuple[Head, dict[str, Any]]:
    fitted = fitter.fit(case.geometry, landmarks)
    result = fitted.registration
    head = Head(fitted.vertices.astype(np.float64), fitted.faces, fitter.head_landmarks(result, INDEX7), result.pose)
    facts = {
        "scale": result.pose.scale,
        "explained": result.trusted,
        "identity_rms": float(np.sqrt((result.identity**2).mean())),
        "identity_rest": result.identity_rest,
        "face_distance_mean": float(fitted.face_distance.mean()),
    }
    return head, facts


class LinearFit:
    """ICT-FaceKit fitted to scan points: the row to beat."""

    SAMPLES, ITERATIONS = 4000, 40
    SIGMA, INDEPENDENT = 0.3, 400  # mm; as nphm_track.heads.registration
    LANDMARK_SIGMA, LANDMARKS = 2.5, 60
    EXPRESSION_SIGMA = 0.25

    def __init__(self, heads: IctHeads, landmarks: Array) -> None:
        """``landmarks`` [478, 3] on the neutral mean, metres, head space."""
        self.heads = heads
        base = heads.neutral.astype(np.float64)
        self.bases = np.concatenate([heads.identity, heads.expression]).astype(np.float64)  # [M, V, 3]
        triangle, weights = self._closest(base, landmarks)
        self.mark_corners, self.mark_weights = heads.faces[triangle], weights

    def __call__(self, points: Array, normals: Array, landmarks: ScanLandmarks) -> Head:
        n_id, n = len(self.heads.identity), len(self.bases)
        x = np.zeros(n)
        spread = np.concatenate([np.ones(n_id), np.full(n - n_id, self.EXPRESSION_SIGMA)])
        corners, weights = self.mark_corners[landmarks.index], self.mark_weights[landmarks.index]
        pose = robust_similarity(self._at(self.vertices(x), corners, weights), landmarks.points)
        rng = np.random.default_rng(0)
        for iteration in range(self.ITERATIONS):
            v = self.vertices(x)
            marks = self._at(v, corners, weights)
            rows = [self._rows(marks, corners, weights, axis, pose) for axis in np.eye(3)]
            gap = (landmarks.points - pose(marks)) / pose.scale * 1e3
            pull = 1 / np.maximum(np.linalg.norm(gap, axis=1) / self.LANDMARK_SIGMA, 1.0)  # Huber
            share = 1.0 if iteration < 10 else 0.5
            pull *= share * min(len(gap), self.LANDMARKS) / len(gap) / self.LANDMARK_SIGMA**2
            blocks = [(J, gap @ axis, pull) for J, axis in zip(rows, np.eye(3), strict=True)]
            if iteration >= 5:
                blocks.append(self._surface(v, marks, points, normals, pose, iteration, rng))
            H, g = np.diag(np.concatenate([1 / spread**2, np.full(7, 1e-6)])), np.zeros(n + 7)
            g[:n] = -x / spread**2
            for J, r, weight in blocks:
                H += (J * weight[:, None]).T @ J
                g += (J * weight[:, None]).T @ r
            step = np.linalg.solve(H, g)
            x = x + step[:n]
            x[n_id:] = x[n_id:].clip(0, 1)
            pose = _stepped(pose, step[n:])
        v = self.vertices(x)
        every = self._at(v, self.mark_corners, self.mark_weights)
        return Head(v, self.heads.faces, every[INDEX7], pose)

    def vertices(self, x: Array) -> Array:
        return np.asarray(self.heads.neutral + np.tensordot(x, self.bases, 1))

    def _surface(
        self,
        v: Array,
        marks: Array,
        points: Array,
        normals: Array,
        pose: Pose,
        iteration: int,
        rng: np.random.Generator,
    ) -> tuple[Array, Array, Array]:
        """Point-to-plane residuals (mm) of the face's trusted scan points, L1 by reweighting."""
        head = pose.inverse(points)
        near = np.flatnonzero(cKDTree(marks).query(head)[0] * 1e3 < FACE_MARGIN)
        near = rng.choice(near, min(self.SAMPLES, len(near)), replace=False)
        triangle, weights = self._closest(v, head[near])
        corners = self.heads.faces[triangle]
        at = self._at(v, corners, weights)
        a, b, c = (v[corners[:, i]] for i in range(3))
        normal = unit(np.cross(b - a, c - a))
        r = ((head[near] - at) * normal).sum(1) * 1e3
        limit = max(1.9, 25 * 0.85**iteration)
        turned = (normal @ pose.R.T * normals[near]).sum(1)
        good = (turned > 0.4) & (np.linalg.norm(head[near] - at, axis=1) * 1e3 < 1.5 * limit + 1)
        weight = good / (self.SIGMA * np.maximum(np.abs(r), 0.1)) * self.INDEPENDENT / max(good.sum(), 1)
        return self._rows(at, corners, weights, normal @ pose.R.T, pose), r, weight

    def _rows(self, at: Array, corners: NDArray[np.integer], weights: Array, axis: Array, pose: Pose) -> Array:
        """Derivative [N, M + 7] (mm of the head), along ``axis`` (scan frame), to weights, turn, shift and growth."""
        axis = np.broadcast_to(axis, at.shape)
        local = axis @ pose.R
        moved = (self.bases[:, corners] * weights[None, :, :, None]).sum(2)  # [M, N, 3]
        shape = np.einsum("mnc,nc->nm", moved, local)
        turned = at @ pose.R.T
        return 1e3 * np.concatenate([shape, np.cross(turned, axis), axis, (turned * axis).sum(1, keepdims=True)], 1)

    def _closest(self, v: Array, queries: Array) -> tuple[NDArray[np.integer], Array]:
        """Nearest triangle [N] and barycentric weights [N, 3], among those with the nearest centroids."""
        triangles = v[self.heads.faces]
        candidates = cKDTree(triangles.mean(1)).query(queries, k=6)[1]
        repeated = np.repeat(queries, 6, 0)
        some = triangles[candidates.ravel()]
        found = trimesh.triangles.closest_point(some, repeated)
        best = np.linalg.norm(found - repeated, axis=1).reshape(-1, 6).argmin(1)
        pick = np.arange(len(queries)) * 6 + best
        weights = trimesh.triangles.points_to_barycentric(some[pick], found[pick])
        return candidates[np.arange(len(queries)), best], weights

    @staticmethod
    def _at(v: Array, corners: NDArray[np.integer], weights: Array) -> Array:
        return np.asarray((v[corners] * weights[:, :, None]).sum(1))


def _stepped(pose: Pose, step: Array) -> Pose:
    """Turn (radians), shift (head metres) and growth applied about the scan frame's axes."""
    turn = trimesh.transformations.rotation_matrix(np.linalg.norm(step[:3]), step[:3] + 1e-15)[:3, :3]
    return Pose(pose.scale * float(np.exp(step[6])), turn @ pose.R, pose.t + pose.scale * step[3:6])


def picture(case: Case, heads: list[Head], size: int = 400) -> NDArray[np.uint8]:
    """Scan, then each fit and the scan coloured by its distance (blue 0 to red 3 mm), front and 40 degrees."""
    assert case.geometry.faces is not None
    place = heads[0].pose
    scan = place.inverse(case.geometry.vertices)
    rows = []
    for yaw in (0.0, 40.0):
        tiles = [_drawn(scan, case.ruler.faces, None, yaw, size)]
        for head in heads:
            own = place.inverse(head.pose(head.vertices))
            distance = Surface(own, head.faces).closest(scan).distance * 1e3
            s = np.clip(distance / RED, 0, 1)[:, None]
            tiles += [
                _drawn(own, head.faces, None, yaw, size),
                _drawn(scan, case.ruler.faces, np.clip(1.5 - np.abs(4 * s - [3, 2, 1]), 0, 1), yaw, size),
            ]
        rows.append(np.hstack(tiles))
    return np.vstack(rows)


def _drawn(v: Array, faces: NDArray[np.integer], colours: Array | None, yaw: float, size: int) -> NDArray[np.uint8]:
    a = np.deg2rad(yaw)
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    camera = v @ turn.T @ np.diag([1.0, -1.0, -1.0]) + [0, 0, 1.2]
    K = np.array([[5 * size, 0, size / 2], [0, 5 * size, size / 2], [0, 0, 1]])
    seen = rasterise(camera, faces, K, (size, size))
    if colours is None:
        rgb, alpha = shade(seen, faces, camera, vertex_normals(camera, faces))
        image = rgb * alpha[..., None] + 0.15 * (1 - alpha[..., None])
    else:
        image = np.where(seen.face_id[..., None] >= 0, interpolate(seen, faces, colours), 0.15)
    return np.asarray((image.clip(0, 1) * 255).astype(np.uint8))


def markdown(facts: dict[str, Any]) -> str:
    results = facts["results"]
    methods = ("neural", "linear")
    rows = [
        [r["case"]] + [r[m]["similarity"][k] for m in methods for k in ("median", "mean")] + [r["neural"]["seconds"]]
        for r in results
    ]
    groups = {"mean of the scans": CASES, "mean of simpop": tuple(r["case"] for r in results if "simpop" in r["case"])}
    for title, names in groups.items():
        some = [row for row in rows if row[0] in names]
        if some:
            rows.append([f"**{title}**", *(float(np.mean([row[i] for row in some])) for i in range(1, 6))])
    columns = ["case", "nphm median", "nphm mean", "linear ICT median", "linear ICT mean", "nphm seconds"]
    title = f"Scan-to-mesh distance, mm, after a similarity; head model {facts['head_model']} {facts['sha256'][:8]}."
    return "\n\n".join([machine_line(facts["machine"]), title, table(columns, rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with scans/ and ict_facekit/")
    parser.add_argument("--scan-error", type=Path, required=True, help="folder with cases.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="cases to run")
    parser.add_argument("--head-model", default="nphm-small")
    parser.add_argument("--seven", action="store_true", help="give both methods the seven points only")
    args = parser.parse_args()
    prepare_torch()
    args.out.mkdir(parents=True, exist_ok=True)
    fitter = ScanFitter(FitOptions(head_model=args.head_model))
    linear = LinearFit(load_ict(args.data / "ict_facekit"), fitter.model.mean_landmarks.double().numpy() * MODEL_UNIT)
    facts: dict[str, Any] = {"machine": machine(), "head_model": args.head_model, "sha256": fitter.model_sha256}
    facts["results"] = []
    for case in cases(args, fitter):
        landmarks = ScanLandmarks(np.array(INDEX7), case.points7) if args.seven else fitter.landmarks(case.geometry)
        started = perf_counter()
        neural, about = fit_neural(fitter, case, landmarks)
        seconds = perf_counter() - started
        points, normals = case.geometry.surface_points()
        assert normals is not None
        front = unit(case.ruler.forward)
        sign = np.sign(np.median((normals @ front)[np.linalg.norm(points - case.ruler.nose_tip, axis=1) < 0.05]))
        straight = linear(points, sign * normals, landmarks)
        measured = [case.ruler.error(h.vertices, h.faces, h.points7) for h in (neural, straight)]
        result = {
            "case": case.name,
            "neural": asdict(measured[0]) | about | {"seconds": seconds},
            "linear": asdict(measured[1]),
        }
        facts["results"].append(result)
        Image.fromarray(picture(case, [neural, straight])).save(args.out / f"{case.name}.png")
        print(case.name, *(f"{m.similarity.median:.3f}/{m.similarity.mean:.3f}" for m in measured), flush=True)
    save(args.out, "fit_scans", facts, markdown(facts))


if __name__ == "__main__":
    main()
