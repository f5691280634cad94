"""Codes and poses of a clip by optimisation alone, for head models without regressor, landmarks or identity prior.

A converted MonoNPHM knows its 65 anchors, and 35 of them are iBUG-68 points. Starting from the mean codes, an identity
and each frame's expression and pose are found by Adam on the reprojection of these anchors, posed by inverting the
deformation; codes stay near their mean and expressions vary smoothly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from kornia.geometry.conversions import axis_angle_to_rotation_matrix
from torch import Tensor

from nphm_track.cameras.pnp import solve_pnp
from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import InputError, ModelError
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.inverse import PosedPoints, attach_gradient, pose_points
from nphm_track.training.ict import ANCHOR_LANDMARKS

NOISE = 0.002
"""Metres on the head by which a landmark is usually off its anchor."""
SMOOTHNESS = 0.25
"""Usual change of an expression between frames, in spreads of the code."""
WINDOW = 64
"""Frames optimised in one step."""


@dataclass(frozen=True)
class CodePrior:
    """Mean [D] and spread (standard deviation) [D] of a code."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def of_norm(cls, dim: int) -> CodePrior:
        """For codes trained within the unit ball, when nothing else is known of them."""
        return cls(torch.zeros(dim), torch.full((dim,), dim**-0.5))


@dataclass(frozen=True)
class AnchorFit:
    """Codes z_id [D_id], z_ex [T, D_ex]; head-to-camera poses R [T, 3, 3], t [T, 3] (OpenCV axes, metres).

    ``error_px`` [T] is the mean distance between anchors and their landmarks; NaN for frames without landmarks.
    """

    z_id: Tensor
    z_ex: Tensor
    R: Tensor
    t: Tensor
    error_px: Tensor


def fit_anchors(
    model: NphmDecoder,
    pixels: Tensor,
    weights: Tensor,
    K: Tensor,
    *,
    identity: CodePrior | None = None,
    expression: CodePrior | None = None,
    steps: int = 150,
) -> AnchorFit:
    """Fit a clip of T frames to its iBUG-68 points ``pixels`` [T, 68, 2] (undistorted), ``weights`` [T, 68], K [3, 3].

    ``steps`` counts passes over the clip. Raises ModelError for a model with other anchors than MonoNPHM's and
    InputError when no frame has landmarks.
    """
    if model.config.n_anchors <= max(ANCHOR_LANDMARKS):
        raise ModelError(f"{model.config.name} has {model.config.n_anchors} anchors, MonoNPHM's 65 are needed")
    pixels, weights = pixels[:, list(ANCHOR_LANDMARKS.values())], weights[:, list(ANCHOR_LANDMARKS.values())]
    if not bool((weights.sum(1) > 0).any()):
        raise InputError("no frame has landmarks to fit the head to")
    fit = _Fit(model, pixels, weights, K, identity, expression)
    optimizer = torch.optim.Adam(
        [
            {"params": [fit.identity, fit.expression], "lr": 0.05},
            {"params": [fit.turn], "lr": 0.005},
            {"params": [fit.shift], "lr": 0.002},
        ]
    )
    windows = torch.arange(len(pixels)).split(WINDOW)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * len(windows), eta_min=1e-4)
    for _ in range(steps):
        for frames in windows:
            optimizer.zero_grad()
            fit.loss(frames).backward()
            optimizer.step()
            schedule.step()
    return fit.result()


