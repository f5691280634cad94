"""Codes of a clip by optimisation alone, for head models that no regressor was trained for.

Starting from the mean codes, an identity and each frame's expression and pose are found by Adam on the reprojection of
the landmarks that the head knows (all 478, or a converted MonoNPHM's 35 anchors among them), posed by inverting the
deformation; a prior keeps codes near those of the training heads. Frames are independent: smoothing comes later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track import expression_prior
from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.cameras.pnp import solve_pnp
from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import InputError
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.inverse import PosedPoints, attach_gradient, pose_points
from nphm_track.heads.landmarks import TOLERANCE, LandmarkCarrier
from nphm_track.heads.mononphm import AnchoredDecoder, CodeStatistics
from nphm_track.landmark_model import FITTED_CODES as LANDMARKS
from nphm_track.rigid import rotation
from nphm_track.robust import geman_mcclure
from nphm_track.tracking.fit import ClipCodes, fit_points, frontalness, landmark_carrier, point_weights, solve_camera
from nphm_track.tracking.identity import IdentityVotes
from nphm_track.tracking.observations import column, release
from nphm_track.tracking.observe import spread_rows
from nphm_track.tracking.progress import Progress

INDEPENDENT_FRAMES = 10
"""Frames share their errors too: for the identity a clip counts as this many at most."""
WINDOW = 64
"""Frames optimised in one step."""
VOTERS = 128
"""Frames of a take among several of one person that its identity is fitted to."""
STEPS = 120
"""Passes over the clip."""


@dataclass(frozen=True)
class CodePrior:
    """Codes are mean [D] + basis [D, k] w with w standard normal, and no longer than ``norm_bound``."""

    mean: Tensor
    basis: Tensor
    norm_bound: float = math.inf

    @classmethod
    def of_statistics(cls, statistics: CodeStatistics | None, dim: int) -> CodePrior:
        """Elements vary on their own; without statistics the codes are taken to fill the unit ball."""
        if statistics is None:
            return cls(torch.zeros(dim), torch.eye(dim) * dim**-0.5, 1.0)
        return cls(statistics.mean, torch.diag(statistics.spread), statistics.norm_bound)

    def to(self, like: Tensor) -> CodePrior:
        return CodePrior(self.mean.to(like), self.basis.to(like), self.norm_bound)

    def __call__(self, w: Tensor) -> Tensor:
        """Codes [..., D] of weights [..., k]."""
        z = self.mean + w @ self.basis.mT
        return z / (z.norm(dim=-1, keepdim=True) / self.norm_bound).clamp_min(1)


def code_priors(model: NphmDecoder) -> tuple[CodePrior, CodePrior]:
    """Priors of a head model's identity and expression codes: its own linear ones, else training statistics."""
    c = model.config
    known = (model.identity_codes, model.expression_codes) if isinstance(model, AnchoredDecoder) else (None, None)
    identity = CodePrior.of_statistics(known[0], c.identity_dim)
    expression = CodePrior.of_statistics(known[1], c.expression_dim)
    if c.identity_basis:
        identity = CodePrior(
            model.mean_identity, model.identity_basis.detach(), identity.norm_bound if known[0] else math.inf
        )
    if c.expression_names:
        basis = expression_prior.FITTED_CODES.sigma * model.expression_basis.detach()
        expression = CodePrior(torch.zeros(c.expression_dim), basis)
    return identity, expression


def mean_identity(model: NphmDecoder) -> NDArray[np.float32]:
    """The code [D_id] that a fit starts from."""
    return code_priors(model)[0].mean.cpu().numpy()


