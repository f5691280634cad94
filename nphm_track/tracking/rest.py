"""The rest expression of a person: a constant correction of the expression codes, from the landmarks of the clip.

The regressor knows heads whose brows, lids and lips rest where ICT-FaceKit's do. People differ, and the difference is
the same in every frame: one vector of ARKit-like weights, added to all frames. Linear least squares under a prior,
poses eliminated.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.heads.landmarks import LandmarkCarrier

PRIOR_SIGMA = 0.15
"""Standard deviation of a weight of the rest expression."""
LANDMARK_SIGMA = 0.02
"""Error of a landmark, as a share of the distance between the outer eye corners."""
INDEPENDENT_FRAMES = 4
"""A clip's frames share their errors: together they count as this many."""
STEP = 0.15
"""Weight by which an expression is moved to see what it does to the landmarks."""
LIMIT = 0.5


def rest_weights(
    effect: NDArray[np.float64],
    points: NDArray[np.float32],
    pixels: NDArray[np.float64],
    R: NDArray[np.float64],
    t: NDArray[np.float64],
    camera: Intrinsics,
    weights: NDArray[np.float64],
    eye_distance: float,
) -> NDArray[np.float64]:
    """Weights [E] of the expression to add.

    Args:
        effect: [E, N, 3] from ``landmark_effects``.
        points: [F, N, 3] landmarks of some frames, metres, head space.
        pixels: [F, N, 2] the observed ones, undistorted.
        R, t: [F, 3, 3], [F, 3] the poses that fit best.
        camera: intrinsics.
        weights: [N] trust in the points.
        eye_distance: between the outer eye corners, pixels.
    """
    n = len(effect)
    frames = len(points)
    evidence = min(1.0, INDEPENDENT_FRAMES / frames) / (LANDMARK_SIGMA * eye_distance) ** 2
    hessian, gradient = np.eye(n) / PRIOR_SIGMA**2, np.zeros(n)
    focal = np.array([camera.K[0, 0], camera.K[1, 1]])
    w = np.repeat(weights, 2)
    for f in range(frames):
        turned = points[f] @ R[f].T
        x = turned + t[f]
        residual = (pixels[f] - (x[:, :2] / x[:, 2:] * focal + camera.K[:2, 2])).reshape(-1)
        to_pixels = np.zeros((len(x), 2, 3))
        to_pixels[:, [0, 1], [0, 1]] = focal / x[:, 2:]
        to_pixels[:, :, 2] = -x[:, :2] * focal / x[:, 2:] ** 2
        jacobian = np.einsum("pij,jk,epk->pie", to_pixels, R[f], effect).reshape(-1, n)
        turn = np.cross(np.eye(3)[None], turned[:, None])  # d(omega x p) / d omega_i = e_i x p
        pose = np.concatenate([np.einsum("pij,pkj->pik", to_pixels, turn), to_pixels], 2).reshape(-1, 6)
        solve = np.linalg.pinv(pose * np.sqrt(w)[:, None]) * np.sqrt(w)
        jacobian, residual = jacobian - pose @ (solve @ jacobian), residual - pose @ (solve @ residual)
        hessian += evidence * (jacobian * w[:, None]).T @ jacobian
        gradient += evidence * (jacobian * w[:, None]).T @ residual
    return np.clip(np.linalg.solve(hessian, gradient), -LIMIT, LIMIT)


def landmark_effects(carry: LandmarkCarrier, mean: NDArray[np.float32]) -> NDArray[np.float64]:
    """Motion of the landmarks [E, N, 3] (metres) for a unit of each expression, near the mean expression."""
    basis = carry.model.expression_basis.detach().T  # [E, D_ex]
    base = torch.from_numpy(mean).to(basis)
    points = torch.cat([carry(part) for part in torch.cat([base[None], base + STEP * basis]).split(64)])
    return ((points[1:] - points[:1]) / STEP).double().cpu().numpy()
