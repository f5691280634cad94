"""Second step: from the observations of a clip to codes, camera and head poses (Pix2NPHM section 3.3 on video)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track.cameras.focal import solve_focal
from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.cameras.pnp import solve_pnp
from nphm_track.conventions import IBUG68_FROM_478, MODEL_UNIT
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.inverse import pose_points
from nphm_track.regressor.landmark_regressor import LandmarkRegressor
from nphm_track.tracking.observe import spread_rows
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.smoothing import fill_gaps, smooth_codes, smooth_poses

FOCAL_FRAMES = 120
OUTLINE = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136,
    172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
"""Points of the face's outline: they slide along the silhouette as the head turns, so they say little about the pose."""
INNER = tuple(i for i in range(0, 468, 4) if i not in OUTLINE)
FIT_POINTS = tuple(dict.fromkeys(IBUG68_FROM_478 + INNER))
"""The landmarks carried to each frame: iBUG-68 first, then a quarter of the inner face."""
MOVING = frozenset(range(48, 68)) | {5, 6, 7, 8, 9, 10, 11}
"""iBUG points of mouth and chin, whose place depends most on the expression."""


@dataclass(frozen=True)
class ClipFit:
    """Codes, camera and poses of a clip; arrays of T frames as in :class:`nphm_track.tracking.records.Track`."""

    z_id: NDArray[np.float32]
    z_ex: NDArray[np.float32]
    camera: Intrinsics
    R: NDArray[np.float64]
    t: NDArray[np.float64]
    landmarks_fit: NDArray[np.float32]
    landmark_error_px: NDArray[np.float32]
    filled: NDArray[np.bool_]


