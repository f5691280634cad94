"""What the refinement can do when the networks' maps are exact: a made clip, from a wrong start.

An ICT-FaceKit head speaks, blinks and turns; landmarks are noisy; the start is a wrong identity, wrong expressions and
the poses that follow from them. With both --renderer the CPU seconds of the two can be compared.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from benchmarks.data import Array, rms, speech
from benchmarks.harness import Ict, Out, Report, table
from nphm_track._runtime import prepare_torch
from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.cameras.pnp import solve_pnp
from nphm_track.faces.roi import roi_from_landmarks
from nphm_track.geometry.maps import GeometryMaps
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.landmarks import LandmarkCarrier
from nphm_track.heads.loading import load_head_model
from nphm_track.refine.clip import Clip
from nphm_track.refine.codes import State
from nphm_track.refine.config import RefineConfig
from nphm_track.refine.schedule import RENDERERS, Refined, frame_dtype, person_dtype, refine_clip
from nphm_track.rendering.rasteriser import interpolate, rasterise, vertex_normals
from nphm_track.tracking.fit import FIT_POINTS, point_weights
from nphm_track.tracking.smoothing import smooth_codes, smooth_poses
from nphm_track.training.face_stream import roi_cameras
from nphm_track.training.ict import IctHeads, load_ict

SIZE, FOCAL, FPS, MAP_SIZE = (320, 320), 480.0, 30.0, 128
LANDMARKS = Path(__file__).resolve().parents[1] / "training" / "assets" / "ict_landmarks478.npz"


def run(
    ict: Ict, out: Out, frames: int = 60, noise: float = 1.5, seed: int = 0, renderer: list[str] = ["surface"],  # noqa: B006
) -> Report:  # fmt: skip
    """``noise``: of the landmarks, px."""
    prepare_torch()
    model, heads = load_head_model(), load_ict(ict)
    truth = Truth.make(heads, frames, seed)
    clip = feed_forward(model, truth, np.random.default_rng(seed + 1), noise)
    start = score(model, truth, clip.start)
    columns: dict[str, dict[str, float]] = {"start": start}
    for name in renderer:
        cpu = time.process_time()
        refined = refine(model, truth, clip, RefineConfig.model_validate({"renderer": name}))
        seconds = (time.process_time() - cpu) / frames
        back = float(refined.frames["rolled_back"].sum())
        columns[name] = score(model, truth, refined.state) | {"rolled back": back, "CPU seconds a frame": seconds}
    rows = [[name, *(found.get(name) for found in columns.values())] for name in columns[renderer[-1]]]
    return Report(columns, [f"{frames} frames, renderers {', '.join(RENDERERS)}.", table(["", *columns], rows)])


@dataclass(frozen=True)
class Truth:
    """A made clip: ICT weights and poses of T frames (head to camera, metres), and where its landmarks are (px)."""

    heads: IctHeads
    w: NDArray[np.float32]  # [100]
    e: NDArray[np.float32]  # [T, E]
    R: Array
    t: Array
    times: Array

    @classmethod
    def make(cls, heads: IctHeads, frames: int, seed: int) -> Truth:
        rng = np.random.default_rng(seed)
        w = np.clip(0.8 * rng.standard_normal(100), -2, 2).astype(np.float32)
        times = np.arange(frames) / FPS
        e = speech(rng, heads.expression_names, times)
        angles = np.stack([0.15 * np.sin(1.9 * times), 0.45 * np.sin(1.2 * times + 0.4), 0.1 * np.sin(2.3 * times)], 1)
        R = Rotation.from_euler("xyz", angles).as_matrix() @ np.diag([1.0, -1.0, -1.0])
        t = np.stack([0.02 * np.sin(times), 0.01 * np.cos(1.4 * times), 0.55 + 0.03 * np.sin(0.9 * times)], 1)
        return cls(heads, w, e, R, t, times)

    def points(self, e: NDArray[np.float32]) -> Array:
        """The 478 landmarks [T, 478, 3] in head space (metres)."""
        where = np.load(LANDMARKS)
        corners = self.heads.faces[where["face"]]
        vertices = np.stack([self.heads.vertices(self.w, row) for row in e])
        return np.einsum("tnkc,nk->tnc", vertices[:, corners], where["bary"])

    def maps(self, rows: NDArray[np.int64], rois: NDArray[np.float32], K: Array) -> GeometryMaps:
        """What perfect networks would see of frames."""
        faces, found = self.heads.faces, []
        for row, roi in zip(rows, rois, strict=True):
            vertices = self.heads.vertices(self.w, self.e[row])
            crop_K, roll = roi_cameras(torch.from_numpy(K)[None], torch.from_numpy(roi.astype(float))[None], MAP_SIZE)
            camera = (vertices @ self.R[row].T + self.t[row]) @ roll[0].numpy().T
            fragments = rasterise(camera, faces, crop_K[0].numpy(), (MAP_SIZE, MAP_SIZE))
            attributes = np.concatenate([vertex_normals(vertices, faces), vertices], 1)
            found.append(torch.from_numpy(interpolate(fragments, faces, attributes.astype(np.float32))))
        normals, points = torch.stack(found).float().split(3, -1)
        normals = torch.nn.functional.normalize(normals, dim=-1)
        sure = ((points[..., 2] > 0) & (points[..., 1] > -0.09)).float()  # 0 where nothing is
        return GeometryMaps(normals, points, sure, sure, torch.from_numpy(rois), torch.zeros(len(rows), 3, 8, 8))


def feed_forward(model: NphmDecoder, truth: Truth, rng: np.random.Generator, noise: float) -> Clip:
    """A start as a regressor would leave it, and noisy landmarks."""
    T = len(truth.times)
    camera = truth.points(truth.e) @ truth.R.swapaxes(1, 2) + truth.t[:, None]
    pixels = camera[..., :2] / camera[..., 2:] * FOCAL + np.array(SIZE) / 2
    landmarks = (pixels + noise * rng.standard_normal(pixels.shape)).astype(np.float32)
    w = np.pad(0.6 * truth.w + 0.4 * rng.standard_normal(100), (0, model.identity_basis.shape[1] - 100))
    # Errors of a regressor are part constant, part of the expression, part noise.
    e = 0.8 * truth.e + 0.05 * np.abs(rng.standard_normal(truth.e.shape[1])) + 0.05 * rng.standard_normal(truth.e.shape)
    one, segments = np.ones(T, np.float32), np.zeros(T, np.int64)
    z_ex = smooth_codes((e @ model.expression_basis.numpy().T).astype(np.float32), truth.times, one, 1.0, segments)
    z_id, codes = model.identity_basis @ torch.from_numpy(w).float(), torch.from_numpy(z_ex.astype(np.float32))
    known = Intrinsics.from_focal(FOCAL, SIZE)
    K = torch.from_numpy(known.K.copy())
    points = LandmarkCarrier(model, z_id, FIT_POINTS)(codes).double()
    pose = solve_pnp(points, torch.from_numpy(landmarks[:, list(FIT_POINTS)]).double(), K, point_weights())
    R, t = smooth_poses(pose.R.numpy(), pose.t.numpy(), truth.times, one, 1.0, segments)
    start = State(z_id.contiguous(), codes, torch.from_numpy(R), torch.from_numpy(t), K)
    return Clip(start, known, True, False, truth.times, segments, one, landmarks)


class MemoryLog:
    """A log that forgets."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.records = np.empty(0, dtype)

    def __len__(self) -> int:
        return len(self.records)

    def append(self, record: Any) -> None:
        self.records = np.concatenate([self.records, np.atleast_1d(np.asarray(record, self.records.dtype))])

    def read(self) -> NDArray[Any]:
        return self.records


