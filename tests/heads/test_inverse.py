"""Posing canonical points by inverting the backward deformation, and gradients through the solution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nphm_track.heads.inverse import PosedPoints, attach_gradient, pose_points

Build = Callable[..., Any]
TOLERANCE = 2e-4  # model units, 0.05 mm


@pytest.fixture(params=["softplus", "silu"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def mild(build: Build, kind: str, dtype: torch.dtype) -> Any:
    """A random model whose deformation moves points by millimetres and stays invertible."""
    model = build(kind, dtype=dtype)
    model.deformation[-1].weight *= 0.5
    model.deformation[-1].bias *= 0.2
    return model


def draw(model: Any, batch: tuple[int, ...], count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    c, dtype = model.config, model.mean_anchors.dtype
    points = torch.rand(*batch, count, 3, generator=generator) * 0.8 - 0.4
    z_id = torch.randn(*batch, c.identity_dim, generator=generator) * 0.3
    z_ex = torch.randn(*batch, c.expression_dim, generator=generator)
    return points.to(dtype), z_id.to(dtype), z_ex.to(dtype)


def identity_start(canonical: Tensor) -> PosedPoints:
    eye = torch.eye(3, dtype=canonical.dtype).expand(*canonical.shape, 3)
    return PosedPoints(canonical, eye, torch.zeros_like(canonical[..., 0]))


def solve(model: Any, canonical: Tensor, z_id: Tensor, z_ex: Tensor) -> Tensor:
    posed = pose_points(
        model, canonical, z_id, z_ex, warm=identity_start(canonical), tolerance=1e-11, max_iterations=60
    )
    assert posed.residual.max() <= 1e-11
    return posed.points


@pytest.mark.parametrize("batch", [(), (2,), (1, 2)])
def test_posed_points_map_back_to_the_canonical_ones(build: Build, kind: str, batch: tuple[int, ...]) -> None:
    model = mild(build, kind, torch.float32)
    canonical, z_id, z_ex = draw(model, batch, 400)
    posed = pose_points(model, canonical, z_id, z_ex)
    assert posed.points.shape == canonical.shape and posed.inverse_jacobian.shape == (*canonical.shape, 3)
    moved = (posed.points - canonical).norm(dim=-1)
    assert moved.mean() > 20 * TOLERANCE, "nothing to solve"
    back = posed.points + model.deform(posed.points, z_id, z_ex)[0]
    error = (back - canonical).norm(dim=-1)
    torch.testing.assert_close(posed.residual, error, rtol=0, atol=1e-6)
    assert (error <= TOLERANCE).float().mean() > 0.995  # the documented share; the others say so in ``residual``
    assert error.max() <= 10 * TOLERANCE


def test_warm_start_agrees_with_cold_start_and_needs_fewer_evaluations(
    build: Build, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mild(build, kind, torch.float32)
    canonical, z_id, z_ex = draw(model, (), 400)
    following = z_ex + 0.1 * torch.randn(z_ex.shape, generator=torch.Generator().manual_seed(1))
    calls = 0
    deform = model.deform

    def counted(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        return deform(*arguments)

    monkeypatch.setattr(model, "deform", counted)
    before = pose_points(model, canonical, z_id, z_ex)
    calls = 0
    cold = pose_points(model, canonical, z_id, following)
    cold_calls, calls = calls, 0
    warm = pose_points(model, canonical, z_id, following, warm=before)
    assert calls < cold_calls
    assert (warm.points - cold.points).norm(dim=-1).quantile(0.99) < 4 * TOLERANCE
    assert warm.residual.quantile(0.99) <= TOLERANCE


def test_neutral_without_deformation_stays_in_place(build: Build) -> None:
    model = mild(build, "softplus", torch.float32)
    model.deformation[-1].weight.zero_()
    model.deformation[-1].bias.zero_()
    canonical, z_id, z_ex = draw(model, (), 50)
    posed = pose_points(model, canonical, z_id, z_ex)
    torch.testing.assert_close(posed.points, canonical)
    assert posed.residual.max() == 0


def test_unreachable_points_say_so(build: Build) -> None:
    model = mild(build, "softplus", torch.float32)
    canonical, z_id, z_ex = draw(model, (), 50)
    posed = pose_points(model, canonical, z_id, z_ex, max_iterations=0)
    error = (canonical + model.deform(canonical, z_id, z_ex)[0] - canonical).norm(dim=-1)
    torch.testing.assert_close(posed.residual, error)
    assert posed.residual.min() > TOLERANCE


@pytest.mark.parametrize("of", ["canonical", "z_id", "z_ex"])
def test_attached_gradients_equal_finite_differences(build: Build, kind: str, of: str) -> None:
    model = mild(build, kind, torch.float64)
    inputs = dict(zip(("canonical", "z_id", "z_ex"), draw(model, (), 12), strict=True))
    generator = torch.Generator().manual_seed(2)
    cotangent = torch.randn(inputs["canonical"].shape, generator=generator, dtype=torch.float64)
    direction = torch.randn(inputs[of].shape, generator=generator, dtype=torch.float64)

    def moved(step: float) -> Tensor:
        return (solve(model, **{**inputs, of: inputs[of] + step * direction}) * cotangent).sum()

    numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5
    solution = solve(model, **inputs)
    variable = inputs[of].clone().requires_grad_()
    attached = attach_gradient(model, solution, **{**inputs, of: variable})
    torch.testing.assert_close(attached.detach(), solution, rtol=0, atol=1e-9)
    (gradient,) = torch.autograd.grad((attached * cotangent).sum(), variable)
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-3, atol=1e-6)


def test_attached_gradients_of_a_batch_equal_those_of_its_rows(build: Build) -> None:
    model = mild(build, "silu", torch.float64)
    canonical, z_id, z_ex = draw(model, (2,), 12)
    solution = solve(model, canonical, z_id, z_ex)
    z_ex.requires_grad_()
    (batched,) = torch.autograd.grad(attach_gradient(model, solution, canonical, z_id, z_ex).sum(), z_ex)
    for b in range(2):
        row = z_ex[b].detach().requires_grad_()
        (own,) = torch.autograd.grad(attach_gradient(model, solution[b], canonical[b], z_id[b], row).sum(), row)
        torch.testing.assert_close(batched[b], own, rtol=1e-9, atol=1e-11)
