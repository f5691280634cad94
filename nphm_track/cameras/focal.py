"""One focal length for a clip from the landmarks of many frames.

A face is shallow, so its picture says little about the focal length, and landmark and shape errors are shared by
neighbouring points and by all frames. The estimate is therefore a posterior over log focal: a reprojection likelihood
whose evidence is discounted for that correlation, times a mild prior. The poses are solved anew for every focal length
(variable projection).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track.cameras.intrinsics import MAX_FOV_DEG, MIN_FOV_DEG, focal_from_fov, fov_from_focal
from nphm_track.cameras.pnp import Pose, solve_pnp
from nphm_track.errors import InputError
from nphm_track.landmark_model import FOCAL as LANDMARKS
from nphm_track.robust import geman_mcclure

PRIOR_FOCAL = 1.2
"""Usual focal length of clips, webcams and phones over the longer side of the frame (45 degrees along that side)."""
PRIOR_SIGMA = 0.35
"""Standard deviation of the prior in log focal."""

_MAX_CANDIDATES = 200
_MAX_FRAMES = 40
_MAX_POINTS = 100
_FRAME_CORRELATION = 0.1
"""Least share of the error taken to be common to all frames, so a clip counts as at most 10 independent frames."""
_SIGMA_FLOOR = 0.002
"""Least landmark error believed, as a share of the face's size in the picture."""
_SHAPE_SIGMA = 0.1
"""Error of log focal no residual shows: a head a few per cent too deep fits as well through a longer lens."""
_GRID = 13


@dataclass(frozen=True)
class FocalResult:
    """The focal length of a clip.

    Attributes:
        focal_px: focal length in pixels of the frame.
        fov_deg: horizontal field of view in degrees.
        log_sigma: standard deviation of log focal, head shape errors included; at most the prior's.
        rms_px: robust reprojection error of the frames used.
        curve: [G, 2] focal (px) and negative log posterior above its least value, ascending focal.
        frames: [F] indices of the frames used.
    """

    focal_px: float
    fov_deg: float
    log_sigma: float
    rms_px: float
    curve: NDArray[np.float64]
    frames: NDArray[np.int64]


def solve_focal(
    points_head: Tensor,
    pixels: Tensor,
    size: tuple[int, int],
    weights: Tensor | None = None,
    *,
    bounds_deg: tuple[float, float] = (MIN_FOV_DEG, MAX_FOV_DEG),
    prior_focal_px: float | None = None,
    prior_sigma: float = PRIOR_SIGMA,
) -> FocalResult:
    """Most probable focal length of a camera with square pixels and a centred principal point.

    Args:
        points_head: [T, N, 3] or [N, 3] metres, head space (each frame's own expression).
        pixels: [T, N, 2] undistorted pixels; frames and points may be wrong or missing (NaN).
        size: (width, height) of the frame in pixels.
        weights: [T, N] or [N] confidence, >= 0.
        bounds_deg: least and greatest horizontal field of view.
        prior_focal_px: centre of the prior; ``PRIOR_FOCAL`` times the longer side by default.
        prior_sigma: its standard deviation in log focal.

    Raises:
        InputError: shapes or bounds make no sense, or no frame shows four landmarks.
    """
    if pixels.dim() != 3 or not 0 < bounds_deg[0] < bounds_deg[1] < 180:
        raise InputError(f"focal length needs pixels [T, N, 2] and rising bounds, not {[*pixels.shape]}, {bounds_deg}")
    least, greatest = (math.log(focal_from_fov(fov, size[0])) for fov in reversed(bounds_deg))
    prior = min(max(math.log(prior_focal_px or PRIOR_FOCAL * max(size)), least), greatest)
    clip = _Clip.choose(points_head, pixels, size, weights, math.exp(prior))

    log_focal = torch.linspace(least, greatest, _GRID, dtype=torch.float64)
    errors = clip.errors(log_focal)
    for _ in range(2):  # zoom in twice on the bracket of the least cost
        cost = _posterior(errors, log_focal, prior, prior_sigma)
        best = int(cost.argmin())
        low, high = float(log_focal[max(best - 1, 0)]), float(log_focal[min(best + 1, len(log_focal) - 1)])
        finer = torch.linspace(low, high, 7, dtype=torch.float64)[1:-1]
        finer = finer[(finer[:, None] - log_focal).abs().amin(-1) > 1e-6]
        log_focal, order = torch.cat([log_focal, finer]).sort()
        errors = errors.extended(clip.errors(finer), order)
    cost = _posterior(errors, log_focal, prior, prior_sigma)
    best = int(cost.argmin())
    peak, curvature = _parabola(log_focal, cost, best)
    sigma = min(math.hypot(1 / math.sqrt(max(curvature, 1e-6)), _SHAPE_SIGMA), prior_sigma)
    focal = math.exp(min(max(peak, least), greatest))
    return FocalResult(
        focal_px=focal,
        fov_deg=fov_from_focal(focal, size[0]),
        log_sigma=sigma,
        rms_px=float(errors.rms[best]),
        curve=torch.stack([log_focal.exp(), cost - cost.min()], dim=-1).cpu().numpy(),
        frames=clip.frames.cpu().numpy(),
    )


