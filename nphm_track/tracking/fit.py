"""Second step: from the observations of a clip to codes, camera and head poses (Pix2NPHM section 3.3 on video)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track import expression_prior, landmark_model
from nphm_track.cameras.focal import solve_focal
from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.cameras.pnp import solve_pnp
from nphm_track.conventions import FACE_OUTLINE, IBUG68_FROM_478, NOSE_TIP, OUTER_EYE_CORNERS
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.landmarks import LandmarkCarrier
from nphm_track.heads.mononphm import known_landmarks
from nphm_track.heads.rig import Rig, RigLandmarks, knows_arkit, open_rig
from nphm_track.landmark_model import eye_distance
from nphm_track.regressor.landmark_regressor import LandmarkRegressor
from nphm_track.tracking.identity import IdentityVotes, merge_identity
from nphm_track.tracking.observations import column, release
from nphm_track.tracking.observe import spread_rows
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.rest import frame_weights, landmark_effects, landmark_evidence, rest_weights
from nphm_track.tracking.smoothing import fill_gaps, smooth_codes, smooth_poses

Carrier = LandmarkCarrier | RigLandmarks
Poses = tuple[NDArray[np.float64], NDArray[np.float64]]
"""R [F, 3, 3] and t [F, 3] of frames, head to camera."""
IDENTITY_FRAMES = 512
FOCAL_FRAMES = 60
REST_FRAMES = 24
NEAR_STEPS = 5
"""Steps of a pose from one near it."""
INNER = tuple(i for i in range(0, 468, 8) if i not in FACE_OUTLINE)
FIT_POINTS = tuple(dict.fromkeys(IBUG68_FROM_478 + INNER))
"""The landmarks carried to each frame: iBUG-68 first, then an eighth of the inner face."""


@dataclass(frozen=True)
class ClipCodes:
    """Codes of a clip before anything is smoothed.

    Attributes:
        z_id: [D_id], one for the clip.
        z_ex: [T, D_ex]; anything finite in frames that were not seen.
        predicted: a regressor gave them, which knows no person's own rest expression.
    """

    z_id: NDArray[np.float32]
    z_ex: NDArray[np.float32]
    predicted: bool


@dataclass(frozen=True)
class ClipFit:
    """Codes, camera and poses of a clip; arrays of T frames as in :class:`nphm_track.tracking.records.Track`.

    ``unsmoothed_error_px`` [T] is the landmark error of the single frames' poses, before these were smoothed: of how
    well a head fits it says more than ``landmark_error_px``, which also grows with fast turns.
    """

    z_id: NDArray[np.float32]
    z_ex: NDArray[np.float32]
    camera: Intrinsics
    R: NDArray[np.float64]
    t: NDArray[np.float64]
    landmarks_fit: NDArray[np.float32]
    landmark_error_px: NDArray[np.float32]
    filled: NDArray[np.bool_]
    unsmoothed_error_px: NDArray[np.float32]


@torch.inference_mode()
def predict_codes(
    regressor: LandmarkRegressor,
    log: NDArray,
    size: tuple[int, int],
    identity_rows: NDArray[np.int64],
    batch: int = 128,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Codes from landmarks: z_id of ``identity_rows`` [M, D_id]; z_ex of every frame [T, D_ex], zeros where unseen."""
    device = regressor.classifiers.device
    rows = np.flatnonzero(column(log, "seen"))
    z_id, z_ex = [], np.zeros((len(log), regressor.config.expression_dim), np.float32)
    for k in range(0, len(rows), batch):
        some = rows[k : k + batch]
        landmarks = torch.from_numpy(log["landmarks"][some]).to(device)
        scores = torch.from_numpy(log["blendshapes"][some]).to(device)
        image = torch.tensor(size, dtype=torch.float32, device=device).expand(len(some), 2)
        identity, expression = regressor(landmarks, scores, image)
        z_id.append(identity.cpu().numpy()[np.isin(some, identity_rows)])
        z_ex[some] = expression.cpu().numpy()
        release(log)
    return np.concatenate(z_id), z_ex


