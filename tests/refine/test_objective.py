"""Every term's gradient is the derivative of its energy, and robustness does what it says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nphm_track.refine import objective
from nphm_track.refine.objective import Rows, Weights
from nphm_track.refine.surface import tangent_frame
from nphm_track.rigid import rotation, rotation_log

W = Weights()
B, N, C = 2, 5, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(term: Callable[[Tensor], Rows], tolerance: float = 1e-5) -> None:
    """The gradient J^T W r of a term of parameters [C] is the central difference of its energy, each frame."""
    zero = torch.zeros(C, dtype=torch.float64)
    gradient = term(zero).normal_equations()[1]
    for c in range(C):
        step = 1e-7 * F.one_hot(torch.tensor(c), C).double()
        numeric = (term(step).energy - term(-step).energy) / 2e-7
        assert torch.allclose(gradient[:, c], numeric, rtol=tolerance, atol=tolerance * float(gradient.abs().max()))


@pytest.mark.parametrize("size", [0.001, 0.02])
def test_points(size: float) -> None:
    """Near errors and outliers."""
    base, jacobian, share = size * draw(B, N, 3), draw(B, N, 3, C, seed=1), draw(B, N, seed=2).abs()
    check(lambda p: objective.point_term(base + jacobian @ p, jacobian, torch.zeros_like(base), share, W))


def test_landmarks() -> None:
    base, jacobian, share = 2 * draw(B, N, 2), draw(B, N, 2, C, seed=1), draw(B, N, seed=2).abs()
    eyes = torch.tensor([60.0, 90.0], dtype=torch.float64)
    check(lambda p: objective.landmark_term(base + jacobian @ p, jacobian, torch.zeros_like(base), share, eyes, W))


def test_normals() -> None:
    normal = F.normalize(draw(B, N, 3), dim=-1)
    target = F.normalize(normal + 0.2 * draw(B, N, 3, seed=1), dim=-1)
    tangents = tangent_frame(normal.flatten(0, 1)).view(B, N, 2, 3)
    jacobian, share = draw(B, N, 2, C, seed=2), draw(B, N, seed=3).abs()

    def term(p: Tensor) -> Rows:
        turned = F.normalize(normal + torch.einsum("bnik,bnic,c->bnk", tangents, jacobian, p), dim=-1)
        return objective.normal_term(turned, tangents, jacobian, target, share, W)

    check(term, 1e-5)


def test_prior_and_box() -> None:
    value = torch.tensor([-0.5, -0.1, 0.4, 1.3], dtype=torch.float64)
    terms = (
        lambda v: objective.prior_term(v, 0.3),
        lambda v: objective.prior_term(v, 0.3, outlier=1.0),
        lambda v: objective.box_term(v, W),
    )
    for term in terms:
        for c in range(C):
            step = 1e-6 * F.one_hot(torch.tensor(c), C).double()
            numeric = (term(value + step).energy - term(value - step).energy) / 2e-6
            assert float(numeric) == pytest.approx(float(term(value).gradient[c]), rel=1e-6, abs=1e-8)
    inside = objective.box_term(torch.tensor([0.0, 1.0]), W)
    assert inside.energy == 0 and not inside.diagonal.any()


TIMES = torch.tensor([0.0, 0.03, 0.07, 0.1, 0.9, 0.93, 0.97, 1.0], dtype=torch.float64)
SHOTS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


def test_bends_know_time_and_cuts() -> None:
    at = objective.bends(TIMES, SHOTS)
    assert at.frames.tolist() == [1, 2, 5, 6]
    index = at.frames[:, None] + torch.arange(-1, 2)
    for values, second in ((3 * TIMES + 1, 0.0), (2.5 * TIMES.square(), 5.0)):
        bend = (values[index] * at.factors).sum(1)
        assert torch.allclose(bend, torch.full_like(bend, second), atol=1e-9)


def test_smoothness_gradient() -> None:
    at, values = objective.bends(TIMES, SHOTS), 0.05 * draw(8, 3)
    for function in (
        lambda v: objective.smoothness(v, at, W.expression_acceleration, W),
        lambda v: objective.translation_smoothness(0.1 * v, at, W),
    ):
        scale = (
            W.expression_acceleration
            if function(values)[0].equal(objective.smoothness(values, at, W.expression_acceleration, W)[0])
            else W.translation_acceleration / 0.1
        )
        residual, weight, _ = function(values)
        gradient = torch.zeros_like(values)
        for k in range(3):
            gradient.index_add_(0, at.frames + k - 1, residual * weight * at.factors[:, k : k + 1] / scale)
        for t, d in ((0, 0), (2, 1), (6, 2)):
            step = torch.zeros_like(values)
            step[t, d] = 1e-6
            numeric = (function(values + step)[2].sum() - function(values - step)[2].sum()) / 2e-6
            assert float(gradient[t, d]) == pytest.approx(float(numeric), rel=1e-5, abs=1e-6)


def test_rotation_smoothness_gradient() -> None:
    at = objective.bends(TIMES, SHOTS)
    R = rotation(0.05 * draw(8, 3).cumsum(0))
    residual, weight, _, jacobian = objective.rotation_smoothness(R, at, W)
    gradient = torch.zeros(8, 3, dtype=torch.float64)
    for k in range(3):
        gradient.index_add_(0, at.frames + k - 1, torch.einsum("mdi,md->mi", jacobian[:, :, k], residual * weight))
    for t, d in ((0, 0), (2, 1), (5, 2), (7, 0)):
        step = torch.zeros(8, 3, dtype=torch.float64)
        step[t, d] = 1e-6
        ahead, back = (objective.rotation_smoothness(rotation(s * step) @ R, at, W)[2].sum() for s in (1, -1))
        assert float(gradient[t, d]) == pytest.approx(float((ahead - back) / 2e-6), rel=1e-3)


def test_a_blink_costs_no_more_the_sharper_it_is() -> None:
    times = torch.arange(31) / 30.0
    at = objective.bends(times.double(), torch.zeros(31))
    blink = torch.exp(-(((times - 0.5) / 0.05) ** 2)).double()[:, None]
    costs = [float(objective.smoothness(h * blink, at, W.expression_acceleration, W)[2].sum()) for h in (1.0, 2.0)]
    noise = 0.02 * draw(31, 1)
    assert costs[1] < 1.7 * costs[0], "a square would cost four times as much"
    assert float(objective.smoothness(4 * noise, at, W.expression_acceleration, W)[2].sum()) > 3 * float(
        objective.smoothness(noise, at, W.expression_acceleration, W)[2].sum()
    )


def test_rotation_log_inverts_rotation() -> None:
    omega = torch.cat([0.8 * draw(10, 3), torch.zeros(1, 3, dtype=torch.float64)])
    assert torch.allclose(rotation_log(rotation(omega)), omega, atol=1e-9)
