"""The refinement with ground-truth maps, which shows what the optimiser can do, and on real clips.

python benchmarks/refine.py --ict FOLDER --out FOLDER [--frames 60]
python benchmarks/refine.py --scan-error FOLDER --out FOLDER [--only lps]
python benchmarks/refine.py --clips FILE... --out FOLDER [--seconds 3]
python benchmarks/refine.py --ict FOLDER --cost --out FOLDER

A synthetic clip of an ICT-FaceKit head speaks, blinks and turns; landmarks are noisy; the start is a wrong identity,
wrong expressions and the poses that follow from them. Or real scans seen by known cameras, each view alone and all
views of a person together, from where the tracker leaves them. Or clips, with the networks' maps, against the same
clips not refined. Or the two renderers on the same few frames. Writes refine.json and refine.md (refine_scans,
refine_clips, refine_cost).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from report import machine, machine_line, save, table
from scans import head_points7, load_scan, write_intrinsics
from scipy.spatial.transform import Rotation

from nphm_track._runtime import prepare_torch
from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.cameras.pnp import solve_pnp
from nphm_track.conventions import MODEL_UNIT, POINTS7_478
from nphm_track.evaluation.alignment import Similarity, fit_points
from nphm_track.evaluation.scan import NAMES7, RADIUS, Scan
from nphm_track.faces.roi import roi_from_landmarks
from nphm_track.geometry.maps import GeometryMaps
from nphm_track.heads.carry import MeshCarrier
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.landmarks import LandmarkCarrier
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.mesh import extract_canonical
from nphm_track.refine.clip import Clip, MapSource
from nphm_track.refine.codes import State
from nphm_track.refine.objective import Weights
from nphm_track.refine.pixels import frame_to_crop
from nphm_track.refine.schedule import TERMS, Refined, Settings, frame_dtype, person_dtype, refine_clip
from nphm_track.refine.surface import SurfaceRenderer
from nphm_track.refine.volume import VolumeRenderer
from nphm_track.rendering.rasteriser import interpolate, rasterise, vertex_normals
from nphm_track.tracking.fit import FIT_POINTS, point_weights
from nphm_track.tracking.pipeline import track
from nphm_track.tracking.records import Track
from nphm_track.tracking.smoothing import smooth_codes, smooth_poses
from nphm_track.training.ict import IctHeads, load_ict

SIZE, FOCAL, FPS, CROP = (320, 320), 480.0, 30.0, 128
LANDMARKS = Path(__file__).resolve().parents[1] / "training" / "assets" / "ict_landmarks478.npz"


EXACT = Settings(
    weights=Weights(
        normal_sigma=0.05, point_sigma=0.0008, identity_sigma=1.5, image_identity_sigma=1.5, expression_sigma=0.15
    ),
    local_spread=0.3,
    identity_steps=5,
)
"""Settings that know that the maps have no errors, and that a scan is no sample of the head model."""


class MemoryLog:
    """A log that forgets."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.records = np.empty(0, dtype)

    def __len__(self) -> int:
        return len(self.records)

    def append(self, record: Any) -> None:
        self.records = np.concatenate([self.records, np.atleast_1d(np.asarray(record, self.records.dtype))])

    def read(self) -> np.ndarray:
        return self.records


@dataclass(frozen=True)
class Truth:
    """A synthetic clip: ICT weights, vertices and poses of T frames."""

    w: NDArray[np.float32]  # [100]
    e: NDArray[np.float32]  # [T, E]
    vertices: NDArray[np.float32]  # [T, V, 3] metres, head space
    R: NDArray[np.float64]
    t: NDArray[np.float64]
    times: NDArray[np.float64]
    landmarks: NDArray[np.float64]  # [T, 478, 2] px, without noise


