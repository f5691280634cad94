"""Sampling and editing of heads: random people, mirroring, interpolation, ARKit weights, expression transfer.

All of it acts on codes, z_id [..., D_id] and z_ex [..., D_ex]. A model with linear priors (``nphm-small``) has
z_id = A w and z_ex = B e plus what fitting left over, its *rest*: w ~ N(0, 1) for a plausible person, e in 0..1 named
by ``expression_names``. Such functions raise ModelError for a model without the prior they need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track.conventions import BLENDSHAPE_NAMES
from nphm_track.errors import InputError, ModelError
from nphm_track.heads.decoder import NphmDecoder

ICT_COLUMNS = 100
"""Columns of the identity prior that are ICT-FaceKit's; column 100 is 1 for the mean of Anny, the others vary it."""
CUT = 2.5
"""Spreads at which random identity weights are cut."""
RMS_LIMIT, REST_LIMIT = 1.5, 0.3
"""Largest RMS of identity weights and, relative to the prior's spread, of the rest: twice what registration expects."""
ROOM = 1.1
"""Factor by which a fitted code may exceed a limit and still count as plausible."""
REST_SHARE = 0.1
"""Share of a clip's frames, those with the weakest expression, that make up its rest expression."""
MIRROR_POINTS, MIRROR_RIDGE = 800, 0.01


# -- identities --------------------------------------------------------------------------------------------------------
def random_identities(
    model: NphmDecoder, count: int, *, seed: int = 0, source: Literal["ict", "anny"] = "ict"
) -> Tensor:
    """Codes [count, D_id] of random people: N(0, 1) in the linear prior, cut at ``CUT``.

    ``source``: "ict" draws scanned adults, "anny" artist-made heads of all ages and builds, where the model knows them.
    """
    basis = _identity_basis(model)
    if source not in ("ict", "anny"):
        raise InputError(f"unknown source of heads '{source}'; choose from ict, anny")
    if source == "anny" and basis.shape[1] <= ICT_COLUMNS:
        raise ModelError(f"head model '{model.config.name}' was trained without Anny's heads")
    w = np.zeros((count, basis.shape[1]))
    own = w[:, :ICT_COLUMNS] if source == "ict" else w[:, ICT_COLUMNS:]
    own[:] = np.random.default_rng(seed).standard_normal(own.shape).clip(-CUT, CUT)
    if source == "anny":
        own[:, 0] = 1
    return model.mean_identity + torch.from_numpy(w).to(basis) @ basis.T


def identity_weights(model: NphmDecoder, z_id: Tensor) -> tuple[Tensor, Tensor]:
    """The prior's weights [..., K] of identity codes, and the rest [..., D_id] outside the prior."""
    basis = _identity_basis(model)
    beside = z_id - model.mean_identity
    w = beside @ torch.linalg.pinv(basis).T
    return w, beside - w @ basis.T


def interpolate(first: Tensor, last: Tensor, steps: int) -> Tensor:
    """Codes [steps, D] on the straight line between two, ends included; codes are linear in shape and in expression."""
    t = torch.linspace(0, 1, steps).to(first)[:, None]
    return torch.lerp(first, last, t)


class IdentityMirror:
    """Identity codes of mirrored heads.

    The ensemble mirrors exactly: swapping the local codes of a pair swaps what its members draw. The global code, the
    middle members and the anchor-less one have no such mirror. Where there is a linear prior, the mirror is therefore
    sought in it, once for the model: weights whose effect on the mean head's surface is the mirrored one (least squares
    on dF/dw; each ICT mode is even or odd, so the answer is nearly a matrix of signs). Only the small rest outside the
    prior is swapped. The mirror is then as true as the model: 0.1 to 0.2 mm (mean) for random heads of ``nphm-small``.
    Without a prior everything is swapped and the global part kept: as symmetric as the training made these codes.
    """

    def __init__(self, model: NphmDecoder) -> None:
        c = model.config
        self.model = model
        member = torch.arange(c.n_members, device=model.mean_anchors.device)
        self.partner = torch.where(member < 2 * c.n_pairs, member ^ 1, member)
        self.weights = _mirrored_weights(model) if c.identity_basis else None  # [K, K]

    @torch.no_grad()
    def __call__(self, z_id: Tensor) -> Tensor:
        """z_id [..., D_id] -> the code of the mirrored head."""
        if self.weights is None:
            return self._swapped(z_id)
        w, rest = identity_weights(self.model, z_id)
        return self.model.mean_identity + w @ self.weights.T @ self.model.identity_basis.T + self._swapped(rest)

    def _swapped(self, z_id: Tensor) -> Tensor:
        glob, local = self.model.split_identity(z_id)
        return torch.cat([glob, local[..., self.partner, :].flatten(-2)], -1)