@torch.inference_mode()
def predict_codes(
    regressor: LandmarkRegressor, log: NDArray, size: tuple[int, int], batch: int = 128
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Feed-forward codes of every frame: z_id [T, D_id], z_ex [T, D_ex]; zeros where no face was seen."""
    device = regressor.classifiers.device
    rows = np.flatnonzero(log["seen"])
    c = regressor.config
    z_id = np.zeros((len(log), c.global_dim + c.n_members * c.local_dim), np.float32)
    z_ex = np.zeros((len(log), c.expression_dim), np.float32)
    for k in range(0, len(rows), batch):
        some = rows[k : k + batch]
        landmarks = torch.from_numpy(log["landmarks"][some]).to(device)
        scores = torch.from_numpy(log["blendshapes"][some]).to(device)
        image = torch.tensor(size, dtype=torch.float32, device=device).expand(len(some), 2)
        identity, expression = regressor(landmarks, scores, image)
        z_id[some], z_ex[some] = identity.cpu().numpy(), expression.cpu().numpy()
    return z_id, z_ex


def merge_identity(z_id: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """One identity [D] from many frames [T, D]: weighted geometric median (Weiszfeld), which outlying frames cannot drag."""
    mean = np.average(z_id, axis=0, weights=weight)
    for _ in range(20):
        distance = np.linalg.norm(z_id - mean, axis=1)
        w = weight / np.maximum(distance, 0.1 * np.median(distance) + 1e-9)
        mean = np.average(z_id, axis=0, weights=w)
    return mean.astype(np.float32)


def frontalness(landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 for a frontal view, towards 0 in profile [T], from how symmetric the nose lies between the eye corners."""
    right = np.linalg.norm(landmarks[:, 1, :2] - landmarks[:, 33, :2], axis=-1)
    left = np.linalg.norm(landmarks[:, 1, :2] - landmarks[:, 263, :2], axis=-1)
    return np.minimum(right, left) / np.maximum(np.maximum(right, left), 1e-6)


@torch.no_grad()
def head_landmarks(model: NphmDecoder, z_id: NDArray, z_ex: NDArray, batch: int = 64) -> NDArray[np.float32]:
    """The fit points of each frame [T, N, 3], metres, head space, carried by the head model's own deformation."""
    device = model.mean_anchors.device
    identity = torch.as_tensor(z_id, dtype=torch.float32, device=device)
    canonical = model.landmarks(identity)[list(FIT_POINTS)]
    out = np.empty((len(z_ex), len(FIT_POINTS), 3), np.float32)
    for k in range(0, len(z_ex), batch):
        expression = torch.as_tensor(z_ex[k : k + batch], dtype=torch.float32, device=device)
        n = len(expression)
        posed = pose_points(model, canonical.expand(n, -1, -1), identity.expand(n, -1), expression, cold_steps=2)
        out[k : k + n] = (posed.points * MODEL_UNIT).cpu().numpy()
    return out


def point_weights() -> Tensor:
    """Weight [N] of each fit point in the pose: outline and mouth count less."""
    outline = set(OUTLINE)
    weight = [0.15 if p in outline else 0.4 if i in MOVING else 1.0 for i, p in enumerate(FIT_POINTS)]
    return torch.tensor(weight)


def fit_clip(
    model: NphmDecoder,
    regressor: LandmarkRegressor,
    log: NDArray,
    size: tuple[int, int],
    camera: Intrinsics | None,
    strength: float,
    progress: Progress,
) -> ClipFit:
    """Merge the identity, smooth the expressions, solve the focal length (unless ``camera`` is given) and every pose.

    ``log`` has at least one frame in which the face was seen.
    """
    seen = np.asarray(log["seen"])
    times, shots, confidence = np.asarray(log["time"]), np.asarray(log["shot"]), np.asarray(log["confidence"])
    z_id_frames, z_ex = predict_codes(regressor, log, size)
    rows = np.flatnonzero(seen)
    weight = confidence[rows] * frontalness(log["landmarks"][rows]) ** 2 + 1e-3
    z_id = merge_identity(z_id_frames[rows], weight)
    filled = fill_gaps(seen, times, shots)
    trusted = np.where(seen, confidence, 0.0)
    z_ex = smooth_codes(z_ex, times, trusted, strength, shots).astype(np.float32)

    if camera is None:
        some = spread_rows(seen, FOCAL_FRAMES)
        points = torch.from_numpy(head_landmarks(model, z_id, z_ex[some]))
        pixels = torch.from_numpy(log["landmarks"][some][:, list(FIT_POINTS), :2])
        focal = solve_focal(points, pixels, size, point_weights())
        camera = Intrinsics.from_focal(focal.focal_px, size)
        progress.note(f"focal length {focal.focal_px:.0f} px ({focal.fov_deg:.0f} degrees across), solved from the clip")

    T = len(log)
    R, t = np.tile(np.eye(3), (T, 1, 1)), np.tile([0.0, 0.0, 1.0], (T, 1))
    points68 = np.full((T, 68, 3), np.nan, np.float32)
    needed = np.flatnonzero(seen | filled)
    for k in range(0, len(needed), 256):
        some = needed[k : k + 256]
        points = head_landmarks(model, z_id, z_ex[some])
        points68[some] = points[:, :68]
        visible = seen[some]
        if visible.any():
            frames = some[visible]
            pixels = camera.undistort(log["landmarks"][frames][:, list(FIT_POINTS), :2].astype(np.float64))
            pose = solve_pnp(
                torch.from_numpy(points[visible]).double(), torch.from_numpy(pixels), torch.from_numpy(camera.K), point_weights()
            )
            R[frames], t[frames] = pose.R.numpy(), pose.t.numpy()
        progress.advance(len(some))
    R, t = smooth_poses(R, t, times, trusted, strength, shots)

    projected = np.full((T, 68, 2), np.nan, np.float32)
    x = points68[needed] @ R[needed].swapaxes(-1, -2) + t[needed, None]
    projected[needed] = camera.project(x.astype(np.float64))
    error = np.full(T, np.nan, np.float32)
    observed = log["landmarks"][rows][:, list(IBUG68_FROM_478), :2]
    error[rows] = np.linalg.norm(projected[rows] - observed, axis=-1).mean(1)
    return ClipFit(z_id, z_ex, camera, R, t, projected, error, filled & ~seen)
