"""The directions in which codes move during refinement, and the state of a clip that moves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nphm_track.heads.decoder import NphmDecoder
from nphm_track.rigid import rotation

FREE_SPREAD = 0.02
"""Spread given to every element of a code of a model without a prior (MonoNPHM's codes have norm <= 1)."""

LOCAL_RANK = 4
"""Directions in which each local code also moves by itself."""


@dataclass(frozen=True)
class CodeSpace:
    """Columns along which codes move, each scaled to the spread of people or to the unit of an expression weight.

    Attributes:
        identity: [D_id, k]; a change of one is one standard deviation of the prior.
        expression: [D_ex, E]; ARKit-like weights where ``boxed``, standard deviations otherwise.
        identity_inverse, expression_inverse: [k, D_id], [E, D_ex], from codes to the nearest weights.
        boxed: the expression weights are blendshape weights, at home in 0..1.
    """

    identity: Tensor
    expression: Tensor
    identity_inverse: Tensor
    expression_inverse: Tensor
    boxed: bool

    @classmethod
    def of(cls, model: NphmDecoder, local_spread: float) -> CodeSpace:
        """The model's prior, with some freedom for its local parts (``local_spread`` of their spread over people), and
        its expression map; else every element."""
        c, like = model.config, model.mean_anchors
        named = bool(c.expression_names)
        identity = _identity(model, local_spread) if c.identity_basis else _free(c.identity_dim, like)
        expression = model.expression_basis.detach() if named else _free(c.expression_dim, like)
        identity_inverse = torch.linalg.pinv(identity) if c.identity_basis else identity / FREE_SPREAD**2
        expression_inverse = torch.linalg.pinv(expression) if named else expression / FREE_SPREAD**2
        return cls(identity, expression, identity_inverse, expression_inverse, named)

    def expression_weights(self, z_ex: Tensor) -> Tensor:
        """Weights [..., E] nearest to codes [..., D_ex]; what no weight explains stays out."""
        return z_ex @ self.expression_inverse.mT

    def identity_weights(self, z_id: Tensor) -> Tensor:
        """Weights [..., k] nearest to codes [..., D_id]."""
        return z_id @ self.identity_inverse.mT


def _identity(model: NphmDecoder, local_spread: float) -> Tensor:
    """The prior's columns, and for each member the directions in which its own code varies most, on their own.

    Real faces lie outside a linear model of whole heads. A member's code stays one it was trained on, so its MLP still
    gives a face; only how members go together is new, which is what an ensemble of local parts is for.
    """
    c, basis = model.config, model.identity_basis.detach()
    columns = [basis]
    for member in range(c.n_members):
        rows = slice(c.global_dim + member * c.local_dim, c.global_dim + (member + 1) * c.local_dim)
        u, s, _ = torch.linalg.svd(basis[rows], full_matrices=False)
        part = basis.new_zeros(len(basis), min(LOCAL_RANK, len(s)))
        part[rows] = local_spread * (u * s)[:, :LOCAL_RANK]
        columns.append(part)
    return torch.cat(columns, 1)


def _free(size: int, like: Tensor) -> Tensor:
    return FREE_SPREAD * torch.eye(size, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class State:
    """What is refined: one identity and one focal length, and B frames' expressions and head poses.

    Poses are float64, head to camera (``x_cam = R x_head + t``, metres, OpenCV axes).
    """

    z_id: Tensor  # [D_id]
    z_ex: Tensor  # [B, D_ex]
    R: Tensor  # [B, 3, 3]
    t: Tensor  # [B, 3]
    K: Tensor  # [3, 3] pixels

    def moved(self, space: CodeSpace, step: Step) -> State:
        """The state after a step; rotations turn on the left, ``exp(omega) R``."""
        K = self.K.clone()
        K[0, 0], K[1, 1] = K[0, 0] * step.log_focal.exp(), K[1, 1] * step.log_focal.exp()
        pose = step.pose.to(self.R)
        return State(
            self.z_id + space.identity @ step.identity.to(self.z_id),
            self.z_ex + step.expression.to(self.z_ex) @ space.expression.mT,
            rotation(pose[:, :3]) @ self.R,
            self.t + pose[:, 3:],
            K,
        )

    def rows(self, index: Tensor | slice) -> State:
        """The state of some frames."""
        return replace(self, z_ex=self.z_ex[index], R=self.R[index], t=self.t[index])


@dataclass(frozen=True)
class Step:
    """A change of the state, float64: identity [k], log focal [], expression [B, E], pose [B, 6] (omega, then t)."""

    identity: Tensor
    log_focal: Tensor
    expression: Tensor
    pose: Tensor