def fitted_codes(
    model: NphmDecoder,
    log: NDArray,
    camera: Intrinsics,
    progress: Progress,
    identity: NDArray[np.float32] | None = None,
) -> ClipCodes:
    """Fit the codes of every frame in which the face was seen; ``identity`` [D_id] is kept when it is given.

    Raises ModelError for a head model without landmarks.
    """
    rows, index, device = np.flatnonzero(column(log, "seen")), list(fit_points(model)), model.mean_anchors.device
    seen = np.concatenate(
        [log["landmarks"][part][:, index, :2] for part in np.array_split(rows, len(rows) // 1024 + 1)]
    )
    release(log)
    pixels = torch.from_numpy(camera.undistort(seen)).to(device, torch.float32)
    K = torch.from_numpy(camera.K).to(pixels)
    known = None if identity is None else torch.from_numpy(identity).to(pixels)
    progress.stage("codes", STEPS)
    weights = point_weights(index).to(pixels)
    found = fit_codes(model, index, pixels, weights, K, identity=known, steps=STEPS, advance=progress.advance)
    z_ex = np.zeros((len(log), model.config.expression_dim), np.float32)
    z_ex[rows] = found[1].cpu().numpy()
    return ClipCodes(found[0].cpu().numpy(), z_ex, predicted=False)


def fitted_vote(
    model: NphmDecoder, log: NDArray, camera: Intrinsics | None, size: tuple[int, int], progress: Progress
) -> IdentityVotes:
    """The identity that at most ``VOTERS`` frames of a clip agree on, as one vote with the weight of all of them.

    ``camera`` is solved from the clip when it is None.
    """
    camera = camera or mean_camera(model, log, size, progress, None)
    voters = log[spread_rows(column(log, "seen"), VOTERS)]
    codes = fitted_codes(model, voters, camera, progress)
    weight = voters["confidence"] * frontalness(voters["landmarks"]) ** 2
    return IdentityVotes(codes.z_id[None], np.array([weight.sum() + 1e-3], np.float32))


def mean_camera(
    model: NphmDecoder, log: NDArray, size: tuple[int, int], progress: Progress, identity: NDArray[np.float32] | None
) -> Intrinsics:
    """The camera of a clip by the head of ``identity``, or the mean one, in its mean expression."""
    mean = code_priors(model)[1].mean.cpu().numpy()
    carry = landmark_carrier(model, mean_identity(model) if identity is None else identity)
    return solve_camera(carry, log, np.broadcast_to(mean, (len(log), len(mean))), size, progress)


def fit_codes(
    model: NphmDecoder,
    points: Sequence[int],
    pixels: Tensor,
    weights: Tensor,
    K: Tensor,
    *,
    identity: Tensor | None = None,
    steps: int = STEPS,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Tensor, Tensor]:
    """Codes z_id [D_id] and z_ex [T, D_ex] of T frames.

    Args:
        points: N landmarks (of the 478) that the model knows.
        pixels: [T, N, 2] where they were seen, undistorted. weights: [N] trust in them.
        K: [3, 3].
        identity: [D_id], kept when it is given.
        steps: passes over the clip; ``advance`` hears of each.

    Raises:
        InputError: no frame has enough landmarks for a head pose.
    """
    fit = _Fit(model, points, pixels, weights, K, identity)
    codes = [fit.expression] if identity is not None else [fit.identity, fit.expression]
    optimizer = torch.optim.Adam(
        [{"params": codes, "lr": 0.15}, {"params": [fit.turn], "lr": 0.005}, {"params": [fit.shift], "lr": 0.002}]
    )
    windows = torch.arange(len(pixels), device=pixels.device).split(WINDOW)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps * len(windows)), eta_min=1e-4)
    for _ in range(steps):
        for frames in windows:
            optimizer.zero_grad()
            fit.loss(frames).backward()
            optimizer.step()
            schedule.step()
        advance(1)
    with torch.no_grad():
        return fit.z_id().detach(), fit.of_expression(fit.expression).detach()


class _Fit:
    """The unknowns of a clip: weights of the priors, and poses relative to where they started."""

    def __init__(
        self,
        model: NphmDecoder,
        points: Sequence[int],
        pixels: Tensor,
        weights: Tensor,
        K: Tensor,
        known: Tensor | None,
    ) -> None:
        self.model, self.points, self.pixels, self.weights, self.K = model, list(points), pixels, weights, K
        self.of_identity, self.of_expression = (prior.to(pixels) for prior in code_priors(model))
        self.known, T = known, len(pixels)
        self.identity = pixels.new_zeros(self.of_identity.basis.shape[1]).requires_grad_()
        self.expression = pixels.new_zeros(T, self.of_expression.basis.shape[1]).requires_grad_()
        self.turn, self.shift = pixels.new_zeros(T, 3).requires_grad_(), pixels.new_zeros(T, 3).requires_grad_()
        with torch.no_grad():
            carry = LandmarkCarrier(model, self.z_id(), self.points)
            start = carry(self.of_expression(self.expression[:1]))[0]  # metres
        pose = solve_pnp(start, pixels, K, weights)
        if not bool(pose.valid.all()):
            raise InputError("a frame has too few landmarks for a head pose")
        self.R, self.t = pose.R, pose.t
        self.posed = (start / MODEL_UNIT).repeat(T, 1, 1)
        self.inverse = torch.eye(3).to(pixels).repeat(T, len(self.points), 1, 1)

    def z_id(self) -> Tensor:
        return self.of_identity(self.identity) if self.known is None else self.known

    def in_camera(self, frames: Tensor) -> Tensor:
        """Landmarks [F, N, 3] in camera space, metres, with gradients to all unknowns."""
        z_id, z_ex = self.z_id(), self.of_expression(self.expression[frames])
        canonical = self.model.landmarks(z_id)[self.points].expand(len(frames), -1, -1)
        z_id = z_id.expand(len(frames), -1)
        warm = PosedPoints(self.posed[frames], self.inverse[frames], torch.zeros_like(canonical[..., 0]))
        posed = pose_points(
            self.model, canonical.detach(), z_id.detach(), z_ex.detach(), warm=warm, tolerance=TOLERANCE
        )
        self.posed[frames], self.inverse[frames] = posed.points, posed.inverse_jacobian
        head = attach_gradient(self.model, posed.points, canonical, z_id, z_ex) * MODEL_UNIT
        R = rotation(self.turn[frames]) @ self.R[frames]
        return head @ R.mT + (self.t[frames] + self.shift[frames]).unsqueeze(-2)

    def loss(self, frames: Tensor) -> Tensor:
        """Negative log posterior (twice), a frame's mean."""
        camera = self.in_camera(frames)
        depth = camera[..., 2].clamp_min(0.05)
        seen = (camera / depth.unsqueeze(-1) @ self.K.mT)[..., :2]
        metres = (seen - self.pixels[frames]) * (depth.detach() / self.K[0, 0]).unsqueeze(-1)
        cost, _ = geman_mcclure(metres.square().sum(-1) / LANDMARKS.sigma**2, LANDMARKS.outlier)
        landmark = (self.weights * cost).sum(1) / self.weights.sum()
        person = self.identity.square().sum() / min(len(self.pixels), INDEPENDENT_FRAMES)
        return LANDMARKS.evidence * landmark.mean() + self.expression[frames].square().sum(1).mean() + person