class _Fit:
    """The unknowns of a clip; codes in spreads from their mean, poses relative to where they started."""

    def __init__(
        self,
        model: NphmDecoder,
        pixels: Tensor,
        weights: Tensor,
        K: Tensor,
        identity: CodePrior | None,
        expression: CodePrior | None,
    ) -> None:
        self.model, self.pixels, self.weights, self.K = model, pixels, weights, K.to(pixels)
        self.chosen = list(ANCHOR_LANDMARKS)
        self.of_identity = identity or CodePrior.of_norm(model.config.identity_dim)
        self.of_expression = expression or CodePrior.of_norm(model.config.expression_dim)
        frames = len(pixels)
        self.identity = torch.zeros(model.config.identity_dim).to(pixels).requires_grad_()
        self.expression = torch.zeros(frames, model.config.expression_dim).to(pixels).requires_grad_()
        self.turn = torch.zeros(frames, 3).to(pixels).requires_grad_()
        self.shift = torch.zeros(frames, 3).to(pixels).requires_grad_()
        with torch.no_grad():
            z_id, z_ex = self.codes(torch.arange(1))
            mean = model.anchors(z_id)[self.chosen]
            posed = pose_points(model, mean, z_id, z_ex[0])
        pose = solve_pnp(posed.points * MODEL_UNIT, pixels, self.K, weights)
        if not bool(pose.valid.any()):
            raise InputError("no frame has enough landmarks for a head pose")
        seen = pose.valid.nonzero().squeeze(1)
        # Frames that are not seen start as the nearest one that is.
        source = seen[(torch.arange(frames, device=seen.device)[:, None] - seen).abs().argmin(1)]
        self.R, self.t = pose.R[source], pose.t[source]
        self.posed = posed.points.repeat(frames, 1, 1)
        self.inverse = posed.inverse_jacobian.repeat(frames, 1, 1, 1)

    def codes(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """z_id [D_id] and z_ex [F, D_ex] in the model's units."""
        a, b = self.of_identity, self.of_expression
        z_id = a.mean.to(self.pixels) + a.spread.to(self.pixels) * self.identity
        return z_id, b.mean.to(self.pixels) + b.spread.to(self.pixels) * self.expression[frames]

    def rotation(self, frames: Tensor) -> Tensor:
        return axis_angle_to_rotation_matrix(self.turn[frames]) @ self.R[frames]

    def in_camera(self, frames: Tensor) -> Tensor:
        """Anchors [F, 35, 3] in camera space, metres, with gradients to all unknowns."""
        z_id, z_ex = self.codes(frames)
        z_id = z_id.expand(len(frames), -1)
        canonical = self.model.anchors(z_id)[:, self.chosen]
        start = PosedPoints(self.posed[frames], self.inverse[frames], torch.zeros_like(canonical[..., 0]))
        posed = pose_points(self.model, canonical.detach(), z_id.detach(), z_ex.detach(), warm=start)
        self.posed[frames], self.inverse[frames] = posed.points, posed.inverse_jacobian
        head = attach_gradient(self.model, posed.points, canonical, z_id, z_ex) * MODEL_UNIT
        return head @ self.rotation(frames).mT + (self.t[frames] + self.shift[frames]).unsqueeze(-2)

    def errors(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Distance [F, 35] between projected anchors and landmarks, in pixels and in metres on the head."""
        camera = self.in_camera(frames)
        depth = camera[..., 2].clamp_min(0.05)
        seen = camera / depth.unsqueeze(-1) @ self.K.T
        pixels = (seen[..., :2] - self.pixels[frames]).square().sum(-1).clamp_min(1e-12).sqrt()
        return pixels, pixels * depth.detach() / self.K[0, 0]

    def loss(self, frames: Tensor) -> Tensor:
        """Robust landmark term, code norms and smoothness, a frame's mean."""
        ratio = (self.errors(frames)[1] / NOISE).square()
        weights = self.weights[frames]
        landmark = (weights * ratio / (1 + ratio / 25)).sum(1) / weights.sum(1).clamp_min(1e-6)  # Geman-McClure, 10 mm
        norms = self.identity.square().mean() + self.expression[frames].square().mean()
        change = self.expression[frames].diff(dim=0) / SMOOTHNESS
        smooth = change.square().mean() if len(frames) > 1 else change.sum()
        return landmark.mean() + 0.1 * norms + 0.1 * smooth

    @torch.no_grad()
    def result(self) -> AnchorFit:
        every = torch.arange(len(self.pixels))
        error = torch.cat([self.errors(frames)[0] for frames in every.split(WINDOW)])
        mean = (self.weights * error).sum(1) / self.weights.sum(1)  # NaN where nothing was seen
        z_id, z_ex = self.codes(every)
        return AnchorFit(z_id, z_ex, self.rotation(every), self.t + self.shift, mean)
