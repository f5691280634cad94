"""The terms of the refinement's objective, a negative log posterior: objects with one interface.

A term is half a weighted, robust sum of squares of residuals in units of their standard deviation. ``Term.rows`` gives
the residuals with their derivatives and weights at a linearised state (``View``); ``solver`` sums them into
Gauss-Newton normal equations. Its fields are what ``--refine-config`` sets, and say why they are what they are.

Errors of neighbouring pixels go together, so a data term counts as ``evidence`` independent measurements a frame
however many pixels are drawn, and its size does not change from coarse to fine.
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from nphm_track import expression_prior, landmark_model
from nphm_track.config_file import Strict
from nphm_track.refine.landmarks import POINTS
from nphm_track.refine.view import Bends, Rows, View
from nphm_track.rigid import cross_matrix, rotation_log
from nphm_track.robust import charbonnier, geman_mcclure

FRAME_TIME = 1 / 30
"""Seconds that a bend of a motion counts for: the penalty is one of time, not of frames."""


ActsOn = Literal["frames", "identity", "focal", "expression", "bends of expression", "bends of R", "bends of t"]


class Term(Strict):
    """A term of the objective."""

    acts_on: ClassVar[ActsOn] = "frames"

    def rows(self, view: View) -> Rows | None:
        """Residuals, derivatives and weights at a state; None where there is nothing to compare."""
        raise NotImplementedError


class Normals(Term):
    """Normals of the head against those of the geometry maps, pixel by pixel."""

    sigma: float = Field(default=0.14, gt=0, description="radians; predicted face normals are good to 8 degrees")
    evidence: float = Field(
        default=75, ge=0, description="independent normals a frame: patches of 1 cm on a face, which share errors"
    )
    outlier: float = Field(default=3.0, gt=0, description="standard deviations beyond which an error counts linearly")

    def rows(self, view: View) -> Rows:
        return self.compare(view.normals, view.tangents, view.normals_by, view.normals_seen, view.normals_confidence)

    def compare(self, normals: Tensor, tangents: Tensor, jacobian: Tensor, seen: Tensor, confidence: Tensor) -> Rows:
        """1 - cosine of normals [B, N, 3]: half the squared chord, taken along ``tangents`` [B, N, 2, 3].

        ``jacobian`` [B, N, 2, C] is along the tangents.
        """
        share = confidence * (self.evidence / confidence.shape[1])
        chord = normals - seen
        value, slope = charbonnier(chord.square().sum(-1) / self.sigma**2, self.outlier)
        residual = (tangents @ chord[..., None])[..., 0] / self.sigma
        weight = (share * slope)[..., None].expand_as(residual)
        return Rows(
            residual.flatten(1), (jacobian / self.sigma).flatten(1, 2), weight.flatten(1), 0.5 * (share * value).sum(1)
        )


class Points(Term):
    """Points of the head against the canonical points of the geometry maps, pixel by pixel."""

    sigma: float = Field(default=0.003, gt=0, description="metres; what point maps are good to")
    evidence: float = Field(default=20, ge=0, description="a frame; points of a face share errors of place and size")
    outlier: float = Field(default=3.0, gt=0, description="standard deviations beyond which an error counts linearly")

    def rows(self, view: View) -> Rows:
        return self.compare(view.points, view.points_by, view.points_seen, view.points_confidence)

    def compare(self, points: Tensor, jacobian: Tensor, seen: Tensor, confidence: Tensor) -> Rows:
        """Distance of points [B, N, 3] (metres, head space); jacobian [B, N, 3, C], confidence [B, N]."""
        share = confidence * (self.evidence / confidence.shape[1])
        return _vector_rows((points - seen) / self.sigma, jacobian / self.sigma, share, self.outlier)


class Landmarks(Term):
    """Landmarks of the head against those seen in the picture."""

    sigma: float = Field(
        default=landmark_model.REFINEMENT.sigma, gt=0, description="over the distance of the outer eye corners"
    )
    evidence: float = Field(
        default=landmark_model.REFINEMENT.evidence,
        ge=0,
        description="independent landmarks a frame: much of their error is the same in all frames",
    )
    outlier: float = Field(
        default=landmark_model.REFINEMENT.outlier,
        gt=0,
        description="standard deviations beyond which an error counts linearly",
    )
    lids: float = Field(
        default=landmark_model.REFINEMENT.weights["lids"], ge=0, description="weight of a point of the lids"
    )
    lips: float = Field(
        default=landmark_model.REFINEMENT.weights["lips"], ge=0, description="weight of a point of the lips"
    )

    def rows(self, view: View) -> Rows:
        known = view.landmarks_seen.isfinite().all(-1)
        share = view.confidence[:, None] * _landmark_weights(self.lids, self.lips).to(view.landmarks)
        return self.compare(
            view.landmarks, view.landmarks_by, view.landmarks_seen.nan_to_num(0.0), share * known, view.eyes
        )

    def compare(self, pixels: Tensor, jacobian: Tensor, seen: Tensor, confidence: Tensor, eyes: Tensor) -> Rows:
        """Distance of landmarks [B, L, 2] px; jacobian [B, L, 2, C].

        ``eyes`` [B]: distance of the outer eye corners, px. ``confidence`` [B, L] includes the points' weights, mean 1.
        """
        share = confidence * (self.evidence / confidence.shape[1])
        sigma = (self.sigma * eyes)[:, None, None]
        return _vector_rows((pixels - seen) / sigma, jacobian / sigma[..., None], share, self.outlier)


class Tracks(Term):
    """Points of the skin against where they were followed to, less a slide of each that suits all frames best."""

    evidence: float = Field(
        default=200, gt=0, description="a frame, at most 1 a point followed: neighbours share light and skin's motion"
    )
    slide: float = Field(default=0.004, gt=0, description="metres that a followed point may lie beside its name")
    outlier: float = Field(default=3.0, gt=0, description="standard deviations beyond which an error counts linearly")

    def rows(self, view: View) -> Rows | None:
        if view.tracks is None or view.tracks_by is None:
            return None
        assert view.tracks_seen is not None and view.tracks_whiten is not None and view.tracks_slide is not None
        found = view.tracks_seen, view.tracks_whiten, view.tracks_slide
        return self.compare(view.tracks, view.tracks_by, *found, view.confidence)

    def compare(
        self, pixels: Tensor, jacobian: Tensor, seen: Tensor, whiten: Tensor, slide: Tensor, confidence: Tensor
    ) -> Rows:
        """Distance of points [B, N, 2] px; jacobian [B, N, 2, C].

        Args:
            whiten, slide: [B, N, 2, 2] from pixels and from a slide in metres to standard deviations, 0 where a point
                is not seen.
            confidence: [B] of the frames.
        """
        visible = (slide != 0).flatten(2).any(-1)
        each = min(1.0, self.evidence / visible.shape[1])
        share = each * confidence[:, None] * visible
        distance = (whiten @ (pixels - seen)[..., None])[..., 0]

        # Each point's slide is linear in the residuals: it is eliminated, reweighted with them (the last weights and
        # slides belong together), and its Schur complement is what ``coupling`` takes away.
        slope = torch.ones_like(share)
        prior = torch.eye(2).to(slide) * (each / self.slide**2)
        for _ in range(5):
            weight = share * slope
            weighted = slide * weight[..., None, None]
            gram = (weighted.mT @ slide).sum(0) + prior
            moved = torch.linalg.solve(gram, (weighted.mT @ distance[..., None]).sum(0))  # [N, 2, 1]
            residual = distance - (slide @ moved)[..., 0]
            value, slope = charbonnier(residual.square().sum(-1), self.outlier)

        J = whiten @ jacobian
        mixed = torch.einsum("bnij,bnic->njbc", weighted, J)
        weight = weight[..., None].expand_as(residual)
        factor = torch.linalg.cholesky(gram)
        coupling = torch.linalg.solve_triangular(factor, mixed.flatten(2), upper=False).view_as(mixed)
        energy = 0.5 * (share * value).sum(1) + 0.5 * (moved[..., 0] @ prior * moved[..., 0]).sum() / len(share)
        return Rows(residual.flatten(1), J.flatten(1, 2), weight.flatten(1), energy, coupling.flatten(0, 1))


class Identity(Term):
    """The identity against the feed-forward one."""

    acts_on: ClassVar[ActsOn] = "identity"
    sigma: float = Field(default=0.5, gt=0, description="spreads of the head model's prior")
    image_sigma: float = Field(
        default=0.05, gt=0, description="the same for a single image: its maps tell nothing that its codes do not"
    )

    def rows(self, view: View) -> Rows:
        return parameter_rows(view.identity, self.sigma if len(view.R) > 1 else self.image_sigma)


class Focal(Term):
    """The focal length against the one that landmarks of the whole clip gave."""

    acts_on: ClassVar[ActsOn] = "focal"
    sigma: float = Field(default=0.08, gt=0, description="of log focal as landmarks give it")

    def rows(self, view: View) -> Rows:
        return parameter_rows(view.focal, self.sigma)


class Expression(Term):
    """Expression weights against the feed-forward ones."""

    acts_on: ClassVar[ActsOn] = "expression"
    sigma: float = Field(
        default=expression_prior.REFINEMENT.sigma, gt=0, description="of a feed-forward expression weight"
    )
    outlier: float = Field(
        default=1.0, gt=0, description="of these, beyond which a distance counts linearly: a blink may be missed whole"
    )

    def rows(self, view: View) -> Rows:
        return parameter_rows(view.expression - view.expression_start, self.sigma, self.outlier)


class Range(Term):
    """Expression weights outside their range; only of head models whose expressions have names."""

    acts_on: ClassVar[ActsOn] = "expression"
    low: float = Field(default=expression_prior.REFINEMENT.low, description="a face may rest a little below 0")
    high: float = Field(default=expression_prior.REFINEMENT.high, description="of an expression weight")
    sigma: float = Field(default=0.05, gt=0, description="how far a weight leaves the range")

    def rows(self, view: View) -> Rows:
        return self.compare(view.expression)

    def compare(self, weights: Tensor) -> Rows:
        """Distance of weights [..., E] from the range."""
        outside = (weights - self.high).clamp_min(0) + (weights - self.low).clamp_max(0)
        active = (outside != 0).to(weights)
        residual = outside / self.sigma
        return Rows(residual, torch.full_like(residual, 1 / self.sigma), active, 0.5 * residual.square().sum(-1))


class ExpressionMotion(Term):
    """Accelerations of expression weights; beyond a burst they cost no more, so blinks and speech come through."""

    acts_on: ClassVar[ActsOn] = "bends of expression"
    acceleration: float = Field(default=60, gt=0, description="1/s^2, usual; speech reaches 200, jitter 100")
    burst: float = Field(default=3.0, gt=0, description="times the usual, beyond which it is meant: blinks, plosives")

    def rows(self, view: View) -> Rows:
        return self.compare(view.motion, view.bends)

    def compare(self, values: Tensor, at: Bends) -> Rows:
        """Of channels ``values`` [T, D]."""
        residual = at.of(values) / self.acceleration
        robust = geman_mcclure(residual.square(), self.burst)
        return _bend_rows(residual, at.by_value(values.shape[1], self.acceleration), robust, at)


class Translation(Term):
    """Accelerations of the head: linear beyond the outlier, since a head has mass."""

    acts_on: ClassVar[ActsOn] = "bends of t"
    acceleration: float = Field(default=0.48, gt=0, description="m/s^2, usual of a head; jitter of depth reaches 6")
    outlier: float = Field(default=3.0, gt=0, description="times the usual, beyond which it counts linearly")

    def rows(self, view: View) -> Rows:
        return self.compare(view.t, view.bends)

    def compare(self, t: Tensor, at: Bends) -> Rows:
        """Of translations [T, 3], metres."""
        residual = at.of(t) / self.acceleration
        robust = charbonnier(residual.square(), self.outlier)
        return _bend_rows(residual, at.by_value(3, self.acceleration), robust, at)


class Rotation(Term):
    """Angular accelerations of the head."""

    acts_on: ClassVar[ActsOn] = "bends of R"
    acceleration: float = Field(default=4, gt=0, description="rad/s^2, usual of a head; jitter reaches 20")
    outlier: float = Field(default=3.0, gt=0, description="times the usual, beyond which it counts linearly")

    def rows(self, view: View) -> Rows:
        return self.compare(view.R, view.bends)

    def compare(self, R: Tensor, at: Bends) -> Rows:
        """Of rotations [T, 3, 3]; derivatives are by turns exp(omega) R of the three frames."""
        before, here, after = (R[at.frames + k] for k in (-1, 0, 1))
        first, second = rotation_log(here @ before.mT), rotation_log(after @ here.mT)
        left, right = at.factors[:, :1], at.factors[:, 2:]
        residual = (right * second - left * first) / self.acceleration

        # d log(exp(a) Q exp(-b)) = J(phi)^-1 a - J(-phi)^-1 b, J^-1 = I - phi/2 + phi^2/12 for small phi.
        d_first, d_second = _inverse_left_jacobian(first), _inverse_left_jacobian(second)
        left, right = left[..., None], right[..., None]
        by_frame = [left * d_first.mT, -left * d_first - right * d_second.mT, right * d_second]
        jacobian = torch.stack(by_frame, 2) / self.acceleration  # [M, 3, 3 frames, 3]
        return _bend_rows(residual, jacobian, charbonnier(residual.square(), self.outlier), at)


class Terms(Strict):
    """All terms of the objective."""

    normals: Normals = Normals()
    points: Points = Points()
    landmarks: Landmarks = Landmarks()
    tracks: Tracks = Tracks()
    identity: Identity = Identity()
    focal: Focal = Focal()
    expression: Expression = Expression()
    range: Range = Range()
    expression_motion: ExpressionMotion = ExpressionMotion()
    rotation: Rotation = Rotation()
    translation: Translation = Translation()

    def changed(self, values: dict[str, dict[str, float]]) -> Terms:
        """With other values of single fields, by term. Raises pydantic's ValidationError for unknown ones."""
        return type(self).model_validate(
            {name: term.model_dump() | values.get(name, {}) for name, term in self.named()}
            | {name: fields for name, fields in values.items() if name not in type(self).model_fields}
        )

    def of_person(self, frames: int) -> Terms:
        """Those for the identity of so many frames: much of what maps get wrong of a person they get wrong in every
        frame, so what they say grows as the root of the frames, not as the frames."""
        shared = {name: {"evidence": getattr(self, name).evidence / frames**0.5} for name in ("normals", "points")}
        return self.changed(shared)

    def named(self) -> list[tuple[str, Term]]:
        """Each term with its name."""
        return [(name, getattr(self, name)) for name in type(self).model_fields]