def identity_votes(
    regressor: LandmarkRegressor | None, log: NDArray, size: tuple[int, int]
) -> tuple[IdentityVotes, NDArray[np.float32]]:
    """What the frames say about the identity, frontal and certain ones louder; and predicted z_ex of all [T, D_ex].

    Without ``regressor`` the codes that were predicted from the images are in the log.
    """
    voters = spread_rows(column(log, "seen"), IDENTITY_FRAMES)
    weight = log["confidence"][voters] * frontalness(log["landmarks"][voters]) ** 2 + 1e-3
    if regressor is None:
        variance = log["log_variance"][voters][:, 1:].mean(1)  # of the identity's parts
        weight = weight * np.exp(-variance)
        return IdentityVotes(log["z_id"][voters].astype(np.float32), weight), column(log, "z_ex")
    z_id, z_ex = predict_codes(regressor, log, size, voters)
    return IdentityVotes(z_id, weight), z_ex


def predicted_codes(
    regressor: LandmarkRegressor | None,
    log: NDArray,
    size: tuple[int, int],
    identity: NDArray[np.float32] | None = None,
) -> ClipCodes:
    """The feed-forward codes, as ``identity_votes`` finds them; ``identity`` [D_id] is kept when it is given."""
    votes, z_ex = identity_votes(regressor, log, size)
    return ClipCodes(merge_identity(votes.z_id, votes.weight) if identity is None else identity, z_ex, predicted=True)


