"""The decoder arranged for rows of derivatives is the decoder: values, first and second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nphm_track.refine.network import PointDecoder, _Silu
from nphm_track.refine.pixels import rays_of

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def points(person: Any) -> tuple[Tensor, Tensor]:
    """Points [P, 3] at the surface (model units) and their expression codes."""
    rays = rays_of(person.truth, person.evidence.targets.pixels, person.depth)
    return (rays.origin + rays.depth[:, None] * rays.direction) / 0.25, person.truth.z_ex[rays.frame]


def derivatives(function: Callable[..., Tensor], *leaves: Tensor) -> list[Tensor]:
    """Value, gradient by each leaf, and the derivative of one direction of the first gradient by each leaf."""
    inputs = [leaf.detach().clone().requires_grad_(True) for leaf in leaves]
    value = function(*inputs)
    first = torch.autograd.grad(value.sum(), inputs, create_graph=True)
    along = (first[0] * torch.tensor([0.3, 0.5, -0.2])).sum()
    return [value.detach(), *(d.detach() for d in first), *torch.autograd.grad(along, inputs)]


@pytest.mark.parametrize("own", [False, True])
def test_agrees_with_the_decoder(person: Any, points: tuple[Tensor, Tensor], own: bool) -> None:
    model, z_id, (x, z_ex) = person.model, person.truth.z_id, points
    view, basis = PointDecoder(model), person.space.identity
    everyone, parts = z_id.expand(len(x), -1), view.identity_parts(z_id).detach()
    if own:
        plain = derivatives(lambda a, b, c: model.sdf(a[:, None], b, c)[:, 0], x, everyone, z_ex)
        fast = derivatives(view.distances, x, parts.expand(len(x), -1), z_ex)
        by_weight = view.identity_parts_by(z_id, basis)
        for k in (2, 5):
            plain[k], fast[k] = plain[k] @ basis, fast[k] @ by_weight
    else:
        plain = derivatives(lambda a, c: model.sdf(a[:, None], everyone, c)[:, 0], x, z_ex)
        fast = derivatives(lambda a, c: view.distances(a, parts, c), x, z_ex)
    assert (plain[0] - fast[0]).abs().max() < 1e-6
    for k, (a, b) in enumerate(zip(plain[1:], fast[1:], strict=True)):
        assert (a - b).norm() < TOLERANCE * a.norm(), k


def test_silu_knows_its_derivatives() -> None:
    x = torch.linspace(-12, 12, 41, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_Silu.apply, x)
    assert torch.autograd.gradgradcheck(_Silu.apply, x)
