"""Linear heads fitted to the landmarks of photos: where every vertex of a head lies in somebody's picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track import expression_prior, landmark_model
from nphm_track.conventions import N_LANDMARKS
from nphm_track.errors import InputError
from nphm_track.faces.landmarker import FaceLandmarker, FaceObservation
from nphm_track.rigid import cross_matrix, rotation
from nphm_track.training.ict import IctHeads

LANDMARKS = "training/assets/ict_landmarks478.npz"
PHOTO_DISTANCE = 1.1
"""Metres between camera and head that a photo of unknown focal length is taken for."""
IDENTITY_SEEN_SIGMA = 0.7
"""Of identity weights about those that the networks see in the photo."""
RANGE, HOLD = (expression_prior.PHOTO.low, expression_prior.PHOTO.high), 1e7
UNSEEN_SIGMA = 30.0
"""How much noisier points are that a fit shall not see."""


def largest_face(landmarker: FaceLandmarker, image: NDArray[np.uint8]) -> FaceObservation | None:
    """The widest face of a photo [H, W, 3] RGB, looked at twice as in a clip's second frame; None without a face."""
    faces = landmarker.find(image, thorough=False)
    if not faces:
        return None
    face = max(faces, key=lambda f: float(np.ptp(f.box[::2])))
    return landmarker.observe(image, face.next_roi[None])[0]


@dataclass(frozen=True)
class LandmarkBasis:
    """The 478 landmarks as linear functions of ICT weights, metres: mean [478, 3], identity and expression modes."""

    mean: Tensor
    identity: Tensor  # [100, 478, 3]
    expression: Tensor  # [E, 478, 3]

    def points(self, w: Tensor, e: Tensor) -> Tensor:
        """Points [B, 478, 3] of weights w [B, 100], e [B, E]."""
        return (
            self.mean + torch.einsum("bk,kpc->bpc", w, self.identity) + torch.einsum("bk,kpc->bpc", e, self.expression)
        )


def landmark_basis(heads: IctHeads, path: str | Path = LANDMARKS) -> LandmarkBasis:
    """Read where the landmarks lie on ICT heads. Raises InputError when the file is missing."""
    if not Path(path).is_file():
        raise InputError(f"no {path}: it is written by training/calibrate_landmarks.py")
    where = np.load(path)
    corner, bary = heads.faces[where["face"]], where["bary"][..., None]
    mean = (heads.neutral[corner] * bary).sum(1)
    modes = [torch.from_numpy((b[:, corner] * bary).sum(2)).double() for b in (heads.identity, heads.expression)]
    return LandmarkBasis(torch.from_numpy(mean).double(), *modes)


def landmark_weights(unseen: Sequence[int] = ()) -> NDArray[np.float64]:
    """Weights [478] of the landmarks in a fit."""
    weight = landmark_model.PHOTO.of(range(N_LANDMARKS))
    weight[list(unseen)] = 1 / UNSEEN_SIGMA**2
    return weight


@dataclass(frozen=True)
class PhotoFit:
    """Fits of B photos: ICT weights, camera, and RMS landmark error as a fraction of the face's RMS radius."""

    w: NDArray[np.float32]
    e: NDArray[np.float32]
    K: NDArray[np.float32]
    R: NDArray[np.float32]
    t: NDArray[np.float32]
    error: NDArray[np.float32]


