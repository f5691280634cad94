"""L2D of the training: gradients to codes through either renderer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nphm_track.training.render_loss import Kind, render_loss


@pytest.fixture(scope="module")
def loss(person: Any) -> Any:
    """The loss of the three frames by kind and expression codes, at the person's true places."""
    truth, targets = person.truth, person.evidence.targets
    seen = targets.normal_weight[..., None] > 0
    centre = -(truth.t[:, None] @ truth.R)[:, 0].float()

    def of(kind: Kind, z_ex: Tensor, rows: slice = slice(None)) -> Tensor:
        z_id = truth.z_id.expand(len(z_ex), -1)
        points, normals = (targets.points * seen)[rows], (targets.normals * seen)[rows]
        return render_loss(person.model, kind, z_id, z_ex, points.float(), normals.float(), centre[rows])

    return of


@pytest.mark.parametrize(
    ("kind", "most"), [("surface", 1e-4), ("volume", 0.01)]
)  # a volume is half a millimetre's blur
def test_the_truth_costs_least(person: Any, loss: Any, kind: Kind, most: float) -> None:
    smile = person.space.expression[:, person.model.config.expression_names.index("jawOpen")]
    at_truth = loss(kind, person.truth.z_ex)
    assert at_truth < most
    assert loss(kind, person.truth.z_ex + 0.5 * smile) > at_truth + 0.004


def test_gradient_is_the_losses_slope(person: Any, loss: Any) -> None:
    """Along a motion of the brows, which no ray loses or finds; between the lips the loss has steps."""
    brow = person.space.expression[:, person.model.config.expression_names.index("browInnerUp_R")]
    amount = torch.tensor(0.4, requires_grad=True)
    (slope,) = torch.autograd.grad(loss("surface", person.truth.z_ex + amount * brow), amount)
    after, before = (loss("surface", person.truth.z_ex + (0.4 + h) * brow).item() for h in (0.02, -0.02))
    assert float(slope) == pytest.approx((after - before) / 0.04, rel=0.02)


def test_both_renderers_pull_back(person: Any, loss: Any) -> None:
    brow = person.space.expression[:, person.model.config.expression_names.index("browInnerUp_R")]
    for kind in ("surface", "volume"):
        amount = torch.tensor(0.6, requires_grad=True)
        (slope,) = torch.autograd.grad(loss(kind, person.truth.z_ex + amount * brow), amount)
        assert slope > 0


def test_nothing_seen_is_no_loss(person: Any) -> None:
    zero = torch.zeros(1, 4, 3)
    z_ex = person.truth.z_ex[:1].clone().requires_grad_(True)
    value = render_loss(person.model, "surface", person.truth.z_id[None], z_ex, zero, zero, torch.zeros(1, 3))
    value.backward()
    assert value == 0
    assert torch.isfinite(z_ex.grad).all()
