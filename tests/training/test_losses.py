from __future__ import annotations

import math

import pytest
import torch

from nphm_track.training import losses as L


def test_sdf_loss_counts_most_near_the_surface() -> None:
    target = torch.tensor([0.0, 0.04, -0.12])
    loss = L.sdf_loss(target + torch.tensor([0.01, -0.01, 0.01]), target)
    assert loss.item() == pytest.approx(0.01 * (1 + 1 / 2 + 1 / 4) / 3)
    assert L.sdf_loss(target, target).item() == 0


def test_point_loss_is_a_mean_distance() -> None:
    a = torch.tensor([[[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]]])
    b = torch.zeros_like(a)
    assert L.point_loss(a, b).item() == pytest.approx(3, rel=1e-5)
    assert L.point_loss(a, b, torch.tensor([[0.0, 2.0]])).item() == pytest.approx(1, rel=1e-5)
    assert L.point_loss(a, b, torch.zeros(1, 2)).item() == 0


def test_point_loss_has_a_finite_gradient_where_points_coincide() -> None:
    a = torch.zeros(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(L.point_loss(a, torch.zeros(4, 3)), a)
    assert gradient.isfinite().all()


def test_normal_loss() -> None:
    normal = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    assert L.normal_loss(normal, normal).item() == 0
    assert L.normal_loss(normal.flip(0), normal).item() == pytest.approx(math.sqrt(2))
    assert L.normal_loss(-normal, normal).item() == pytest.approx(2)


def test_code_and_hyper_norms() -> None:
    codes = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    assert L.code_norm(codes).item() == pytest.approx(7)
    assert L.hyper_norm(codes).item() == pytest.approx(3.5)