def refine(model: NphmDecoder, truth: Truth, clip: Clip, config: RefineConfig) -> Refined:
    rows = np.arange(len(clip))
    rois = np.stack([roi_from_landmarks(points) for points in np.asarray(clip.landmarks[rows])]).astype(np.float32)
    logs = MemoryLog(person_dtype(len(clip.start.z_id))), MemoryLog(frame_dtype(clip.start.z_ex.shape[1]))
    return refine_clip(model, clip, lambda r: truth.maps(r, rois[r], clip.camera.K), config, *logs)


def score(model: NphmDecoder, truth: Truth, state: State) -> dict[str, float]:
    """Errors against the truth; points are the landmarks as the head model carries them, head space and camera."""
    e = (state.z_ex @ torch.linalg.pinv(model.expression_basis).T).numpy()
    w = (torch.linalg.pinv(model.identity_basis) @ state.z_id).numpy()[: len(truth.w)]
    R, t = state.R.numpy(), state.t.numpy()
    some = list(range(0, 468, 4))
    carrier = LandmarkCarrier(model, state.z_id, some)
    head, rest = carrier(state.z_ex).numpy(), carrier(0 * state.z_ex[:1]).numpy()
    true, true_rest = truth.points(truth.e)[:, some], truth.points(0 * truth.e[:1])[:, some]
    camera, true_camera = head @ R.swapaxes(1, 2) + t[:, None], true @ truth.R.swapaxes(1, 2) + truth.t[:, None]
    blink = truth.heads.expression_names.index("eyeBlink_L")

    def distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
        return float(np.linalg.norm(a - b, axis=-1).mean() * 1000)

    def bend(x: NDArray[np.floating]) -> float:
        return rms(np.diff(x, n=2, axis=0))

    return {
        "identity (spreads)": float(np.sqrt(np.mean((w - truth.w) ** 2))),
        "expression (weights)": float(np.sqrt(np.mean((e - truth.e) ** 2))),
        "expression motion (mm)": distance(head - rest, true - true_rest),
        "head space (mm)": distance(head, true),
        "camera space (mm)": distance(camera, true_camera),
        "rotation (deg)": float(np.degrees(Rotation.from_matrix(R @ truth.R.swapaxes(1, 2)).magnitude()).mean()),
        "translation (mm)": distance(t, truth.t),
        "vertex jitter / true": bend(head) / bend(true),
        "rotation jitter / true": bend(R.reshape(-1, 9)) / bend(truth.R.reshape(-1, 9)),
        "depth jitter / true": bend(t[:, 2:]) / bend(truth.t[:, 2:]),
        "blink height / true": float(np.quantile(e[:, blink], 0.97) / np.quantile(truth.e[:, blink], 0.97)),
    }