@dataclass
class _Errors:
    residual: Tensor  # [G, F, N, 2] px
    weight: Tensor  # [F, N]
    face_px: float
    rms: Tensor  # [G]

    def extended(self, other: _Errors, order: Tensor) -> _Errors:
        """With the focal lengths of ``other`` added, all of them put in ``order``."""
        residual = torch.cat([self.residual, other.residual])[order]
        return _Errors(residual, self.weight, self.face_px, torch.cat([self.rms, other.rms])[order])


@dataclass
class _Clip:
    """The frames and points that take part."""

    points: Tensor  # [F, N, 3]
    pixels: Tensor  # [F, N, 2]
    weights: Tensor  # [F, N]
    frames: Tensor  # [F]
    size: tuple[int, int]

    @classmethod
    def choose(
        cls, points: Tensor, pixels: Tensor, size: tuple[int, int], weights: Tensor | None, focal: float
    ) -> _Clip:
        """Up to 40 well-fitting frames with poses as different as the clip has them."""
        T, N = pixels.shape[:2]
        chosen = torch.linspace(0, N - 1, min(N, _MAX_POINTS)).round().long().to(pixels.device)
        frames = torch.linspace(0, T - 1, min(T, _MAX_CANDIDATES)).round().long().to(pixels.device)
        pixels = pixels.double()[frames][:, chosen]
        points = points.to(pixels).expand(T, N, 3)[frames][:, chosen]
        w = pixels.new_ones(1) if weights is None else weights.to(pixels)
        w = w.expand(T, N)[frames][:, chosen]
        w = torch.where(pixels.isfinite().all(-1) & points.isfinite().all(-1), w, 0.0)
        pixels, points = pixels.nan_to_num(0.0), points.nan_to_num(0.0)
        pose = solve_pnp(points, pixels, _camera(pixels.new_tensor(focal), size), w)
        if not pose.valid.any():
            raise InputError("no frame shows enough landmarks to solve for the focal length")
        share = (pose.weights * w).sum(-1) / w.sum(-1).clamp_min(1e-12)
        good = pose.valid & (pose.rms <= 2.5 * pose.rms[pose.valid].median()) & (share > 0.4)
        good = good if good.any() else pose.valid
        spread = good.nonzero()[:, 0]
        spread = spread[_farthest_first(_pose_features(pose)[spread], _MAX_FRAMES)].sort().values
        return cls(points[spread], pixels[spread], w[spread], frames[spread], size)

    def errors(self, log_focal: Tensor) -> _Errors:
        """Residuals with every frame's pose solved for every focal length."""
        G, F = len(log_focal), len(self.frames)
        K = _camera(log_focal.to(self.pixels).exp(), self.size)[:, None].expand(G, F, 3, 3)
        pixels = self.pixels.expand(G, *self.pixels.shape)
        pose = solve_pnp(self.points, pixels, K, self.weights)
        camera = self.points @ pose.R.mT + pose.t[..., None, :]
        seen = (camera @ K.mT)[..., :2] / camera[..., 2:].clamp_min(1e-3)
        span = self.pixels.masked_fill(self.weights[..., None] == 0, torch.nan)
        face_px = 4 * (span - span.nanmean(1, keepdim=True)).square().nanmean(1).sum(-1).sqrt().nanmedian()
        return _Errors(seen - self.pixels, self.weights, float(face_px), pose.rms.square().mean(-1).sqrt())