def speech(rng: np.random.Generator, names: tuple[str, ...], times: NDArray[np.float64]) -> NDArray[np.float32]:
    """Expression weights [T, E]: jaw and lips at syllable rate, blinks, slow brows."""
    e = np.zeros((len(times), len(names)), np.float32)

    def wave(rate: float) -> NDArray[np.float64]:
        phases = rng.uniform(0, 2 * np.pi, 3)
        return sum(np.sin(2 * np.pi * rate * f * times + p) for f, p in zip((1, 1.43, 0.61), phases, strict=True)) / 3

    def put(name: str, values: NDArray[np.float64]) -> None:
        e[:, [i for i, n in enumerate(names) if n.startswith(name)]] = np.clip(values, 0, 1)[:, None]

    put("jawOpen", 0.22 + 0.35 * wave(3.5))
    put("mouthFunnel", 0.1 + 0.35 * wave(2.3))
    put("mouthSmile", 0.2 + 0.3 * wave(0.4))
    put("mouthUpperUp", 0.1 + 0.2 * wave(2.9))
    put("browInnerUp", 0.2 + 0.4 * wave(0.5))
    put("browDown", 0.2 * wave(0.3))
    blink = np.zeros_like(times)
    for at in np.arange(0.5, times[-1], 1.3):
        blink = np.maximum(blink, np.exp(-(((times - at) / 0.06) ** 2)))
    put("eyeBlink", 0.9 * blink)
    return e


def make_truth(ict: IctHeads, frames: int, seed: int) -> Truth:
    rng = np.random.default_rng(seed)
    w = np.clip(0.8 * rng.standard_normal(100), -2, 2).astype(np.float32)
    times = np.arange(frames) / FPS
    e = speech(rng, ict.expression_names, times)
    vertices = np.stack([ict.vertices(w, row) for row in e])
    angles = np.stack([0.15 * np.sin(1.9 * times), 0.45 * np.sin(1.2 * times + 0.4), 0.1 * np.sin(2.3 * times)], 1)
    R = Rotation.from_euler("xyz", angles).as_matrix() @ np.diag([1.0, -1.0, -1.0])
    t = np.stack([0.02 * np.sin(times), 0.01 * np.cos(1.4 * times), 0.55 + 0.03 * np.sin(0.9 * times)], 1)
    where = np.load(LANDMARKS)
    corners = ict.faces[where["face"]]
    points = np.einsum("tnkc,nk->tnc", vertices[:, corners], where["bary"])
    camera = points @ R.swapaxes(1, 2) + t[:, None]
    return Truth(w, e, vertices, R, t, times, camera[..., :2] / camera[..., 2:] * FOCAL + np.array(SIZE) / 2)


def oracle_maps(
    vertices: NDArray[np.float32],
    faces: NDArray[np.int32],
    R: NDArray[np.float64],
    t: NDArray[np.float64],
    K: NDArray[np.float64],
    rois: NDArray[np.float32],
) -> GeometryMaps:
    """The maps that perfect networks would give: B meshes [B, V, 3] (head space) drawn into their crops."""
    points, normals, masks = [], [], []
    for v, rotation, shift, roi in zip(vertices, R, t, rois, strict=True):
        camera = (v @ rotation.T + shift) @ (frame_to_crop(roi[None], CROP)[0] @ K).T
        fragments = rasterise(camera, faces, np.eye(3), (CROP, CROP))
        points.append(interpolate(fragments, faces, v))
        normal = interpolate(fragments, faces, vertex_normals(v, faces))
        normals.append(normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9))
        face = (fragments.face_id >= 0) & (points[-1][..., 2] > 0) & (points[-1][..., 1] > -0.09)
        masks.append(face.astype(np.float32))
    confidence = torch.from_numpy(np.stack(masks))
    stack = (torch.from_numpy(np.stack(values).astype(np.float32)) for values in (normals, points))
    return GeometryMaps(
        *stack, confidence, confidence, torch.from_numpy(np.asarray(rois, np.float32)), torch.zeros(len(rois), 3, 8, 8)
    )