def _mirrored_weights(model: NphmDecoder) -> Tensor:
    """The matrix [K, K] that turns identity weights into those of the mirrored head (see IdentityMirror)."""
    with torch.inference_mode(False), torch.enable_grad():
        basis = model.identity_basis.detach().clone()
        x = _surface_points(model)
        n = len(x)
        z = model.mean_identity.repeat(2 * n, 1).requires_grad_(True)
        both = torch.cat([x, x * x.new_tensor([-1, 1, 1])])
        (slope,) = torch.autograd.grad(model.canonical_sdf(both[:, None], z).sum(), z)
        effect = (slope @ basis).double()  # [2n, K] change of the distance
    mirrored = torch.cat([effect[n:], effect[:n]])
    sources = [slice(0, ICT_COLUMNS)]  # each mirrors into itself
    if basis.shape[1] > ICT_COLUMNS:
        sources.append(slice(ICT_COLUMNS, None))
    return torch.block_diag(*(_least_squares(effect[:, s], mirrored[:, s]) for s in sources)).to(basis)


def _least_squares(effect: Tensor, wanted: Tensor) -> Tensor:
    """W [K, K] with ``effect W`` near ``wanted`` [N, K]; where the points do not tell, 1 or -1 on the diagonal."""
    gram = effect.T @ effect
    ridge = MIRROR_RIDGE * gram.diagonal().mean()
    parity = torch.diag((effect * wanted).sum(0).sign())
    return torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), effect.T @ wanted + ridge * parity)


def _surface_points(model: NphmDecoder) -> Tensor:
    """Points [N, 3] all over the mean head, model units: scattered about its anchors, brought onto the zero level."""
    anchors = model.mean_anchors.detach().clone()
    generator = torch.Generator().manual_seed(0)
    near = torch.randint(len(anchors), (MIRROR_POINTS,), generator=generator)
    x = anchors[near.to(anchors.device)] + 0.08 * torch.randn(MIRROR_POINTS, 3, generator=generator).to(anchors)
    z_id = model.mean_identity
    for _ in range(6):
        x = x.detach().requires_grad_(True)
        sdf = model.canonical_sdf(x, z_id)
        (gradient,) = torch.autograd.grad(sdf.sum(), x)
        step = gradient * (sdf / gradient.square().sum(-1).clamp_min(0.1))[:, None]
        x = x - step.clamp(-0.1, 0.1)
    return x.detach()


# -- expressions -------------------------------------------------------------------------------------------------------
def expression_code(model: NphmDecoder, weights: Mapping[str, float] | Tensor) -> Tensor:
    """z_ex of expression weights: [D_ex] of a dict by name, [..., D_ex] of a tensor [..., E] in the model's order.

    Names are the model's, a model's without ``_L``/``_R`` for both sides ("mouthSmile"), or ARKit's. Raises InputError
    for others.
    """
    basis = _expression_basis(model)
    if isinstance(weights, Tensor):
        return weights.to(basis) @ basis.T
    names = model.config.expression_names
    to_model = arkit_maps(names)[0]
    total = np.zeros(len(names))
    for name, value in weights.items():
        own = np.isin(names, (name, f"{name}_L", f"{name}_R"))
        if not own.any() and name not in BLENDSHAPE_NAMES:
            raise InputError(f"unknown expression '{name}'; choose from {', '.join(names)}")
        total += value * (own if own.any() else to_model[:, BLENDSHAPE_NAMES.index(name)])
    return torch.from_numpy(total).to(basis) @ basis.T


def expression_weights(model: NphmDecoder, z_ex: Tensor) -> Tensor:
    """Expression weights [..., E] in 0..1 of codes, in the order of ``expression_names``."""
    return (z_ex @ torch.linalg.pinv(_expression_basis(model)).T).clamp(0, 1)