def parameter_rows(offset: Tensor, sigma: float, outlier: float = torch.inf) -> Rows:
    """Distance [..., M] of parameters to where they are expected, in units of ``sigma``; linear beyond ``outlier``."""
    value, slope = charbonnier((offset / sigma).square(), outlier)
    return Rows(offset / sigma, torch.full_like(offset, 1 / sigma), slope, 0.5 * value.sum(-1))


def _vector_rows(residual: Tensor, jacobian: Tensor, share: Tensor, outlier: float) -> Rows:
    """Rows of N vectors [B, N, D] in standard deviations, their derivatives [B, N, D, C], ``share`` [B, N] of the
    evidence each."""
    value, slope = charbonnier(residual.square().sum(-1), outlier)
    weight = (share * slope)[..., None].expand_as(residual)
    return Rows(residual.flatten(1), jacobian.flatten(1, 2), weight.flatten(1), 0.5 * (share * value).sum(1))


def _bend_rows(residual: Tensor, jacobian: Tensor, robust: tuple[Tensor, Tensor], at: Bends) -> Rows:
    share = (at.span / FRAME_TIME)[:, None]
    return Rows(residual, jacobian, share * robust[1], 0.5 * (share * robust[0]).sum(-1))


def _inverse_left_jacobian(phi: Tensor) -> Tensor:
    cross = cross_matrix(phi)
    return torch.eye(3).to(phi) - cross / 2 + cross @ cross / 12


@cache
def _landmark_weights(lids: float, lips: float) -> Tensor:
    """Weight [L] of each of ``landmarks.POINTS``, mean 1."""
    model = landmark_model.LandmarkModel(1.0, "eyes", weights={"lids": lids, "lips": lips})
    weight = torch.from_numpy(model.of(POINTS)).float()
    return weight / weight.mean()
