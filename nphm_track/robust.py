"""Robust kernels: what a squared residual costs, and how much it still pulls.

Each takes squared residuals and a scale in the residual's unit, and returns the robust square and its derivative by
the squared residual; that derivative is the weight with which iteratively reweighted least squares takes the residual.
"""

from __future__ import annotations

from torch import Tensor


def charbonnier(squared: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Quadratic up to ``scale`` and linear beyond: value and weight 1 / sqrt(1 + squared / scale^2)."""
    root = (1 + squared / scale**2).sqrt()
    return 2 * squared / (root + 1), 1 / root


def geman_mcclure(squared: Tensor, scale: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """Bounded by ``scale`` squared: value squared * s and weight s^2, with s = 1 / (1 + squared / scale^2)."""
    slope = 1 / (1 + squared / scale**2)
    return squared * slope, slope.square()
