"""Rotations and similarities: the one place where they are made, fitted and turned into vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.floating]


def cross_matrix(v: Tensor) -> Tensor:
    """Matrices [..., 3, 3] of vectors [..., 3], such that ``cross_matrix(v) @ x`` is v x x."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def rotation(omega: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of rotation vectors [..., 3] (axis times angle, radians).

    The matrix exponential is orthonormal to the last bit and smooth at 0, with its derivative; kornia's conversion is
    a first-order one for small angles, which steps of an optimisation are.
    """
    return torch.linalg.matrix_exp(cross_matrix(omega))


def rotation_log(R: Tensor) -> Tensor:
    """Rotation vectors [..., 3] (radians) of rotations [..., 3, 3] below half a turn."""
    skew = (R - R.mT) / 2
    sine_axis = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1)
    cosine = ((R.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1)
    sine = sine_axis.norm(dim=-1)
    angle = torch.atan2(sine, cosine)
    return sine_axis * torch.where(sine > 1e-9, angle / sine.clamp_min(1e-9), 1.0)[..., None]


@dataclass(frozen=True)
class Similarity:
    """x -> scale R x + t, for points in rows.

    Attributes:
        scale: units of the target in one of the source.
        R: [3, 3] rotation.
        t: [3] in the target's unit.
    """

    scale: float
    R: NDArray[np.float64]
    t: NDArray[np.float64]

    def __call__(self, x: FloatArray) -> NDArray[np.float64]:
        """Points [..., 3] of the source in the target's coordinates."""
        return self.scale * np.asarray(x, np.float64) @ self.R.T + self.t

    def inverse(self, x: FloatArray) -> NDArray[np.float64]:
        """Points [..., 3] of the target in the source's coordinates."""
        return (np.asarray(x, np.float64) - self.t) @ self.R / self.scale


def fit_similarity(source: FloatArray, target: FloatArray, *, scaled: bool = True) -> Similarity:
    """Least-squares similarity of corresponding points [N, 3] (Umeyama 1991), a rigid motion unless ``scaled``."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a)

    # A reflection would fit better where the points are nearly flat: turn the least important axis round.
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    R = (u * sign) @ vt
    scale = float((s * sign).sum() / (a**2).sum()) if scaled else 1.0
    return Similarity(scale, R, target.mean(0) - scale * R @ source.mean(0))


def fit_similarities(source: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Points [B, N, 3] moved by the weighted similarity each that brings them onto ``target`` [N, 3] best.

    ``weight`` [N, 1] sums to 1. Differentiable where the singular values differ.
    """
    middle = (target * weight).sum(0)
    a = source - (source * weight).sum(1, keepdim=True)
    u, s, vt = torch.linalg.svd(torch.einsum("pi,bpj->bij", (target - middle) * weight, a))
    sign = torch.ones_like(s)
    sign[:, 2] = torch.sign(torch.linalg.det(u @ vt))
    scale = (s * sign).sum(1) / (a.square() * weight).sum((1, 2))
    return scale[:, None, None] * a @ ((u * sign[:, None]) @ vt).mT + middle
