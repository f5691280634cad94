"""Registration of a head model to a scan: codes and a similarity pose that bring the zero level of F onto the points.

Pix2NPHM Eq. 11 and MonoNPHM's registration, mean |F(x; z_id, z_ex)| on scan points with code norms, changed where few
parameters and real scans ask for it. Identity lives in the model's linear prior plus a small local rest, expression in
its blendshape box plus a small rest; where a model has no blendshapes, each element of the code has its own spread. All
terms are negative log likelihoods, in millimetres of the head. Points are
judged again and again by distance and normal, so that hair, clothes, inner layers and holes do not pull; nothing is
asked of the model where the scan has no surface.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import InputError, ModelError
from nphm_track.expression_prior import SCAN as EXPRESSION
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.mesh import BOX, NECK_PLANE
from nphm_track.heads.mononphm import AnchoredDecoder, known_landmarks
from nphm_track.heads.template import load_template
from nphm_track.heads.wrap import wrap
from nphm_track.landmark_model import SCAN as LANDMARKS
from nphm_track.rigid import Similarity, fit_similarity, rotation

FloatArray = NDArray[np.floating]

MM = 1e3 * MODEL_UNIT
"""Millimetres in a model unit."""
POOL = 12_000
"""Scan points that are judged and drawn from."""
FACE_MARGIN, FACE_FADE, ELSEWHERE = 12.0, 15.0, 0.1
"""Full weight up to this distance (mm) from the face landmarks, then fading over the next mm to that of the rest."""
CLAMP = (10.0, 1.9)
"""Distance (mm) from which a point pulls no more, first and last; MonoNPHM's 0.1 and 0.0075 units."""
MIN_COSINE = 0.4
"""Between the normals of scan and model; the nose wings and lips of a rough fit need some room."""
SHELL = (0.5, 3.0)
"""Millimetres along the normals at which the model's distance is compared with the true one."""
POINT_SIGMA, INDEPENDENT_POINTS = 0.3, 400
"""Spread (mm) of scan points about a model's surface, and how many of them count as independent: errors are smooth."""
LANDMARKS_LEFT = 0.5
"""Share of the landmarks' weight at the end: by then the surface knows better, but for what slides along it."""
LANDMARK_STEPS = 80
"""Steps, besides the others, in which the landmarks are alone: they are cheap and keep the surface off wrong minima."""
REST_ID, REST_EX = 0.35, 0.15
"""Spread of what the linear identity prior and the blendshape box leave over, relative to theirs."""
RATES = (0.08, 0.02, 0.08, 0.08, 0.004, 0.002, 0.002)
"""Of Adam: identity, blendshapes, their rests, turn (radians), shift (model units), log scale."""
UNRELIABLE = tuple(range(468, 478))
"""Landmarks that are no points of the skin: the irises."""


@dataclass(frozen=True)
class Registration:
    """A head fitted to a scan.

    Attributes:
        z_id, z_ex: [D_id], [D_ex] codes.
        pose: head to scan: x_scan = scale R x_head + t; x_head in metres, x_scan in the scan's unit.
        identity: [K] weights of the linear identity prior, unit normal for a plausible person.
        expression: [E] blendshape weights in 0..1.
        identity_rest: RMS of the identity code outside the prior, relative to the prior's spread.
        trusted: share of the face's scan points that the fit could explain.
        residual: mean |F| (mm of the head) over those.
    """

    z_id: NDArray[np.float32]
    z_ex: NDArray[np.float32]
    pose: Similarity
    identity: NDArray[np.float32]
    expression: NDArray[np.float32]
    identity_rest: float
    trusted: float
    residual: float


@dataclass(frozen=True)
class Freedom:
    """Codes are mean [D] + linear prior [D, K] w + spread [D] times a rest [D]; w and the rest are N(0, 1).

    Expressions have weights within ``expression_prior.SCAN`` in place of w.
    """

    mean_id: Tensor
    basis: Tensor
    spread_id: Tensor
    mean_ex: Tensor
    blend: Tensor
    spread_ex: Tensor

    @classmethod
    def of(cls, model: NphmDecoder) -> Freedom:
        """Of a model without a linear prior, each element varies on its own as in the training codes.

        Raises ModelError for one that says nothing about its codes.
        """
        c = model.config
        known = (model.identity_codes, model.expression_codes) if isinstance(model, AnchoredDecoder) else (None, None)
        if not (c.identity_basis or known[0]) or not (c.expression_names or known[1]):
            raise ModelError(f"head model '{c.name}' has neither linear priors nor statistics of its codes")
        like = model.mean_anchors
        basis, blend = like.new_zeros(c.identity_dim, 0), like.new_zeros(c.expression_dim, 0)
        spread_id, spread_ex = (
            like.new_zeros(dim) if codes is None else codes.spread.to(like)
            for codes, dim in zip(known, (c.identity_dim, c.expression_dim), strict=True)
        )
        if c.identity_basis:
            basis = model.identity_basis.detach()
            spread_id = REST_ID * basis.norm(dim=1)
        if c.expression_names:
            blend = model.expression_basis.detach()
            spread_ex = (REST_EX * EXPRESSION.sigma * blend.norm(dim=1).mean()).expand(c.expression_dim)
        return cls(model.mean_identity, basis, spread_id, model.mean_expression, blend, spread_ex)


