"""The refinement's objective: a negative log posterior, in terms that are pure functions.

Every data term is half a weighted, robust sum of squares of residuals in units of their standard deviation. Errors of
neighbouring pixels go together, so a term counts as ``evidence`` independent measurements a frame however many pixels
are drawn, and its size does not change from coarse to fine. ``Rows`` carries residuals with derivatives, from which
Gauss-Newton normal equations are made; robustness enters by reweighting.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from nphm_track import expression_prior, landmark_model
from nphm_track.rigid import cross_matrix, rotation_log
from nphm_track.robust import charbonnier, geman_mcclure


class Weights(BaseModel):
    """Standard deviations and evidence of the terms, and why they are what they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    normal_sigma: float = Field(default=0.14, gt=0, description="radians; predicted face normals are good to 8 degrees")
    normal_evidence: float = Field(
        default=75, ge=0, description="independent normals a frame: patches of 1 cm on a face, which share errors"
    )
    point_sigma: float = Field(default=0.003, gt=0, description="metres; what point maps are good to")
    point_evidence: float = Field(
        default=20, ge=0, description="a frame; points of a face share errors of place and size"
    )
    landmark_sigma: float = Field(
        default=landmark_model.REFINEMENT.sigma, gt=0, description="over the distance of the outer eye corners"
    )
    landmark_evidence: float = Field(
        default=landmark_model.REFINEMENT.evidence,
        ge=0,
        description="independent landmarks a frame: much of their error is the same in all frames",
    )
    track_evidence: float = Field(
        default=200, gt=0, description="a frame, at most 1 a point followed: neighbours share light and skin's motion"
    )
    window_track_evidence: float = Field(
        default=40,
        gt=0,
        description="the same for expressions and poses: how skin moves in between is not all the model's to tell",
    )
    slide: float = Field(default=0.004, gt=0, description="metres that a followed point may lie beside its name")
    outlier: float = Field(default=3.0, gt=0, description="standard deviations beyond which an error counts linearly")
    identity_sigma: float = Field(
        default=0.5, gt=0, description="of the feed-forward identity, in spreads of the prior"
    )
    image_identity_sigma: float = Field(
        default=0.05, gt=0, description="the same for a single image: its maps tell nothing that its codes do not"
    )
    expression_sigma: float = Field(
        default=expression_prior.REFINEMENT.sigma, gt=0, description="of a feed-forward expression weight"
    )
    expression_outlier: float = Field(
        default=1.0, gt=0, description="of these, beyond which a distance counts linearly: a blink may be missed whole"
    )
    box: tuple[float, float] = Field(
        default=expression_prior.WHOLE, description="expression weights; a face may rest a little below 0"
    )
    box_sigma: float = Field(default=0.05, gt=0, description="how far a weight leaves the box")
    focal_sigma: float = Field(default=0.08, gt=0, description="of log focal as landmarks give it")
    expression_acceleration: float = Field(default=60, gt=0, description="1/s^2, usual; speech reaches 200, jitter 100")
    burst: float = Field(default=3.0, gt=0, description="times the usual, beyond which it is meant: blinks, plosives")
    rotation_acceleration: float = Field(default=4, gt=0, description="rad/s^2, usual of a head; jitter reaches 20")
    translation_acceleration: float = Field(
        default=0.48, gt=0, description="m/s^2, usual of a head; jitter of depth reaches 6"
    )
    frame_time: float = Field(
        default=1 / 30, gt=0, description="seconds of one bend: the penalty is one of time, not frames"
    )

    def of_person(self, frames: int) -> Weights:
        """Those for the identity of so many frames: much of what maps get wrong of a person they get wrong in every
        frame, so what they say grows as the root of the frames, not as the frames."""
        shared = {k: getattr(self, k) / frames**0.5 for k in ("normal_evidence", "point_evidence")}
        return self.model_copy(update=shared)

    def of_window(self) -> Weights:
        """Those for expressions and poses."""
        return self.model_copy(update={"track_evidence": self.window_track_evidence})


@dataclass(frozen=True)
class Rows:
    """A data term of B frames with M residuals each, in units of their standard deviation.

    Attributes:
        residual: [B, M].
        jacobian: [B, M, C] by the local columns: identity, log focal, expression, rotation, translation.
        weight: [B, M] evidence times robust weight.
        energy: [B] the term's share of the negative log posterior.
        coupling: [Q, B, C] or None; what eliminated unknowns take away from the matrix of all frames' columns:
            the sum over Q of the outer products of its rows.
    """

    residual: Tensor
    jacobian: Tensor
    weight: Tensor
    energy: Tensor
    coupling: Tensor | None = None

    def normal_equations(self) -> tuple[Tensor, Tensor]:
        """Gauss-Newton matrix [B, C, C], before ``coupling``, and gradient [B, C]."""
        weighted = self.jacobian * self.weight[..., None]
        return weighted.mT @ self.jacobian, (weighted.mT @ self.residual[..., None])[..., 0]