def frontalness(landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 for a frontal view, towards 0 in profile [T], from how symmetric the nose lies between the eye corners."""
    right, left = (
        np.linalg.norm(landmarks[:, NOSE_TIP, :2] - landmarks[:, corner, :2], axis=-1) for corner in OUTER_EYE_CORNERS
    )
    return np.minimum(right, left) / np.maximum(np.maximum(right, left), 1e-6)


def fit_points(model: NphmDecoder) -> tuple[int, ...]:
    """Those of ``FIT_POINTS`` that a head model knows, iBUG-68 points first."""
    known = frozenset(known_landmarks(model))
    return tuple(p for p in FIT_POINTS if p in known)


def ibug_rows(model: NphmDecoder) -> NDArray[np.int64]:
    """Which iBUG-68 points the first of ``fit_points`` are: all 68, or those that are anchors."""
    known = frozenset(known_landmarks(model))
    return np.array([i for i, p in enumerate(IBUG68_FROM_478) if p in known])


def landmark_carrier(model: NphmDecoder, z_id: NDArray, rig: Rig | None = None) -> Carrier:
    """The fit points of one identity: on its rig or, of a model without named expressions, carried by the network."""
    if knows_arkit(model):
        return RigLandmarks(model, rig or open_rig(model, z_id), fit_points(model))
    code = torch.as_tensor(z_id, dtype=torch.float32, device=model.mean_anchors.device)
    return LandmarkCarrier(model, code, fit_points(model))


def head_landmarks(carry: Carrier, z_ex: NDArray, batch: int = 64) -> NDArray[np.float32]:
    """The fit points of each frame [T, N, 3], metres, head space."""
    parts = torch.as_tensor(z_ex, dtype=torch.float32, device=carry.model.mean_anchors.device).split(batch)
    return np.concatenate([carry(part).cpu().numpy() for part in parts])


def point_weights(points: Sequence[int] = FIT_POINTS) -> Tensor:
    """Weight [N] of each fit point in the pose."""
    return torch.from_numpy(landmark_model.POSE.of(points)).float()


def fit_clip(
    model: NphmDecoder,
    codes: ClipCodes,
    log: NDArray,
    size: tuple[int, int],
    camera: Intrinsics | None,
    strength: float,
    progress: Progress,
    rig: Rig | None = None,
) -> ClipFit:
    """Smooth the expressions, solve the focal length and every pose; ``camera`` is kept when it is given.

    ``rig`` is the person's, where it is known. ``log`` has at least one frame in which the face was seen. It is read in
    pieces.
    """
    seen, times, shots, confidence = (column(log, name) for name in ("seen", "time", "shot", "confidence"))
    filled = fill_gaps(seen, times, shots)
    trusted = np.where(seen, confidence, 0.0)
    z_ex = smooth_codes(codes.z_ex, times, trusted, strength, shots).astype(np.float32)
    carry = landmark_carrier(model, codes.z_id, rig)
    if camera is None:
        camera = solve_camera(carry, log, z_ex, size, progress)
    if codes.predicted and model.config.expression_names:
        z_ex += rest_code(carry, log, seen, z_ex, camera)
        if seen.sum() > 1:  # of a single image the rest expression says it all
            added = _frame_codes(carry, log, seen, z_ex, camera)
            z_ex += smooth_codes(added, times, trusted, strength, shots).astype(np.float32)

    T, ibug, index = len(log), ibug_rows(model), list(fit_points(model))
    weights = point_weights(index)
    R, t = np.tile(np.eye(3), (T, 1, 1)), np.tile([0.0, 0.0, 1.0], (T, 1))
    points68 = np.full((T, 68, 3), np.nan, np.float32)
    observed = np.full((T, 68, 2), np.nan, np.float32)
    unsmoothed = np.full(T, np.nan, np.float32)
    needed = np.flatnonzero(seen | filled)
    for k in range(0, len(needed), 256):
        some = needed[k : k + 256]
        points = head_landmarks(carry, z_ex[some])
        points68[np.ix_(some, ibug)] = points[:, : len(ibug)]
        visible = seen[some]
        if visible.any():
            frames = some[visible]
            seen_points = log["landmarks"][frames][:, index, :2]
            observed[np.ix_(frames, ibug)] = seen_points[:, : len(ibug)]
            pixels = camera.undistort(seen_points.astype(np.float64))
            R[frames], t[frames] = solve_poses(points[visible], pixels, camera, weights)
            single = camera.project(in_camera(points[visible][:, : len(ibug)], R[frames], t[frames]))
            unsmoothed[frames] = np.linalg.norm(single - seen_points[:, : len(ibug)], axis=-1).mean(1)
        release(log)
        progress.advance(len(some))
    R, t = smooth_poses(R, t, times, trusted, strength, shots)

    projected = np.full((T, 68, 2), np.nan, np.float32)
    for k in range(0, len(needed), 1024):
        some = needed[k : k + 1024]
        projected[some] = camera.project(in_camera(points68[some], R[some], t[some]))
    error = np.linalg.norm(projected - observed, axis=-1)[:, ibug].mean(1)  # NaN where nothing was observed
    return ClipFit(codes.z_id, z_ex, camera, R, t, projected, error, filled & ~seen, unsmoothed)


def solve_camera(
    carry: Carrier, log: NDArray, z_ex: NDArray[np.float32], size: tuple[int, int], progress: Progress
) -> Intrinsics:
    """A camera with the most probable focal length for a head with expressions z_ex [T, D_ex]."""
    some, index = spread_rows(column(log, "seen"), FOCAL_FRAMES), list(fit_points(carry.model))
    pixels = torch.from_numpy(log["landmarks"][some][:, index, :2])
    focal = solve_focal(torch.from_numpy(head_landmarks(carry, z_ex[some])), pixels, size, point_weights(index))
    progress.note(f"focal length {focal.focal_px:.0f} px ({focal.fov_deg:.0f} degrees across), solved from the clip")
    if size[0] <= size[1]:
        progress.note("if this is a cut-out of a wider picture, its focal length is longer: give it with --focal")
    return Intrinsics.from_focal(focal.focal_px, size)


def rest_code(
    carry: Carrier, log: NDArray, seen: NDArray[np.bool_], z_ex: NDArray[np.float32], camera: Intrinsics
) -> NDArray[np.float32]:
    """Code [D_ex] of the person's rest expression, to be added to every frame."""
    some = spread_rows(seen, REST_FRAMES)
    landmarks = log["landmarks"][some][:, :, :2]
    pixels = camera.undistort(landmarks[:, list(FIT_POINTS)].astype(np.float64))
    eyes = float(np.median(eye_distance(landmarks)))
    basis = carry.model.expression_basis.detach().cpu().numpy()
    effect = landmark_effects(carry, z_ex[some].mean(0))
    added, pose = np.zeros(basis.shape[1]), None
    for _ in range(2):
        points = head_landmarks(carry, z_ex[some] + (basis @ added).astype(np.float32))
        pose = solve_poses(points, pixels, camera, point_weights(), pose)
        evidence = landmark_evidence(effect, points, pixels, *pose, camera, FIT_POINTS, landmark_model.REST, eyes)
        added = rest_weights(evidence, added)
    return (basis @ added).astype(np.float32)


def _frame_codes(
    carry: Carrier, log: NDArray, seen: NDArray[np.bool_], z_ex: NDArray[np.float32], camera: Intrinsics
) -> NDArray[np.float32]:
    """Codes [T, D_ex] to be added to the single frames: what their landmarks show and the predicted codes miss.

    What all frames share is left out: it is the rest expression's to say, which knows how far to trust it.
    """
    spread = spread_rows(seen, REST_FRAMES)
    solve = FrameExpressions(carry, camera, z_ex[spread].mean(0))
    shared = solve(z_ex[spread], log["landmarks"][spread][:, :, :2]).mean(0)
    added, rows = np.zeros_like(z_ex), np.flatnonzero(seen)
    for k in range(0, len(rows), 64):
        some = rows[k : k + 64]
        added[some] = solve(z_ex[some], log["landmarks"][some][:, :, :2], shared) @ solve.basis.T
        release(log)
    return added


class FrameExpressions:
    """What the landmarks of single frames ask of one person's expressions; frames may come one by one or together.

    Args:
        carry: the person's landmarks.
        camera: intrinsics.
        mean: [D_ex] the mean expression.
    """

    def __init__(self, carry: Carrier, camera: Intrinsics, mean: NDArray[np.float32]) -> None:
        self.carry, self.camera = carry, camera
        self.basis = carry.model.expression_basis.detach().cpu().numpy()
        self._inverse = np.linalg.pinv(self.basis).T
        self._low = expression_prior.FRAME.lowest(carry.model.config.expression_names)
        self._effect, self._weights = landmark_effects(carry, mean), point_weights()

    def __call__(
        self,
        z_ex: NDArray[np.float32],
        landmarks: NDArray[np.float32],
        shared: NDArray[np.float64] | None = None,
        near: Poses | None = None,
    ) -> NDArray[np.float64]:
        """Changes [F, E] of the weights of predicted codes z_ex [F, D_ex] by observed landmarks [F, 478, 2] (px).

        ``shared`` as in :func:`nphm_track.tracking.rest.frame_weights`; ``near`` are poses near those sought.
        """
        start = z_ex.astype(np.float64) @ self._inverse
        pixels = self.camera.undistort(landmarks[:, list(FIT_POINTS)].astype(np.float64))
        now = start
        # Of the predicted expressions: later ones may have taken a nearer head for an expression.
        pose = solve_poses(head_landmarks(self.carry, z_ex), pixels, self.camera, self._weights, near)
        for common in (None, shared):
            points = head_landmarks(self.carry, z_ex + ((now - start) @ self.basis.T).astype(np.float32))
            believed, eyes = landmark_model.FRAME, eye_distance(landmarks)
            evidence = landmark_evidence(self._effect, points, pixels, *pose, self.camera, FIT_POINTS, believed, eyes)
            now = frame_weights(evidence, start, now, common, self._low)
        return now - start


def in_camera(points: NDArray, R: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Head-space points [F, N, 3] of each frame in camera space."""
    return np.asarray(points @ R.swapaxes(-1, -2) + t[:, None])


def solve_poses(
    points: NDArray[np.float32],
    pixels: NDArray[np.float64],
    camera: Intrinsics,
    weights: Tensor,
    near: Poses | None = None,
) -> Poses:
    """Poses of frames, found from scratch or from poses ``near`` them."""
    known = torch.from_numpy(points).double(), torch.from_numpy(pixels), torch.from_numpy(camera.K), weights
    if near is None:
        pose = solve_pnp(*known)
    else:
        pose = solve_pnp(*known, (torch.from_numpy(near[0]), torch.from_numpy(near[1])), iterations=NEAR_STEPS)
    return pose.R.numpy(), pose.t.numpy()