def _camera(focal: Tensor, size: tuple[int, int]) -> Tensor:
    """``K`` [..., 3, 3] of centred cameras with focal lengths [...] px."""
    K = torch.zeros(*focal.shape, 3, 3, dtype=focal.dtype, device=focal.device)
    K[..., 0, 0] = K[..., 1, 1] = focal
    K[..., 0, 2], K[..., 1, 2], K[..., 2, 2] = size[0] / 2, size[1] / 2, 1
    return K


def _posterior(errors: _Errors, log_focal: Tensor, prior: float, prior_sigma: float) -> Tensor:
    """Negative log posterior [G] of the focal lengths.

    A robust chi-square per coordinate, averaged over points, times the number of independent measurements the clip is
    worth: errors that repeat over frames (a wrong shape, a biased landmark) leave little more than one frame's worth.
    """
    weight = errors.weight / errors.weight.sum(-1, keepdim=True).clamp_min(1e-12)
    distance = errors.residual.norm(dim=-1)
    best = distance[(weight * distance).sum((-2, -1)).argmin()]
    bulk = best[errors.weight > 0].median() / 1.1774  # median of a Rayleigh variable to sigma
    sigma = max(float(bulk), _SIGMA_FLOOR * errors.face_px, 1e-3)

    chi2, _ = geman_mcclure((distance / sigma).square(), LANDMARKS.outlier)
    repeated = _repeated_share(errors.residual[int((weight * chi2).sum((-2, -1)).argmin())], errors.weight, sigma)
    frames = len(errors.weight)
    independent_frames = frames / (1 + (frames - 1) * max(repeated, _FRAME_CORRELATION))
    evidence = min(LANDMARKS.evidence, errors.weight.shape[1]) * independent_frames
    likelihood = 0.5 * evidence * (weight * chi2).sum(-1).mean(-1)
    return likelihood.to(log_focal) + 0.5 * ((log_focal - prior) / prior_sigma).square()


def _repeated_share(residual: Tensor, weight: Tensor, sigma: float) -> float:
    """Intraclass correlation in [0, 1]: share of the residuals [F, N, 2] that every frame repeats point by point."""
    frames = len(residual)
    if frames < 2:
        return 1.0
    clipped = residual.clamp(-LANDMARKS.outlier * sigma, LANDMARKS.outlier * sigma)
    seen = (weight > 0).to(clipped)[..., None]
    count = seen.sum(0).clamp_min(1)
    mean = (clipped * seen).sum(0) / count
    total = (clipped.square() * seen).sum() / seen.expand_as(clipped).sum().clamp_min(1)
    between = mean.square().mean() - total / frames  # what chance alone leaves in a mean
    return float((between / total.clamp_min(1e-18) * frames / (frames - 1)).clamp(0, 1))


def _pose_features(pose: Pose) -> Tensor:
    """[T, 6] where the head looks, where it is and how far, in comparable units (radians, log depth)."""
    axis = pose.R[..., 2]
    place = pose.t[..., :2] / pose.t[..., 2:]
    return torch.cat([axis, place, pose.t[..., 2:].clamp_min(1e-3).log()], dim=-1)


def _farthest_first(features: Tensor, count: int) -> Tensor:
    """Indices of up to ``count`` rows, each the farthest from those before; the first is the most central."""
    nearest = (features - features.median(0).values).norm(dim=-1)
    chosen = [int(nearest.argmin())]
    nearest = torch.full_like(nearest, torch.inf)
    while len(chosen) < min(count, len(features)):
        nearest = torch.minimum(nearest, (features - features[chosen[-1]]).norm(dim=-1))
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen, device=features.device)


def _parabola(x: Tensor, y: Tensor, best: int) -> tuple[float, float]:
    """Minimum and curvature of the parabola through the best sample and its neighbours (the sample at an edge)."""
    if best in (0, len(x) - 1):
        return float(x[best]), 0.0
    x0, x1, x2 = (float(v) for v in x[best - 1 : best + 2])
    y0, y1, y2 = (float(v) for v in y[best - 1 : best + 2])
    slope_left, slope_right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = 2 * (slope_right - slope_left) / (x2 - x0)
    if curvature <= 0:
        return x1, 0.0
    peak = 0.5 * (x0 + x1) - slope_left / curvature
    return min(max(peak, x0), x2), curvature