@lru_cache(maxsize=1)
def mean_landmarks(model: NphmDecoder) -> NDArray[np.float64]:
    """The 478 landmarks of a model's mean head [478, 3], metres, head space.

    Of one that knows fewer they are those of the template, wrapped on that head. Raises ModelError when it has none.
    """
    if model.config.n_landmarks:
        return np.asarray(model.mean_landmarks.cpu().double().numpy() * MODEL_UNIT)
    template = load_template()
    return np.asarray(template.landmarks(wrap(template, model, model.mean_identity).vertices), np.float64)


def robust_similarity(source: FloatArray, target: FloatArray, rounds: int = 10) -> Similarity:
    """Similarity of corresponding points [N, 3], some of them wrong: the worst are left out, never more than half."""
    keep = np.ones(len(source), bool)
    for _ in range(rounds):
        pose = fit_similarity(source[keep], target[keep])
        error = np.linalg.norm(pose.inverse(target) - source, axis=1)
        keep = error <= max(2.5 * float(np.median(error)), 1e-6)
        if keep.sum() < 4:
            break
    return pose


def register(
    model: NphmDecoder,
    points: FloatArray,
    normals: FloatArray | None,
    landmark_index: NDArray[np.integer],
    landmarks: FloatArray,
    *,
    steps: int = 300,
    batch: int = 1000,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Registration:
    """Fit codes and pose to a scan.

    Args:
        model: a head model with landmarks or MonoNPHM's anchors, and a linear prior or statistics of its codes.
        points: [N, 3] of the scan's surface, any unit and orientation, evenly spread.
        normals: [N, 3] outward unit normals, or None.
        landmark_index: [L] which of the 478 landmarks are known (the model may know fewer).
        landmarks: [L, 3] where they lie, in the scan's unit.
        steps: of Adam; batch: points a step.
        advance: called after each step.

    Raises InputError when there are too few points or landmarks, ModelError when the model lacks landmarks or priors.
    """
    space = Freedom.of(model)
    known = np.setdiff1d(known_landmarks(model), UNRELIABLE)
    skin = np.isin(landmark_index, known) & np.isfinite(landmarks).all(1)
    if skin.sum() < 4:
        raise InputError(f"at least 4 landmarks on the skin are needed, not {int(skin.sum())}")
    fit = _Fit(model, space, points, normals, landmark_index[skin], landmarks[skin], seed)
    fit.run(steps, batch, advance)
    return fit.result()


class _Fit:
    """State of one registration. Head points are ``turn (grow p - centre) + centre + shift`` for p of the start."""

    def __init__(
        self,
        model: NphmDecoder,
        space: Freedom,
        points: FloatArray,
        normals: FloatArray | None,
        index: NDArray[np.integer],
        landmarks: FloatArray,
        seed: int,
    ) -> None:
        self.model, self.space = model, space
        self.device = model.mean_anchors.device
        self.random = torch.Generator(device=self.device).manual_seed(seed)
        mean = mean_landmarks(model)
        self.mean_face = self._tensor(mean / MODEL_UNIT)
        self.start = robust_similarity(mean[index], np.asarray(landmarks, np.float64))
        head = self.start.inverse(points)  # metres
        near = in_head(head)
        if near.sum() < 500:
            raise InputError(f"only {int(near.sum())} points of the scan lie on the head; at least 500 are needed")
        chosen = np.flatnonzero(near)
        if len(chosen) > POOL:
            chosen = np.random.default_rng(seed).choice(chosen, POOL, replace=False)
        self.points = self._tensor(head[chosen] / MODEL_UNIT)
        self.normals = (
            None if normals is None else self._tensor(_outward(np.asarray(normals) @ self.start.R, head)[chosen])
        )
        self.index = torch.as_tensor(np.asarray(index), device=self.device)
        self.landmarks = self._tensor(self.start.inverse(landmarks) / MODEL_UNIT)
        weight = self._tensor(LANDMARKS.of(index.tolist()))
        self.landmark_weight = weight / weight.sum()
        self.centre = self.landmarks.mean(0)
        c = model.config
        self.w, self.e = self._free(c.identity_basis), self._free(len(c.expression_names))
        self.rest_id, self.rest_ex = self._free(c.identity_dim), self._free(c.expression_dim)
        self.turn, self.shift, self.grow = self._free(3), self._free(3), self._free(1)
        self.weight = self._face_weight()
        self.trust = torch.ones_like(self.weight)

    # -- parameters ----------------------------------------------------------------------------------------------------
    def _tensor(self, x: FloatArray) -> Tensor:
        return torch.as_tensor(np.asarray(x), dtype=torch.float32, device=self.device)

    def _free(self, n: int) -> Tensor:
        return torch.zeros(n, device=self.device, requires_grad=True)

    def codes(self) -> tuple[Tensor, Tensor]:
        s = self.space
        z_id = s.mean_id + s.basis @ self.w + s.spread_id * self.rest_id
        return z_id, s.mean_ex + s.blend @ self.e + s.spread_ex * self.rest_ex

    def moved(self, points: Tensor) -> Tensor:
        """Points of the start [N, 3] in the head space of the current pose."""
        return self.grow.exp() * (points - self.centre) @ rotation(self.turn).T + self.centre + self.shift

    # -- optimisation --------------------------------------------------------------------------------------------------
    def run(self, steps: int, batch: int, advance: Callable[[], None]) -> None:
        """Pose and expression-free codes first follow the landmarks, then everything follows the surface."""
        parameters = (self.w, self.e, self.rest_id, self.rest_ex, self.turn, self.shift, self.grow)
        groups = [{"params": [p], "lr": rate} for p, rate in zip(parameters, RATES, strict=True)]
        optimiser = torch.optim.Adam(groups, betas=(0.9, 0.98))
        for _ in range(LANDMARK_STEPS):
            loss = self._landmark_loss(*self.codes()) + 0.5 * self._prior()
            self._step(optimiser, loss, frozen=True)
        judge_every = max(1, steps // 16)
        for step in range(steps):
            t = step / steps
            clamp = CLAMP[0] * (CLAMP[1] / CLAMP[0]) ** min(1.0, t / 0.5)
            if step % judge_every == 0:
                self._judge(clamp)
            for group, rate in zip(optimiser.param_groups, RATES, strict=True):
                group["lr"] = rate * (min(1.0, (step + 1) / 10) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * t))))
            # The local rest waits for the linear prior.
            self._step(optimiser, self._loss(batch, clamp, t), frozen=t < 0.3)
            advance()
        self._judge(CLAMP[1])

    def _step(self, optimiser: torch.optim.Optimizer, loss: Tensor, *, frozen: bool) -> None:
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if frozen:  # what a linear prior leaves over; where there is none, it is all there is
            self.rest_id.grad = None if len(self.w) else self.rest_id.grad
            self.rest_ex.grad = None if len(self.e) else self.rest_ex.grad
        optimiser.step()
        with torch.no_grad():
            self.e.clamp_(EXPRESSION.low, EXPRESSION.high)

    def _prior(self) -> Tensor:
        free = (self.w, self.e / EXPRESSION.sigma, self.rest_id, self.rest_ex)
        return torch.stack([x.square().sum() for x in free]).sum()

    def _loss(self, batch: int, clamp: float, t: float) -> Tensor:
        z_id, z_ex = self.codes()
        drawn = torch.multinomial(self.weight * self.trust, batch, replacement=True, generator=self.random)
        points = self.moved(self.points[drawn])
        target = points.new_zeros(batch)
        if self.normals is not None and t > 0.2:
            half = batch // 2
            off = points.new_empty(half).uniform_(*SHELL, generator=self.random) / MM
            off[: half // 2] *= -1
            normals = self.normals[drawn[:half]] @ rotation(self.turn).T
            points = torch.cat([points[:half] + off[:, None] * normals, points[half:]])
            target[:half] = off
        # On the scan's scale: on the model's, a smaller head would be a better one.
        distance = (self.model.sdf(points, z_id, z_ex) - target).abs() * MM / self.grow.exp()
        surface = distance.clamp(max=clamp).mean() / POINT_SIGMA
        share = LANDMARKS_LEFT + (1 - LANDMARKS_LEFT) * (1 - t) ** 2
        landmarks = share * self._landmark_loss(z_id, z_ex)
        return INDEPENDENT_POINTS * surface + landmarks + 0.5 * self._prior()

    def _landmark_loss(self, z_id: Tensor, z_ex: Tensor) -> Tensor:
        """Compared in canonical space, where the scan's landmarks come by the model's own backward deformation."""
        seen = self.moved(self.landmarks)
        gap = (seen + self.model.deform(seen, z_id, z_ex)[0] - self.model.landmarks(z_id)[self.index]).norm(dim=-1)
        gap = gap * MM / self.grow.exp()
        loss = functional.huber_loss(gap / (1000 * LANDMARKS.sigma), torch.zeros_like(gap), reduction="none")
        return min(len(gap), LANDMARKS.evidence) * (loss * self.landmark_weight).sum()

    @torch.no_grad()
    def _judge(self, clamp: float) -> None:
        """Which points the model can explain: near its surface and turned the same way."""
        z_id, z_ex = self.codes()
        self.weight = self._face_weight()
        trust = []
        moved = self.moved(self.points)
        normals = None if self.normals is None else self.normals @ rotation(self.turn).T
        for k in range(0, len(moved), 4096):
            distance, gradient = self.model.gradient(moved[k : k + 4096], z_id, z_ex)
            good = distance.abs() * MM < max(1.5 * clamp, 3.0)
            if normals is not None:
                cosine = (functional.normalize(gradient, dim=-1) * normals[k : k + 4096]).sum(-1)
                good &= cosine > MIN_COSINE
            trust.append(good.float())
        self.trust = torch.cat(trust)
        if self.trust.sum() < 200:
            raise InputError("the scan's points do not look like a face near the landmarks")

    @torch.no_grad()
    def _face_weight(self) -> Tensor:
        """1 on the face, ``ELSEWHERE`` on the rest of the head, 0 off it; by distance from the model's landmarks."""
        z_id, _ = self.codes()
        moved = self.moved(self.points)
        distance = torch.cdist(moved, self._face(z_id)).min(1).values * MM
        fade = ((distance - FACE_MARGIN) / FACE_FADE).clamp(0, 1)
        return 1 - (1 - ELSEWHERE) * fade

    def _face(self, z_id: Tensor) -> Tensor:
        """The landmarks [478, 3] of the neutral head, model units; the mean head's, where a model does not know all."""
        return self.model.landmarks(z_id) if self.model.config.n_landmarks else self.mean_face

    # -- result --------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def result(self) -> Registration:
        z_id, z_ex = self.codes()
        face = self.weight > 0.99
        good = face & (self.trust > 0)
        residual = torch.cat([self.model.sdf(p, z_id, z_ex) for p in self.moved(self.points[good]).split(4096)])
        # head = grow turn (p - centre) + centre + shift, p = start^-1(scan)
        turn = rotation(self.turn).double().cpu().numpy()
        grow = float(self.grow.exp())
        shift = ((self.centre + self.shift).double().cpu().numpy()) * MODEL_UNIT
        centre = self.centre.double().cpu().numpy() * MODEL_UNIT
        back = Similarity(1 / grow, turn.T, centre - turn.T @ shift / grow)  # head of now -> head of the start
        R = self.start.R @ back.R
        pose = Similarity(self.start.scale * back.scale, R, self.start.scale * self.start.R @ back.t + self.start.t)
        return Registration(
            z_id=z_id.cpu().numpy(),
            z_ex=z_ex.cpu().numpy(),
            pose=pose,
            identity=self.w.detach().cpu().numpy(),
            expression=self.e.detach().cpu().numpy(),
            identity_rest=float(self.rest_id.square().mean().sqrt()) * REST_ID,
            trusted=float(good.sum() / face.sum().clamp_min(1)),
            residual=float(residual.abs().mean()) * MM,
        )


def in_head(points: FloatArray) -> NDArray[np.bool_]:
    """Points [N, 3] (metres, head space) in the model's box and above its neck."""
    low, high = np.array(BOX).T
    inside = ((points > low) & (points < high)).all(1)
    return np.asarray(inside & ((points - NECK_PLANE[0]) @ NECK_PLANE[1] > 0))


def _outward(normals: FloatArray, points: FloatArray) -> FloatArray:
    """The normals, all turned round when on the face they point inwards: some files wind their faces so."""
    front = (points[:, 2] > 0.03) & (np.abs(points[:, :2]) < 0.06).all(1)
    return -normals if front.any() and np.median(normals[front, 2]) < 0 else normals
