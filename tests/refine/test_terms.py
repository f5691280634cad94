"""Every term's gradient is the derivative of its energy, and robustness does what it says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from nphm_track.refine import terms
from nphm_track.refine.surface import tangent_frame
from nphm_track.refine.view import Rows, bends
from nphm_track.rigid import rotation, rotation_log

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
    check(lambda p: terms.Points().compare(base + jacobian @ p, jacobian, torch.zeros_like(base), share))


def test_landmarks() -> None:
    base, jacobian, share = 2 * draw(B, N, 2), draw(B, N, 2, C, seed=1), draw(B, N, seed=2).abs()
    eyes = torch.tensor([60.0, 90.0], dtype=torch.float64)
    check(lambda p: terms.Landmarks().compare(base + jacobian @ p, jacobian, torch.zeros_like(base), share, eyes))


def test_normals() -> None:
    normal = F.normalize(draw(B, N, 3), dim=-1)
    target = F.normalize(normal + 0.2 * draw(B, N, 3, seed=1), dim=-1)
    tangents = tangent_frame(normal.flatten(0, 1)).view(B, N, 2, 3)
    jacobian, share = draw(B, N, 2, C, seed=2), draw(B, N, seed=3).abs()

    def term(p: Tensor) -> Rows:
        turned = F.normalize(normal + torch.einsum("bnik,bnic,c->bnk", tangents, jacobian, p), dim=-1)
        return terms.Normals().compare(turned, tangents, jacobian, target, share)

    check(term, 1e-5)


def test_parameters_and_range() -> None:
    value = torch.tensor([-0.5, -0.1, 0.4, 1.3], dtype=torch.float64)
    kinds: tuple[Callable[[Tensor], Rows], ...] = (
        lambda v: terms.parameter_rows(v, 0.3),
        lambda v: terms.parameter_rows(v, 0.3, outlier=1.0),
        terms.Range().compare,
    )
    for term in kinds:
        for c in range(C):
            step = 1e-6 * F.one_hot(torch.tensor(c), C).double()
            numeric = (term(value + step).energy - term(value - step).energy) / 2e-6
            gradient = term(value).diagonal()[1]
            assert float(numeric) == pytest.approx(float(gradient[c]), rel=1e-6, abs=1e-8)
    inside = terms.Range().compare(torch.tensor([0.0, 1.0]))
    assert inside.energy == 0 and not inside.diagonal()[0].any()


TIMES = torch.tensor([0.0, 0.03, 0.07, 0.1, 0.9, 0.93, 0.97, 1.0], dtype=torch.float64)
SHOTS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


def test_bends_know_time_and_cuts() -> None:
    at = bends(TIMES, SHOTS)
    assert at.frames.tolist() == [1, 2, 5, 6]
    index = at.frames[:, None] + torch.arange(-1, 2)
    for values, second in ((3 * TIMES + 1, 0.0), (2.5 * TIMES.square(), 5.0)):
        bend = (values[index] * at.factors).sum(1)
        assert torch.allclose(bend, torch.full_like(bend, second), atol=1e-9)


def check_motion(compare: Callable[[Tensor], Rows], steps: tuple[tuple[int, int], ...], tolerance: float) -> None:
    """The gradient by single values [8, 3] is the central difference of the energy."""
    at, zero = bends(TIMES, SHOTS), torch.zeros(8, 3, dtype=torch.float64)
    rows, gradient = compare(zero), zero.clone()
    for k in range(3):
        pull = torch.einsum("mdi,md->mi", rows.jacobian[:, :, k], rows.residual * rows.weight)
        gradient.index_add_(0, at.frames + k - 1, pull)
    for t, d in steps:
        step = zero.clone()
        step[t, d] = 1e-6
        numeric = (compare(step).energy.sum() - compare(-step).energy.sum()) / 2e-6
        assert float(gradient[t, d]) == pytest.approx(float(numeric), rel=tolerance, abs=1e-6)


def test_motion_gradients() -> None:
    at, values = bends(TIMES, SHOTS), 0.05 * draw(8, 3)
    some = ((0, 0), (2, 1), (6, 2))
    check_motion(lambda step: terms.ExpressionMotion().compare(values + step, at), some, 1e-5)
    check_motion(lambda step: terms.Translation().compare(0.1 * values + step, at), some, 1e-5)
    R = rotation(0.05 * draw(8, 3).cumsum(0))
    check_motion(lambda step: terms.Rotation().compare(rotation(step) @ R, at), (*some, (7, 0)), 1e-3)


def test_a_blink_costs_no_more_the_sharper_it_is() -> None:
    times = torch.arange(31) / 30.0
    at = bends(times.double(), torch.zeros(31))
    blink = torch.exp(-(((times - 0.5) / 0.05) ** 2)).double()[:, None]

    def cost(values: Tensor) -> float:
        return float(terms.ExpressionMotion().compare(values, at).energy.sum())

    noise = 0.02 * draw(31, 1)
    assert cost(2 * blink) < 1.7 * cost(blink), "a square would cost four times as much"
    assert cost(4 * noise) > 3 * cost(noise)


def test_rotation_log_inverts_rotation() -> None:
    omega = torch.cat([0.8 * draw(10, 3), torch.zeros(1, 3, dtype=torch.float64)])
    assert torch.allclose(rotation_log(rotation(omega)), omega, atol=1e-9)


def test_unknown_terms_and_fields_are_refused() -> None:
    assert terms.Terms().changed({"tracks": {"evidence": 40}}).tracks.evidence == 40
    for wrong in ({"track": {"evidence": 40}}, {"tracks": {"weight": 40}}, {"normals": {"sigma": -1}}):
        with pytest.raises(ValidationError):
            terms.Terms().changed(wrong)