def _vector_rows(residual: Tensor, jacobian: Tensor, share: Tensor, outlier: float) -> Rows:
    """Rows of N vectors [B, N, D] in standard deviations, their derivatives [B, N, D, C], ``share`` [B, N] of the
    evidence each."""
    value, slope = charbonnier(residual.square().sum(-1), outlier)
    weight = (share * slope)[..., None].expand_as(residual)
    return Rows(residual.flatten(1), jacobian.flatten(1, 2), weight.flatten(1), 0.5 * (share * value).sum(1))


def normal_term(
    normals: Tensor, tangents: Tensor, jacobian: Tensor, target: Tensor, confidence: Tensor, w: Weights
) -> Rows:
    """1 - cosine of seen and predicted normals: half the squared chord, taken along ``tangents``.

    Args:
        normals, target: [B, N, 3] unit. tangents: [B, N, 2, 3]. jacobian: [B, N, 2, C] along the tangents.
        confidence: [B, N] 0..1.
    """
    share = confidence * (w.normal_evidence / confidence.shape[1])
    chord = normals - target
    value, slope = charbonnier(chord.square().sum(-1) / w.normal_sigma**2, w.outlier)
    residual = (tangents @ chord[..., None])[..., 0] / w.normal_sigma
    weight = (share * slope)[..., None].expand_as(residual)
    return Rows(
        residual.flatten(1), (jacobian / w.normal_sigma).flatten(1, 2), weight.flatten(1), 0.5 * (share * value).sum(1)
    )


def point_term(points: Tensor, jacobian: Tensor, target: Tensor, confidence: Tensor, w: Weights) -> Rows:
    """Robust distance of seen and predicted canonical points [B, N, 3] (metres, head space); jacobian [B, N, 3, C]."""
    share = confidence * (w.point_evidence / confidence.shape[1])
    return _vector_rows((points - target) / w.point_sigma, jacobian / w.point_sigma, share, w.outlier)


def landmark_term(
    pixels: Tensor, jacobian: Tensor, target: Tensor, confidence: Tensor, eyes: Tensor, w: Weights
) -> Rows:
    """Robust distance of projected and observed landmarks [B, L, 2] px; jacobian [B, L, 2, C].

    ``eyes`` [B]: distance of the outer eye corners, px. ``confidence`` [B, L] includes the points' own weights, mean 1.
    """
    share = confidence * (w.landmark_evidence / confidence.shape[1])
    sigma = (w.landmark_sigma * eyes)[:, None, None]
    return _vector_rows((pixels - target) / sigma, jacobian / sigma[..., None], share, w.outlier)


def track_term(
    pixels: Tensor,
    jacobian: Tensor,
    target: Tensor,
    whiten: Tensor,
    slide: Tensor,
    confidence: Tensor,
    w: Weights,
) -> Rows:
    """Robust distance of projected and followed points, less the slide of each point that suits all frames best.

    Args:
        pixels, target: [B, N, 2] px. jacobian: [B, N, 2, C].
        whiten, slide: [B, N, 2, 2] from pixels and from a slide in metres to standard deviations, 0 where not seen.
        confidence: [B] of the frames.
    """
    seen = (slide != 0).flatten(2).any(-1)
    each = min(1.0, w.track_evidence / seen.shape[1])
    share = each * confidence[:, None] * seen
    distance = (whiten @ (pixels - target)[..., None])[..., 0]
    slope = torch.ones_like(share)
    prior = torch.eye(2).to(slide) * (each / w.slide**2)
    for _ in range(5):  # of the reweighting; the last weights and slides belong together
        weight = share * slope
        weighted = slide * weight[..., None, None]
        gram = (weighted.mT @ slide).sum(0) + prior
        moved = torch.linalg.solve(gram, (weighted.mT @ distance[..., None]).sum(0))  # [N, 2, 1]
        residual = distance - (slide @ moved)[..., 0]
        value, slope = charbonnier(residual.square().sum(-1), w.outlier)
    J = whiten @ jacobian
    mixed = torch.einsum("bnij,bnic->njbc", weighted, J)
    weight = weight[..., None].expand_as(residual)
    coupling = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), mixed.flatten(2), upper=False).view_as(mixed)
    energy = 0.5 * (share * value).sum(1) + 0.5 * (moved[..., 0] @ prior * moved[..., 0]).sum() / len(share)
    return Rows(residual.flatten(1), J.flatten(1, 2), weight.flatten(1), energy, coupling.flatten(0, 1))


