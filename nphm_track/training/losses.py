"""Losses as pure functions; distances in model units."""

from __future__ import annotations

import torch
from torch import Tensor


def sdf_loss(predicted: Tensor, target: Tensor, width: float = 0.04) -> Tensor:
    """Mean absolute distance error that counts most near the surface: 1 / (1 + |target| / width). Any equal shapes."""
    return ((predicted - target).abs() / (1 + target.abs() / width)).mean()


def point_loss(predicted: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean Euclidean distance between points [..., 3], optionally weighted [...]."""
    distance = (predicted - target).square().sum(-1).add(1e-10).sqrt()
    return distance.mean() if weight is None else (distance * weight).sum() / weight.sum().clamp_min(1)


def motion_loss(predicted: Tensor, target: Tensor, weight: Tensor, width: float = 0.012) -> Tensor:
    """Weighted mean of d + d^2 / (2 width) over points [..., 3] with weights [...].

    The square keeps small parts with large motions, such as the lids, from being given up; ``width`` (3 mm) is where it
    takes over.
    """
    squared = (predicted - target).square().sum(-1)
    loss = squared.add(1e-10).sqrt() + squared / (2 * width)
    return (loss * weight).sum() / weight.sum().clamp_min(1)


def normal_loss(gradient: Tensor, normal: Tensor) -> Tensor:
    """Mean length of the difference between SDF gradients and unit normals [..., 3] (MonoNPHM's normal term)."""
    return (gradient - normal).norm(dim=-1).mean()


def code_norm(code: Tensor) -> Tensor:
    """Mean squared length of codes [..., D] (regulariser R)."""
    return code.square().sum(-1).mean()


def hyper_norm(hyper: Tensor) -> Tensor:
    """Mean squared hyper coordinate [..., H]."""
    return torch.mean(hyper.square())
