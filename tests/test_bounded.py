from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from nphm_track.bounded import solve_within


def problems(count: int, size: int, alike: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``count`` problems whose first unknowns do nearly the same as the next ones, by the share ``alike``."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(count, size + 4, size))
    third = size // 3
    rows[..., :third] = alike * rows[..., third : 2 * third] + (1 - alike) * rows[..., :third]
    return rows, rng.normal(size=(count, size + 4))


@pytest.mark.parametrize("alike", [0.0, 0.98])
def test_finds_what_the_reference_finds(alike: float) -> None:
    rows, wanted = problems(6, 24, alike)
    low, high = np.linspace(-0.2, 0, 24), np.full(24, 0.15)
    hessian, gradient = rows.swapaxes(1, 2) @ rows, (rows.swapaxes(1, 2) @ wanted[..., None])[..., 0]
    found = solve_within(hessian, gradient, low, high)
    assert (found >= low).all() and (found <= high).all() and ((found == low) | (found == high)).any()
    expected = [lsq_linear(a, b, (low, high), tol=1e-14).x for a, b in zip(rows, wanted, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_problems_do_not_disturb_each_other() -> None:
    rows, wanted = problems(5, 12, 0.9)
    hessian, gradient = rows.swapaxes(1, 2) @ rows, (rows.swapaxes(1, 2) @ wanted[..., None])[..., 0]
    together = solve_within(hessian, gradient, 0, np.inf)
    alone = [solve_within(hessian[k : k + 1], gradient[k : k + 1], 0, np.inf)[0] for k in range(5)]
    np.testing.assert_allclose(together, alone, atol=1e-12)


def test_without_bounds_it_is_a_linear_system() -> None:
    rows, wanted = problems(1, 8, 0.0)
    hessian, gradient = rows[0].T @ rows[0], rows[0].T @ wanted[0]
    found = solve_within(hessian, gradient[None], -np.inf, np.inf)
    np.testing.assert_allclose(found[0], np.linalg.solve(hessian, gradient), atol=1e-10)