def fit_photos(
    basis: LandmarkBasis,
    landmarks: NDArray[np.float32],
    size: NDArray[np.float32],
    weights: NDArray[np.float64],
    seen: tuple[Tensor, Tensor] | None = None,
    noise: float | None = None,
) -> PhotoFit:
    """Gauss-Newton on pose, identity and expression for landmarks [B, 478, 2] px in images of ``size`` [B, 2] px.

    ``weights`` [478]: trust in the landmarks (``landmark_weights``).
    ``seen``: weights w [B, 100] and e [B, E] that the networks see in the images; without them the heads are held to
    the mean one. ``noise``: of the landmarks, beside the prior; that of ``landmark_model`` without.
    """
    from nphm_track.cameras.pnp import solve_pnp

    pixels = torch.from_numpy(landmarks).double()
    b = len(pixels)
    radius = (pixels - pixels.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()
    reference = (basis.mean[:, :2] - basis.mean[:, :2].mean(0)).square().sum(-1).mean().sqrt()
    K = torch.zeros(b, 3, 3, dtype=torch.float64)
    K[:, 0, 0] = K[:, 1, 1] = PHOTO_DISTANCE * radius / reference
    K[:, :2, 2] = torch.from_numpy(size).double() / 2
    K[:, 2, 2] = 1
    weight = torch.from_numpy(weights)
    n_w, n_e = len(basis.identity), len(basis.expression)
    w, e = (torch.zeros(b, n, dtype=torch.float64) for n in (n_w, n_e))
    sigma, usual = (1.0, expression_prior.PHOTO.sigma), landmark_model.PHOTO.sigma
    if seen is not None:
        w, e = seen[0].double(), seen[1].double().clamp(*RANGE)
        sigma = IDENTITY_SEEN_SIGMA, expression_prior.PHOTO_SEEN.sigma
        usual = landmark_model.PHOTO_SEEN.sigma
    noise = usual if noise is None else noise
    middle = torch.cat([w, e], 1)
    pose = solve_pnp(basis.points(w, e), pixels, K, weight)
    R, t = pose.R, pose.t
    modes = torch.cat([basis.identity, basis.expression])  # [M, 478, 3]
    prior = torch.cat([torch.full((n,), s**-2) for n, s in zip((n_w, n_e), sigma, strict=True)]).double()
    for _ in range(8):
        points = basis.points(w, e)
        residual, jacobian = _linearise(points, modes, R, t, K, pixels)
        scale = (weight[:, None] / (noise * radius[:, None, None]) ** 2).expand(-1, -1, 2).flatten(1)  # [B, 956]
        weighted = jacobian * scale[..., None]
        normal = weighted.mT @ jacobian
        state = torch.cat([w, e], 1) - middle
        right = (weighted.mT @ residual[..., None])[..., 0]
        right[:, 6:] -= prior * state
        normal[:, range(6, 6 + n_w + n_e), range(6, 6 + n_w + n_e)] += prior
        step = torch.linalg.solve(normal, right)
        for _ in range(2):  # weights that run out of their range are held at its end, and the others solved again
            after = e + step[:, 6 + n_w :]
            held = (after < RANGE[0]) | (after > RANGE[1])
            target = after.clamp(*RANGE) - e
            diagonal = torch.diag_embed(HOLD * held)
            normal[:, 6 + n_w :, 6 + n_w :] += diagonal
            right[:, 6 + n_w :] += HOLD * held * target
            step = torch.linalg.solve(normal, right)
        R = rotation(step[:, :3]) @ R
        t = t + step[:, 3:6]
        w, e = w + step[:, 6 : 6 + n_w], (e + step[:, 6 + n_w :]).clamp(*RANGE)
    residual = _linearise(basis.points(w, e), None, R, t, K, pixels)[0]
    error = residual.view(b, -1, 2).square().sum(-1).mul(weight).mean(1).sqrt() / radius
    return PhotoFit(*(x.float().numpy() for x in (w, e, K, R, t, error)))


def _linearise(
    points: Tensor, modes: Tensor | None, R: Tensor, t: Tensor, K: Tensor, pixels: Tensor
) -> tuple[Tensor, Tensor]:
    """Residual [B, 956] px and its derivative [B, 956, 6 + M] by rotation (left), translation and modes."""
    turned = points @ R.mT
    camera = turned + t[:, None]
    z = camera[..., 2:]
    focal = K[:, None, :1, 0]
    projected = camera[..., :2] / z * focal + K[:, None, :2, 2]
    residual = (pixels - projected).flatten(1)
    if modes is None:
        return residual, residual
    zero = torch.zeros_like(z[..., 0])
    f = focal[..., 0] / z[..., 0]
    ratio = camera[..., :2] / z
    of_camera = torch.stack(  # [B, 478, 2, 3]
        [torch.stack([f, zero, -f * ratio[..., 0]], -1), torch.stack([zero, f, -f * ratio[..., 1]], -1)], -2
    )
    of_rotation = of_camera @ -cross_matrix(turned)
    of_modes = torch.einsum("bpic,bcd,mpd->bpim", of_camera, R, modes)
    return residual, torch.cat([of_rotation, of_camera, of_modes], -1).flatten(1, 2)