@dataclass(frozen=True)
class Pull:
    """A term of parameters alone: gradient and diagonal [..., C] and energy [...]."""

    gradient: Tensor
    diagonal: Tensor
    energy: Tensor


def prior_term(offset: Tensor, sigma: float, outlier: float = torch.inf) -> Pull:
    """Distance [..., C] to the feed-forward value in units of ``sigma``; linear beyond ``outlier`` of them."""
    value, slope = charbonnier((offset / sigma).square(), outlier)
    return Pull(slope * offset / sigma**2, slope / sigma**2, 0.5 * value.sum(-1))


def box_term(weights: Tensor, w: Weights) -> Pull:
    """Expression weights [..., E] outside their box."""
    low, high = w.box
    outside = (weights - high).clamp_min(0) + (weights - low).clamp_max(0)
    active = (outside != 0).to(weights) / w.box_sigma**2
    return Pull(outside * active, active, 0.5 * (outside.square() * active).sum(-1))


@dataclass(frozen=True)
class Bends:
    """Second derivatives over time of T frames: three frames each, with their factors.

    Attributes:
        frames: [M] the middle frame; its neighbours are the frames before and after it.
        factors: [M, 3] of the three values, 1/s^2.
        span: [M] seconds the bend stands for.
    """

    frames: Tensor
    factors: Tensor
    span: Tensor


def bends(times: Tensor, segments: Tensor) -> Bends:
    """The bends of frames at ``times`` [T] (s, ascending); none crosses into another segment [T]."""
    h = times.diff().clamp_min(1e-3)
    whole = (segments[2:] == segments[:-2]).nonzero()[:, 0]
    before, after = h[whole], h[whole + 1]
    span = (before + after) / 2
    left, right = 1 / (before * span), 1 / (after * span)
    return Bends(whole + 1, torch.stack([left, -left - right, right], -1), span)


def smoothness(values: Tensor, at: Bends, usual: float, w: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """Accelerations of channels ``values`` [T, D]: residual [M, D], weight [M, D], energy [M].

    In units of ``usual``; a bend beyond ``burst`` times that costs no more however sharp it is, so blinks and speech
    come through.
    """
    index = at.frames[:, None] + torch.arange(-1, 2, device=at.frames.device)
    residual = (values[index] * at.factors[..., None]).sum(1) / usual
    return _weighted(residual, geman_mcclure(residual.square(), w.burst), at, w)


def translation_smoothness(t: Tensor, at: Bends, w: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """Accelerations of t [T, 3] (m): residual, weight [M, 3], energy [M]; linear beyond ``outlier``."""
    index = at.frames[:, None] + torch.arange(-1, 2, device=at.frames.device)
    residual = (t[index] * at.factors[..., None]).sum(1) / w.translation_acceleration
    return _weighted(residual, charbonnier(residual.square(), w.outlier), at, w)


def rotation_smoothness(R: Tensor, at: Bends, w: Weights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Angular accelerations of R [T, 3, 3]: residual, weight [M, 3], energy [M] and derivative [M, 3, 3, 3]
    (residual by frame before, at, after, by turns exp(omega) R)."""
    before, here, after = (R[at.frames + k] for k in (-1, 0, 1))
    first, second = rotation_log(here @ before.mT), rotation_log(after @ here.mT)
    left, right = at.factors[:, :1], at.factors[:, 2:]
    acceleration = (right * second - left * first) / w.rotation_acceleration
    # d log(exp(a) Q exp(-b)) = J(phi)^-1 a - J(-phi)^-1 b, J^-1 = I - phi/2 + phi^2/12 for small phi.
    d_first, d_second = _inverse_left_jacobian(first), _inverse_left_jacobian(second)
    left, right = left[..., None], right[..., None]
    jacobian = torch.stack(
        [left * d_first.mT, -left * d_first - right * d_second.mT, right * d_second], 2
    )  # [M, 3, 3 frames, 3]
    residual, weight, energy = _weighted(acceleration, charbonnier(acceleration.square(), w.outlier), at, w)
    return residual, weight, energy, jacobian / w.rotation_acceleration


def _weighted(residual: Tensor, robust: tuple[Tensor, Tensor], at: Bends, w: Weights) -> tuple[Tensor, Tensor, Tensor]:
    share = (at.span / w.frame_time)[:, None]
    return residual, share * robust[1], 0.5 * (share * robust[0]).sum(-1)


def _inverse_left_jacobian(phi: Tensor) -> Tensor:
    cross = cross_matrix(phi)
    return torch.eye(3).to(phi) - cross / 2 + cross @ cross / 12
