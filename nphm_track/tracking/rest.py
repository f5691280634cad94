"""What the landmarks add to the predicted expressions: a person's rest expression, and what moves from frame to frame.

The regressor knows heads whose brows, lids and lips rest where ICT-FaceKit's do. People differ, and the difference is
the same in every frame: one vector of ARKit-like weights, added to all frames. What it misses of a frame beyond what it
misses of all frames, raised brows or pursed lips, is added to that frame. Both are linear least squares under a prior,
poses eliminated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nphm_track import expression_prior
from nphm_track.bounded import solve_within
from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.heads.landmarks import LandmarkCarrier
from nphm_track.heads.rig import RigLandmarks
from nphm_track.landmark_model import REST, LandmarkModel, openings

STEP = 0.15
"""Weight by which an expression is moved to see what it does to the landmarks."""


def rest_weights(
    evidence: Evidence,
    now: NDArray[np.float64] | float = 0.0,
    low: NDArray[np.float64] | float = -np.inf,
    high: NDArray[np.float64] | float = np.inf,
) -> NDArray[np.float64]:
    """Weights [E] of the expression to add to all frames, where ``now`` [E] has been added before the evidence.

    They are not outside ``low`` and ``high`` [E].
    """
    frames, n = evidence.gradient.shape
    share = (REST.sigma / REST.shared_sigma) ** 2 / frames
    hessian = share * evidence.hessian.sum(0)
    wanted = share * evidence.gradient.sum(0) + hessian @ np.broadcast_to(now, n)
    prior = expression_prior.REST
    low, high = np.maximum(low, -prior.step), np.minimum(high, prior.step)
    return solve_within(np.eye(n) / prior.sigma**2 + hessian, wanted[None], low, high)[0]


def frame_weights(
    evidence: Evidence,
    start: NDArray[np.float64],
    now: NDArray[np.float64],
    shared: NDArray[np.float64] | None = None,
    low: NDArray[np.float64] | float = -np.inf,
) -> NDArray[np.float64]:
    """The most probable weights [F, E] of the expressions of single frames.

    Args:
        evidence: what their landmarks say at the weights ``now`` [F, E].
        start: [F, E] the predicted weights, about which the prior is.
        shared: [E] the part of a change from ``start`` that all frames share, which is not told by these frames; None
            where it is yet to be found: then without a range.
        low: [E] the lower ends of the weights' range.
    """
    prior = expression_prior.FRAME
    hessian = np.eye(now.shape[1]) / prior.sigma**2 + evidence.hessian
    wanted = evidence.gradient + (evidence.hessian @ now[..., None])[..., 0] + start / prior.sigma**2
    if shared is None:
        return np.asarray(np.linalg.solve(hessian, wanted[..., None])[..., 0])
    # Taken off what is wanted, not off the solution: what a bound keeps one weight from, others do instead.
    return solve_within(hessian, wanted - hessian @ shared, low, prior.high)


@dataclass(frozen=True)
class Evidence:
    """What the landmarks of F frames say about weights: ``hessian`` [F, E, E] and ``gradient`` [F, E]."""

    hessian: NDArray[np.float64]
    gradient: NDArray[np.float64]


def landmark_evidence(
    effect: NDArray[np.float64],
    points: NDArray[np.float32],
    pixels: NDArray[np.float64],
    R: NDArray[np.float64],
    t: NDArray[np.float64],
    camera: Intrinsics,
    index: Sequence[int],
    model: LandmarkModel,
    eye_distance: float | NDArray[np.floating],
) -> Evidence:
    """Normal equations of the weights, whatever the pose is near the one given.

    Args:
        effect: [E, N, 3] from ``landmark_effects``.
        points: [F, N, 3] landmarks of some frames, metres, head space.
        pixels: [F, N, 2] the observed ones, undistorted.
        R, t: [F, 3, 3], [F, 3] the poses that fit best, about which the distance is as sure as ``model`` says.
        camera: intrinsics.
        index: which of the 478 landmarks they are [N].
        model: what is believed of them.
        eye_distance: between the outer eye corners, pixels, one or [F].
    """
    frames = len(points)
    focal = np.array([camera.K[0, 0], camera.K[1, 1]])
    turned = points @ R.swapaxes(-1, -2)
    x = turned + t[:, None]
    residual = pixels - (x[..., :2] / x[..., 2:] * focal + camera.K[:2, 2])
    to_pixels = np.zeros((*x.shape[:2], 2, 3))
    to_pixels[..., [0, 1], [0, 1]] = focal / x[..., 2:]
    to_pixels[..., 2] = -x[..., :2] * focal / x[..., 2:] ** 2
    slope = to_pixels @ R[:, None]  # [F, N, 2, 3]
    jacobian = slope @ effect.transpose(1, 2, 0)
    turn = np.cross(np.eye(3), turned[:, :, None])  # d(omega x p) / d omega_i = e_i x p
    pose = np.concatenate([to_pixels @ turn.swapaxes(-1, -2), to_pixels], -1)

    # Rows of single points and, where rims face each other, of the gap between them; all in standard deviations.
    root, upper_lower = np.sqrt(model.of(index)) / model.sigma, openings(index)

    def rows(of_points: NDArray[np.float64]) -> NDArray[np.float64]:
        gaps = np.diff(of_points[:, upper_lower], axis=2)[:, :, 0] / model.opening
        return np.concatenate([of_points * root[:, None, None], gaps], 1).reshape(frames, -1, of_points.shape[-1])

    nearer = np.zeros((frames, 1, 6))
    nearer[:, 0, 5] = np.asarray(eye_distance) / (model.distance * t[:, 2])
    jacobian, residual = (np.pad(rows(a), ((0, 0), (0, 1), (0, 0))) for a in (jacobian, residual[..., None]))
    pose = np.concatenate([rows(pose), nearer], 1)
    q, _ = np.linalg.qr(pose)
    jacobian, residual = (a - q @ (q.swapaxes(-1, -2) @ a) for a in (jacobian, residual))
    scale = np.broadcast_to(1 / np.asarray(eye_distance) ** 2, frames)[:, None]
    across = jacobian.swapaxes(-1, -2)
    return Evidence(scale[..., None] * (across @ jacobian), scale * (across @ residual)[..., 0])


def landmark_effects(carry: LandmarkCarrier | RigLandmarks, mean: NDArray[np.float32]) -> NDArray[np.float64]:
    """Motion of the landmarks [E, N, 3] (metres) for a unit of each expression, near the mean expression."""
    basis = carry.model.expression_basis.detach().T  # [E, D_ex]
    base = torch.from_numpy(mean).to(basis)
    points = torch.cat([carry(part) for part in torch.cat([base[None], base + STEP * basis]).split(64)])
    return ((points[1:] - points[:1]) / STEP).double().cpu().numpy()
