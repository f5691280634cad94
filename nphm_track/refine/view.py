"""What the terms of the refinement see of a state, and what they answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Residuals of a term in units of their standard deviation, with what Gauss-Newton needs of them.

    Attributes:
        residual: [B, M].
        jacobian: by what the term acts on (``Term.acts_on``). "frames": [B, M, C] by the local columns identity, log
            focal, expression, rotation, translation. "bends": [B, M, 3, M] by the values of the bend's three frames.
            Parameters: [B, M] or a number, each residual's derivative by its own parameter.
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
        """Gauss-Newton matrix [B, C, C], before ``coupling``, and gradient [B, C] of a term that acts on frames."""
        weighted = self.jacobian * self.weight[..., None]
        return weighted.mT @ self.jacobian, (weighted.mT @ self.residual[..., None])[..., 0]

    def diagonal(self) -> tuple[Tensor, Tensor]:
        """Diagonal of the Gauss-Newton matrix and gradient, [B, M] each, of a term that acts on parameters."""
        return self.weight * self.jacobian**2, self.weight * self.jacobian * self.residual


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

    def of(self, values: Tensor) -> Tensor:
        """Second derivatives [M, D] of values [T, D]."""
        index = self.frames[:, None] + torch.arange(-1, 2, device=self.frames.device)
        return (values[index] * self.factors[..., None]).sum(1)

    def by_value(self, channels: int, unit: float) -> Tensor:
        """Derivative [M, D, 3, D] of second derivatives in ``unit`` by the values of the three frames."""
        return self.factors[:, None, :, None] * torch.eye(channels).to(self.factors)[:, None] / unit


def bends(times: Tensor, segments: Tensor) -> Bends:
    """The bends of frames at ``times`` [T] (s, ascending); none crosses into another segment [T]."""
    h = times.diff().clamp_min(1e-3)
    whole = (segments[2:] == segments[:-2]).nonzero()[:, 0]
    before, after = h[whole], h[whole + 1]
    span = (before + after) / 2
    left, right = 1 / (before * span), 1 / (after * span)
    return Bends(whole + 1, torch.stack([left, -left - right, right], -1), span)


@dataclass(frozen=True)
class View:
    """What the terms see of a linearised state of B frames: predictions, derivatives by C columns, observations.

    Lengths are metres in head space, pictures are px of the original frame, undistorted.

    Attributes:
        normals, tangents, normals_by: [B, N, 3] unit, [B, N, 2, 3], [B, N, 2, C] along the tangents.
        points, points_by: [B, N, 3], [B, N, 3, C].
        normals_seen, normals_confidence: [B, N, 3], [B, N] of the geometry maps; 0 where a pixel does not count.
        points_seen, points_confidence: the same of the points.
        landmarks, landmarks_by, landmarks_seen: [B, L, 2], [B, L, 2, C], [B, L, 2] (NaN where not seen).
        confidence: [B] of the face in the frame.
        eyes: [B] distance of the outer eye corners, px.
        tracks, tracks_by: [B, P, 2], [B, P, 2, C] of the points of the skin that are followed, or None.
        tracks_seen, tracks_whiten, tracks_slide: [B, P, 2], [B, P, 2, 2], [B, P, 2, 2] of ``tracks.Tracks``.
        identity: [k] weights beyond the feed-forward identity; focal: [1] log of focal over feed-forward focal.
        expression, expression_start: [B, E] weights, and the feed-forward ones.
        bends: which frames follow each other; R, t: [B, 3, 3], [B, 3] poses; motion: [B, E] expression weights in time.
    """

    normals: Tensor
    tangents: Tensor
    normals_by: Tensor
    normals_seen: Tensor
    normals_confidence: Tensor
    points: Tensor
    points_by: Tensor
    points_seen: Tensor
    points_confidence: Tensor
    landmarks: Tensor
    landmarks_by: Tensor
    landmarks_seen: Tensor
    confidence: Tensor
    eyes: Tensor
    tracks: Tensor | None
    tracks_by: Tensor | None
    tracks_seen: Tensor | None
    tracks_whiten: Tensor | None
    tracks_slide: Tensor | None
    identity: Tensor
    focal: Tensor
    expression: Tensor
    expression_start: Tensor
    motion: Tensor
    bends: Bends
    R: Tensor
    t: Tensor