def feed_forward(model: NphmDecoder, truth: Truth, rng: np.random.Generator, noise: float) -> tuple[Clip, NDArray]:
    """A start as a regressor would leave it, and the noisy landmarks."""
    T = len(truth.times)
    landmarks = (truth.landmarks + noise * rng.standard_normal(truth.landmarks.shape)).astype(np.float32)
    w = 0.6 * truth.w + 0.4 * rng.standard_normal(100)
    w = np.pad(w, (0, model.identity_basis.shape[1] - 100))
    # Errors of a regressor are part constant, part of the expression, part noise.
    e = 0.8 * truth.e + 0.05 * np.abs(rng.standard_normal(truth.e.shape[1])) + 0.05 * rng.standard_normal(truth.e.shape)
    still = np.zeros(T, int)
    z_ex = (e @ model.expression_basis.numpy().T).astype(np.float32)
    z_ex = smooth_codes(z_ex, truth.times, np.ones(T), 1.0, still).astype(np.float32)
    z_id = (model.identity_basis @ torch.from_numpy(w).float()).contiguous()
    camera = Intrinsics.from_focal(FOCAL, SIZE)
    points = LandmarkCarrier(model, z_id, FIT_POINTS)(torch.from_numpy(z_ex))
    seen = torch.from_numpy(landmarks[:, list(FIT_POINTS)]).double()
    pose = solve_pnp(points.double(), seen, torch.from_numpy(camera.K), point_weights())
    R, t = smooth_poses(pose.R.numpy(), pose.t.numpy(), truth.times, np.ones(T), 1.0, still)
    start = State(
        z_id, torch.from_numpy(z_ex), torch.from_numpy(R), torch.from_numpy(t), torch.from_numpy(camera.K.copy())
    )
    one = np.ones(T, np.float32)
    return Clip(start, camera, True, False, truth.times, still, one, landmarks), landmarks


def score(model: NphmDecoder, ict: IctHeads, truth: Truth, state: State) -> dict[str, float]:
    """Errors against the truth. Vertices: the ICT landmarks as the head model carries them, head space and camera."""
    basis = torch.linalg.pinv(model.expression_basis)
    e = (state.z_ex @ basis.T).numpy()
    w = (torch.linalg.pinv(model.identity_basis) @ state.z_id).numpy()[: len(truth.w)]
    R, t = state.R.numpy(), state.t.numpy()
    turn = Rotation.from_matrix(R @ truth.R.swapaxes(1, 2)).magnitude()
    ids = [i for i in range(0, 468, 4)]
    where = np.load(LANDMARKS)
    corners = ict.faces[where["face"][ids]]
    true = np.einsum("tnkc,nk->tnc", truth.vertices[:, corners], where["bary"][ids])
    carrier = LandmarkCarrier(model, state.z_id, ids)
    head, rest = carrier(state.z_ex).numpy(), carrier(0 * state.z_ex[:1]).numpy()
    true_rest = np.einsum("nkc,nk->nc", ict.vertices(truth.w)[corners], where["bary"][ids])
    cam, true_cam = head @ R.swapaxes(1, 2) + t[:, None], true @ truth.R.swapaxes(1, 2) + truth.t[:, None]
    used = np.flatnonzero(np.ptp(truth.e, axis=0) > 0)
    blink = ict.expression_names.index("eyeBlink_L")

    def bend(x: NDArray) -> float:
        return float(np.sqrt((np.diff(x, n=2, axis=0) ** 2).sum(-1).mean()))

    return {
        "identity (spreads)": float(np.sqrt(np.mean((w - truth.w) ** 2))),
        "expression (weights)": float(np.sqrt(np.mean((e - truth.e) ** 2))),
        "expression (used)": float(np.sqrt(np.mean((e - truth.e)[:, used] ** 2))),
        "expression motion (mm)": float(np.linalg.norm((head - rest) - (true - true_rest), axis=-1).mean() * 1000),
        "head space (mm)": float(np.linalg.norm(head - true, axis=-1).mean() * 1000),
        "camera space (mm)": float(np.linalg.norm(cam - true_cam, axis=-1).mean() * 1000),
        "rotation (deg)": float(np.degrees(turn).mean()),
        "translation (mm)": float(np.linalg.norm(t - truth.t, axis=-1).mean() * 1000),
        "vertex jitter / true": bend(head) / bend(true),
        "rotation jitter / true": bend(R.reshape(-1, 9)) / bend(truth.R.reshape(-1, 9)),
        "depth jitter / true": bend(t[:, 2:]) / bend(truth.t[:, 2:]),
        "blink height / true": float(np.quantile(e[:, blink], 0.97) / np.quantile(truth.e[:, blink], 0.97)),
    }