def arkit_maps(names: tuple[str, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Matrices between ARKit's weights (``BLENDSHAPE_NAMES``, 52) and a model's: to the model [E, 52], back [52, E].

    A model's side is ``_L``/``_R`` where ARKit has ``Left``/``Right``. What ICT has for each side and ARKit only once
    (browInnerUp, cheekPuff) goes to both sides and comes back as their mean; cheekRaiser, which ARKit lacks, adds to
    cheekSquint on the way back; ``_neutral`` and the directions of gaze that a model lacks are 0. ARKit to the model
    and back is the identity for all others.
    """
    to_model, to_arkit = np.zeros((len(names), len(BLENDSHAPE_NAMES))), np.zeros((len(BLENDSHAPE_NAMES), len(names)))
    for i, name in enumerate(names):
        stem, side = (name[:-2], name[-1]) if name.endswith(("_L", "_R")) else (name, "")
        sided = stem + {"L": "Left", "R": "Right", "": ""}[side]
        if sided in BLENDSHAPE_NAMES or stem in BLENDSHAPE_NAMES:
            own = sided if sided in BLENDSHAPE_NAMES else stem
            to_model[i, BLENDSHAPE_NAMES.index(own)] = 1
            to_arkit[BLENDSHAPE_NAMES.index(own), i] = 1 if own == sided else 0.5
        elif stem == "cheekRaiser":
            to_arkit[BLENDSHAPE_NAMES.index(sided.replace("Raiser", "Squint")), i] = 1
    return to_model, to_arkit


def code_from_arkit(model: NphmDecoder, blendshapes: Tensor) -> Tensor:
    """z_ex [..., D_ex] of weights [..., 52] in the order of ``BLENDSHAPE_NAMES``, of the face's own sides."""
    to_model = arkit_maps(model.config.expression_names)[0]
    return expression_code(model, blendshapes @ torch.from_numpy(to_model).to(blendshapes).T)


def arkit_from_code(model: NphmDecoder, z_ex: Tensor) -> Tensor:
    """ARKit weights [..., 52] in 0..1 of expression codes; gaze to the sides and ``_neutral`` are 0."""
    to_arkit = arkit_maps(model.config.expression_names)[1]
    return (expression_weights(model, z_ex) @ torch.from_numpy(to_arkit).to(z_ex).T).clamp(0, 1)


def mirror_expression(model: NphmDecoder, z_ex: Tensor) -> Tensor:
    """z_ex [..., D_ex] with the weights of left and right exchanged; what no weight explains stays."""
    basis, names = _expression_basis(model), model.config.expression_names
    partner = [names.index(_other_side(n)) if _other_side(n) in names else i for i, n in enumerate(names)]
    w = z_ex @ torch.linalg.pinv(basis).T
    return z_ex + (w[..., partner] - w) @ basis.T


class CodeMirror:
    """Codes (z_id, z_ex) of mirrored heads, for models with both linear priors; ModelError for others."""

    def __init__(self, model: NphmDecoder) -> None:
        _expression_basis(model)
        self.model, self.identity = model, IdentityMirror(model)

    @torch.no_grad()
    def __call__(self, z_id: Tensor, z_ex: Tensor) -> tuple[Tensor, Tensor]:
        """z_id [..., D_id], z_ex [..., D_ex]."""
        return self.identity(z_id), mirror_expression(self.model, z_ex)


def _other_side(name: str) -> str:
    for left, right in (("_L", "_R"), ("Left", "Right")):
        if name.endswith((left, right)):
            return name.removesuffix(left) + right if name.endswith(left) else name.removesuffix(right) + left
    return name


# -- transfer ----------------------------------------------------------------------------------------------------------
class Codes(Protocol):
    """What is needed of a run: its ``track`` has it."""

    @property
    def z_ex(self) -> NDArray[np.float32]: ...  # [T, D_ex], NaN where unknown


def rest_expression(z_ex: NDArray[np.floating]) -> NDArray[np.float32]:
    """The face at rest [D_ex] of a clip [T, D_ex]: the median of the frames with the weakest expression.

    Frames that are not finite do not count. Raises InputError when none is.
    """
    known = z_ex[np.isfinite(z_ex).all(1)]
    if len(known) == 0:
        raise InputError("the clip has no frame with an expression")
    strength = np.linalg.norm(known, axis=1)
    weakest = np.argsort(strength, kind="stable")[: max(1, round(REST_SHARE * len(known)))]
    rest: NDArray[np.float32] = np.median(known[weakest], axis=0).astype(np.float32)
    return rest


def transfer_expressions(source: Codes, target: Codes) -> NDArray[np.float32]:
    """Expression codes [T, D_ex] that let the target's face do what the source's does, from two runs' tracks.

    The source's expressions relative to its own rest are added to the target's rest; draw them with the target's z_id.
    NaN where the source is. Raises InputError when the runs are of different head models.
    """
    if source.z_ex.shape[1] != target.z_ex.shape[1]:
        raise InputError(
            f"the runs are of different head models: expression codes of {source.z_ex.shape[1]} and "
            f"{target.z_ex.shape[1]} numbers"
        )
    moved = source.z_ex - rest_expression(source.z_ex) + rest_expression(target.z_ex)
    return np.asarray(moved, np.float32)


# -- validity ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class CodeReport:
    """How far codes are from those the model was trained with."""

    identity_rms: float  # of the prior's weights: about 1 for a person, 0 for the mean head
    identity_largest: float  # largest weight; training heads are cut at 3
    identity_rest: float  # RMS outside the prior, relative to the prior's spread: 0 for training heads
    expression_lowest: float  # weights; training heads have 0..1
    expression_highest: float
    expression_rest: float  # norm outside the blendshapes, relative to that of a full one

    @property
    def plausible(self) -> bool:
        """Whether the codes lie where the model was trained, with some room for fitted ones."""
        inside = self.expression_lowest >= -0.5 and self.expression_highest <= 1.5
        return inside and self.identity_rms < ROOM * RMS_LIMIT and self.identity_rest < ROOM * REST_LIMIT


def code_report(model: NphmDecoder, z_id: Tensor, z_ex: Tensor) -> CodeReport:
    """Judge one pair of codes, [D_id] and [D_ex]."""
    basis = _expression_basis(model)
    w, rest = identity_weights(model, z_id)
    e = z_ex @ torch.linalg.pinv(basis).T
    unexplained = (z_ex - e @ basis.T).norm() / basis.norm(dim=0).mean()
    return CodeReport(
        identity_rms=float(_rms(w)),
        identity_largest=float(w.abs().max()),
        identity_rest=float(_relative(model, rest)),
        expression_lowest=float(e.min()),
        expression_highest=float(e.max()),
        expression_rest=float(unexplained),
    )


def clamp_codes(model: NphmDecoder, z_id: Tensor, z_ex: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [..., D_id] and [..., D_ex] brought into the training range.

    Identity: towards the mean head until the weights' RMS is ``RMS_LIMIT``, each cut at ``CUT``; the rest shortened to
    ``REST_LIMIT``. Expression: weights cut to 0..1, its rest dropped.
    """
    w, rest = identity_weights(model, z_id)
    w = w * (RMS_LIMIT / _rms(w).clamp_min(1e-9)).clamp_max(1)[..., None]
    rest = rest * (REST_LIMIT / _relative(model, rest).clamp_min(1e-9)).clamp_max(1)[..., None]
    inside = model.mean_identity + w.clamp(-CUT, CUT) @ model.identity_basis.T + rest
    return inside, expression_code(model, expression_weights(model, z_ex))


def _rms(w: Tensor) -> Tensor:
    """RMS [...] of weights [..., K], counting the columns of the source a head is of: the other's are 0."""
    count = torch.full_like(w[..., 0], min(w.shape[-1], ICT_COLUMNS))
    if w.shape[-1] > ICT_COLUMNS:
        count[w[..., ICT_COLUMNS].abs() >= 0.5] = w.shape[-1] - ICT_COLUMNS
    return (w.square().sum(-1) / count).sqrt()


def _relative(model: NphmDecoder, rest: Tensor) -> Tensor:
    """RMS [...] of a rest [..., D_id], relative to the spread of codes under the prior."""
    return rest.square().mean(-1).sqrt() / model.identity_basis.square().sum(1).mean().sqrt()


def _identity_basis(model: NphmDecoder) -> Tensor:
    if not model.config.identity_basis:
        raise ModelError(f"head model '{model.config.name}' has no linear identity prior")
    return model.identity_basis


def _expression_basis(model: NphmDecoder) -> Tensor:
    if not model.config.expression_names:
        raise ModelError(f"head model '{model.config.name}' has no map of expression weights")
    return model.expression_basis
