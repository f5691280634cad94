"""Least squares within bounds, exactly, for many small problems at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

PATIENCE = 3
"""Rounds that may bring no fewer wrong unknowns before they are mended one by one."""
ROUNDS = 200
TOLERANCE = 1e-9
"""Of the unknowns, below which none is called wrong."""


def solve_within(hessian: ArrayLike, gradient: ArrayLike, low: ArrayLike, high: ArrayLike) -> NDArray[np.float64]:
    """x [F, E] with x' H x / 2 - g' x smallest and ``low`` <= x <= ``high``, by block principal pivoting.

    Each unknown is free or at a bound; the free ones are solved for, and all that are wrong (outside, or pulled inwards
    from their bound) change sides, until none is. Where that runs in circles, one at a time does, which ends (Júdice
    and Pires, Computers and Operations Research 21, 1994).

    Args:
        hessian: [F, E, E] or [E, E], positive definite.
        gradient: [F, E].
        low, high: [F, E] or [E]; infinite where there is no bound.
    """
    g = np.asarray(gradient, np.float64)
    H = np.broadcast_to(np.asarray(hessian, np.float64), (*g.shape, g.shape[-1]))
    lo, hi = (np.broadcast_to(np.asarray(bound, np.float64), g.shape) for bound in (low, high))
    side = np.zeros(g.shape, np.int8)  # -1: at the lower bound, 1: at the upper, 0: free
    x = np.zeros_like(g)
    fewest, patience = np.full(len(g), g.shape[-1] + 1), np.full(len(g), PATIENCE)
    rows = np.arange(len(g))
    for _ in range(ROUNDS):
        if not len(rows):
            break
        s, h, own = side[rows], H[rows], g[rows]
        held = s != 0
        at = np.where(s < 0, lo[rows], np.where(s > 0, hi[rows], 0.0))
        free = ~held[:, :, None] & ~held[:, None, :]
        system = np.where(free, h, np.eye(h.shape[-1]))
        right = np.where(held, at, own - _times(h, at))
        found = np.linalg.solve(system, right[..., None])[..., 0]
        pull = (own - _times(h, found)) / h.diagonal(axis1=1, axis2=2)

        outside = (found < lo[rows] - TOLERANCE) | (found > hi[rows] + TOLERANCE)
        wrong = np.where(held, s * pull < -TOLERANCE, outside)
        count = wrong.sum(1)
        better = count < fewest[rows]
        patience[rows] = np.where(better, PATIENCE, patience[rows] - 1)
        fewest[rows] = np.minimum(count, fewest[rows])
        last = wrong.shape[1] - 1 - wrong[:, ::-1].argmax(1)
        only_last = np.arange(wrong.shape[1]) == last[:, None]
        wrong &= only_last | (patience[rows] >= 0)[:, None]

        entering = np.where(found < lo[rows], -1, 1)
        side[rows] = np.where(wrong, np.where(held, 0, entering), s)
        x[rows] = found
        rows = rows[count > 0]
    return np.clip(x, lo, hi)


def _times(matrices: NDArray[np.float64], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return (matrices @ vectors[..., None])[..., 0]