def run_clip(model: NphmDecoder, args: argparse.Namespace) -> None:
    ict = load_ict(args.ict)
    truth = make_truth(ict, args.frames, args.seed)
    clip, landmarks = feed_forward(model, truth, np.random.default_rng(args.seed + 1), args.noise)
    rois = np.stack([roi_from_landmarks(points) for points in landmarks])

    def maps(rows: NDArray[np.int64]) -> GeometryMaps:
        return oracle_maps(truth.vertices[rows], ict.faces, truth.R[rows], truth.t[rows], clip.camera.K, rois[rows])

    start, cpu = time.perf_counter(), time.process_time()
    refined = refine(model, clip, maps, Settings())
    seconds, cpu = (time.perf_counter() - start) / args.frames, (time.process_time() - cpu) / args.frames
    before, after = score(model, ict, truth, clip.start), score(model, ict, truth, refined.state)
    rows = [[name, before[name], after[name]] for name in before]
    for i, name in enumerate(("normals (deg)", "points (mm)", "landmarks (px)")):
        rows.append([name, *(float(np.nanmean(refined.frames[when][:, i])) for when in ("before", "after"))])
    back = int(refined.frames["rolled_back"].sum())
    facts = {"machine": machine(), "before": before, "after": after, "rolled_back": back}
    facts |= {"seconds_per_frame": seconds, "cpu_seconds_per_frame": cpu}
    head = f"{args.frames} frames, {seconds:.2f} s a frame ({cpu:.2f} s of CPU), {back} rolled back"
    parts = [machine_line(facts["machine"]), head, table(["", "start", "refined"], rows)]
    save(args.out, "refine", facts, "\n\n".join(parts))


def run_cost(model: NphmDecoder, args: argparse.Namespace, frames: int = 4) -> None:
    """CPU seconds of both renderers for the same frames, pixels and steps: the rendering alone, and all of it."""
    ict = load_ict(args.ict)
    truth = make_truth(ict, frames, args.seed)
    clip, landmarks = feed_forward(model, truth, np.random.default_rng(args.seed + 1), args.noise)
    rois = np.stack([roi_from_landmarks(points) for points in landmarks])

    def maps(rows: NDArray[np.int64]) -> GeometryMaps:
        return oracle_maps(truth.vertices[rows], ict.faces, truth.R[rows], truth.t[rows], clip.camera.K, rois[rows])

    rows = []
    for renderer, kind in (("surface", SurfaceRenderer), ("volume", VolumeRenderer)):
        rendering = [0.0]
        for name in ("see", "linearise"):
            setattr(kind, name, timed(getattr(kind, name), rendering))
        cpu = time.process_time()
        refined = refine(model, clip, maps, Settings(renderer=renderer))
        errors = np.nanmean(refined.frames["after"], 0)
        rows.append([renderer, rendering[0] / frames, (time.process_time() - cpu) / frames, *map(float, errors)])
    ratios = [rows[1][k] / rows[0][k] for k in (1, 2)]
    facts = {"machine": machine(), "rows": rows, "ratio": ratios[0], "ratio_of_all": ratios[1]}
    columns = ["rendering, CPU s a frame", "all, CPU s a frame", "normals (deg)", "points (mm)", "landmarks (px)"]
    text = table(["renderer", *columns], rows)
    text = f"{frames} frames; volume rendering costs {ratios[0]:.1f} times as much, in all {ratios[1]:.1f}.\n\n{text}"
    save(args.out, "refine_cost", facts, machine_line(facts["machine"]) + "\n\n" + text)


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The function, adding its CPU time to ``seconds[0]``."""

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        out = function(*args, **kwargs)
        seconds[0] += time.process_time() - start
        return out

    return call


def refine(model: NphmDecoder, clip: Clip, maps: MapSource, settings: Settings) -> Refined:
    logs = MemoryLog(person_dtype(len(clip.start.z_id))), MemoryLog(frame_dtype(clip.start.z_ex.shape[1]))
    return refine_clip(model, clip, maps, settings, *logs)


@dataclass(frozen=True)
class View:
    """A scan seen by a known camera: the tracker's result, and the scan in that result's head space."""

    result: Track
    scan: Scan
    to_head: Similarity  # scan to head space, rigid
    R: NDArray[np.float64]  # head to camera, the truth in that head space
    t: NDArray[np.float64]


def load_view(model: NphmDecoder, folder: Path, case: dict[str, Any], view: dict[str, Any], out: Path) -> View:
    image = folder / view["img"]
    with Image.open(image) as picture:
        size = picture.size
    out.mkdir(parents=True, exist_ok=True)
    name = f"{image.parent.name}_{view['id']}"
    camera = write_intrinsics(view, size, out / f"{name}.json")
    run = track(image, out / name, codes="landmarks", intrinsics=camera, overlay=False, meshes=False, overwrite=True)
    scan = load_scan(folder, case)
    fit = fit_points(scan.points7, head_points7(model, run.track).astype(np.float64), scaled=False)
    R, t = np.array(view["R"]), np.array(view["t"]).reshape(3)
    return View(run.track, scan, fit, R @ fit.R.T, t - R @ fit.R.T @ fit.t)


def run_scans(model: NphmDecoder, args: argparse.Namespace) -> None:
    cases = json.loads((args.scan_error / "cases.json").read_text(encoding="utf-8"))
    results: list[list[Any]] = []
    for case in args.only or cases:
        chosen = [v for v in cases[case]["views"] if not args.views or v["id"] in args.views]
        views = [load_view(model, args.scan_error, cases[case], v, args.out / "runs") for v in chosen]
        groups = [[i] for i in range(len(views))] + ([list(range(len(views)))] if len(views) > 1 else [])
        for group in groups:
            state, start = refine_views(model, [views[i] for i in group])
            name = chosen[group[0]]["id"] if len(group) == 1 else "together"
            for at, label in ((start, "start"), (state, "refined")):
                results.append([case, name, label, *scan_measures(model, at, 0, views[0].scan)])
                print(*results[-1], flush=True)
    columns = ["case", "view", "", "median", "mean", "rigid median", "rigid mean"]
    facts = {"machine": machine(), "results": results}
    save(args.out, "refine_scans", facts, machine_line(facts["machine"]) + "\n\n" + table(columns, results))


def refine_views(model: NphmDecoder, views: list[View]) -> tuple[State, State]:
    """Refined and feed-forward state of views of one person, the camera known."""
    tracks = [v.result for v in views]
    z_id = np.mean([t.z_id for t in tracks], 0)
    z_ex, R, t = (np.concatenate([getattr(r, name) for r in tracks]) for name in ("z_ex", "R", "t"))
    K = tracks[0].K
    tensors = [torch.from_numpy(np.asarray(a)) for a in (z_id, z_ex, R, t, K)]
    start = State(*tensors)
    size = (int(tracks[0].image_size[0]), int(tracks[0].image_size[1]))
    landmarks = np.concatenate([r.landmarks for r in tracks])
    count = len(views)
    clip = Clip(
        start, Intrinsics(K, size), True, False, np.arange(count) / FPS, np.arange(count),
        np.ones(count, np.float32), landmarks,
    )  # fmt: skip

    def maps(rows: NDArray[np.int64]) -> GeometryMaps:
        some = [views[i] for i in rows]
        rois = np.stack([roi_from_landmarks(landmarks[i]) for i in rows])
        vertices = np.stack([v.to_head(v.scan.vertices) for v in some]).astype(np.float32)
        faces = np.ascontiguousarray(views[0].scan.faces, np.int32)
        tips = [v.to_head(v.scan.nose_tip) for v in some]
        out = oracle_maps(vertices, faces, np.stack([v.R for v in some]), np.stack([v.t for v in some]), K, rois)
        to_tip = [p - torch.from_numpy(tip).float() for p, tip in zip(out.points, tips, strict=True)]
        sure = out.normal_confidence * (torch.stack(to_tip).norm(dim=-1) < RADIUS)
        return replace(out, normal_confidence=sure, point_confidence=sure)

    return refine(model, clip, maps, EXACT).state, start


def scan_measures(model: NphmDecoder, state: State, row: int, scan: Scan) -> list[float]:
    """Median and mean after a similarity, and after a rigid map, mm, of the posed head of one frame."""
    mesh = extract_canonical(model, state.z_id, detail=0.7)
    vertices = (MeshCarrier(model, mesh, state.z_id)(state.z_ex[row]).posed.points * MODEL_UNIT).numpy()
    carrier = LandmarkCarrier(model, state.z_id, [POINTS7_478[name] for name in NAMES7])
    error = scan.error(vertices, mesh.faces, carrier(state.z_ex[row : row + 1])[0].numpy())
    return [error.similarity.median, error.similarity.mean, error.rigid.median, error.rigid.mean]


def run_clips(args: argparse.Namespace) -> None:
    """Terms and jitter of real clips, not refined and refined."""
    rows, facts = [], {"machine": machine(), "clips": {}}
    for clip in args.clips:
        options = {"end": args.seconds, "meshes": False, "overlay": False, "overwrite": True}
        plain = track(clip, args.out / "runs" / f"{clip.stem}_plain", **options)
        cpu = time.process_time()
        run = track(clip, args.out / "runs" / clip.stem, refine=True, **options)
        cpu = (time.process_time() - cpu) / len(run.track)
        quality, pair = run.info.quality, (clip_jitter(plain.track), clip_jitter(run.track))
        terms = [f"{quality[f'refine_{t}_before']:.2f} -> {quality[f'refine_{t}_after']:.2f}" for t in TERMS]
        shakes = [f"{before:.2f} -> {after:.2f}" for before, after in zip(*pair, strict=True)]
        wall = run.info.timings["refine"] / len(run.track)
        rows.append([clip.stem, len(run.track), *terms, *shakes, quality["rolled_back"], cpu, wall])
        facts["clips"][clip.stem] = {"quality": quality, "jitter": pair, "cpu_seconds_per_frame": cpu}
    columns = ["clip", "frames", "normals (deg)", "points (mm)", "landmarks (px)", "rotation jitter (deg)"]
    columns += ["translation jitter (mm)", "rolled back", "CPU s a frame, whole job", "wall s a frame, refinement"]
    save(args.out, "refine_clips", facts, machine_line(facts["machine"]) + "\n\n" + table(columns, rows))


def clip_jitter(result: Track) -> tuple[float, float]:
    """RMS second difference from frame to frame of rotation (degrees) and translation (mm), over frames with a head."""
    known = np.isfinite(result.t).all(1)
    whole = known[2:] & known[1:-1] & known[:-2]
    first = Rotation.from_matrix(result.R[1:][known[1:] & known[:-1]] @ result.R[:-1][known[1:] & known[:-1]].mT)
    turn = np.full((len(known) - 1, 3), np.nan)
    turn[known[1:] & known[:-1]] = first.as_rotvec(degrees=True)
    rotation, shift = np.diff(turn, axis=0)[whole], 1000 * np.diff(result.t, n=2, axis=0)[whole]
    return tuple(float(np.sqrt((bend**2).sum(1).mean())) for bend in (rotation, shift))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ict", type=Path, help="folder of ICT-FaceKit light: run the synthetic clip")
    parser.add_argument("--scan-error", type=Path, help="folder with cases.json: run the scans")
    parser.add_argument("--clips", type=Path, nargs="+", help="real clips to run")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each clip")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--noise", type=float, default=1.5, help="landmark noise, px")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="cases to run")
    parser.add_argument("--views", nargs="+", help="views to run")
    parser.add_argument("--cost", action="store_true", help="with --ict: both renderers on the same frames")
    args = parser.parse_args()
    prepare_torch()
    model = load_head_model()
    if args.clips:
        run_clips(args)
    if args.ict:
        (run_cost if args.cost else run_clip)(model, args)
    if args.scan_error:
        run_scans(model, args)


if __name__ == "__main__":
    main()
