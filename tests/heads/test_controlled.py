"""A head model on control points: what they say about space, and how codes reach them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nphm_track.heads.controlled import ControlledDecoder, opposite

from .conftest import SILU

NAMES = ("jawOpen", "eyeBlink_L", "eyeBlink_R")
CONFIG = replace(
    SILU,
    name="controlled",
    control_points=40,
    control_members=4,
    detail_pairs=3,
    expression_names=NAMES,
    identity_basis=5,
    n_landmarks=7,
    landmark_rank=5,
)


@pytest.fixture(scope="module")
def model() -> ControlledDecoder:
    """Random planes about points of a sphere, random maps from codes, double precision."""
    torch.manual_seed(0)
    built = ControlledDecoder(CONFIG).double()
    state = built.state_dict()
    points = torch.nn.functional.normalize(torch.randn(CONFIG.control_points, 3), dim=-1) * 0.3
    first = torch.linalg.cross(points, torch.randn_like(points))
    state["controls.mean"] = torch.cat([points, first, torch.linalg.cross(points, first)], -1)
    state["controls.radius"] = torch.rand(CONFIG.control_points) * 0.1 + 0.1
    state["controls.members"] = torch.randint(CONFIG.n_members, (CONFIG.control_points, CONFIG.control_members))
    for name in ("controls.identity", "controls.expression", "controls.motion", "controls.lift"):
        state[name] = 0.02 * torch.randn(state[name].shape)
    for name in ("mean_anchors", "detail_anchors"):
        state[name] = 0.3 * torch.randn(state[name].shape)
    state["member_scale"] = 1 + torch.rand(len(state["member_scale"]))
    state["neighbours"] = torch.randint(CONFIG.n_members, state["neighbours"].shape)
    built.load_state_dict(state)
    return built.eval()


@pytest.fixture(scope="module")
def codes() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return (
        torch.randn(2, CONFIG.identity_dim, dtype=torch.float64),
        torch.randn(2, CONFIG.expression_dim, dtype=torch.float64),
    )


@pytest.fixture(scope="module")
def points() -> Tensor:
    torch.manual_seed(2)
    return 0.4 * torch.randn(2, 30, 3, dtype=torch.float64)


def test_the_neutral_expression_moves_nothing(
    model: ControlledDecoder, points: Tensor, codes: tuple[Tensor, Tensor]
) -> None:
    offset, hyper = model.deform(points, codes[0], torch.zeros_like(codes[1]))
    assert offset.abs().max() == 0 and hyper.shape == (2, 30, 0)
    assert model.deform(points, *codes)[0].abs().max() > 1e-3


def test_the_canonical_distance_is_the_distance_of_the_neutral_expression(
    model: ControlledDecoder, points: Tensor, codes: tuple[Tensor, Tensor]
) -> None:
    neutral = torch.zeros_like(codes[1])
    torch.testing.assert_close(model.canonical_sdf(points, codes[0]), model.sdf(points, codes[0], neutral))
    assert (model.canonical_sdf(points, codes[0]) - model.sdf(points, *codes)).abs().max() > 1e-3


def test_heads_of_a_batch_do_not_mix(model: ControlledDecoder, points: Tensor, codes: tuple[Tensor, Tensor]) -> None:
    together = model.sdf(points, *codes)
    for k in range(2):
        torch.testing.assert_close(model.sdf(points[k], codes[0][k], codes[1][k]), together[k])


def test_slopes_are_the_derivatives_of_what_is_seen(
    model: ControlledDecoder, points: Tensor, codes: tuple[Tensor, Tensor]
) -> None:
    x = points.clone().requires_grad_(True)
    controls = model.controls_of(*codes)
    seen, up, jacobian = model.controls.slopes(x, controls)
    plain = model.controls.look(x, controls)
    torch.testing.assert_close(
        torch.stack([seen.rough, *seen.template.unbind(-1)]), torch.stack([plain.rough, *plain.template.unbind(-1)])
    )
    torch.testing.assert_close(up, torch.autograd.grad(plain.rough.sum(), x, retain_graph=True)[0])
    for axis in range(3):
        (row,) = torch.autograd.grad(plain.template[..., axis].sum(), x, retain_graph=True)
        torch.testing.assert_close(jacobian[..., axis, :], row)


def test_a_control_point_sees_the_codes_of_its_own_members_alone(
    model: ControlledDecoder, codes: tuple[Tensor, Tensor]
) -> None:
    before = model.controls_of(*codes).position
    changed = codes[0].clone()
    glob, local = model.split_identity(changed)
    local[:, 3] += 1
    after = model.controls_of(torch.cat([glob, local.flatten(1)], -1), codes[1]).position
    sees = (model.controls.members == 3).any(1)
    assert sees.any() and not sees.all()
    assert torch.equal(((after - before).abs().amax((0, 2)) > 1e-6), sees)


def test_weights_stay_finite_far_from_every_control_point(
    model: ControlledDecoder, codes: tuple[Tensor, Tensor]
) -> None:
    far = torch.full((2, 1, 3), 40.0)
    single = model.float()
    try:
        assert single.sdf(far, *(c.float() for c in codes)).isfinite().all()
    finally:
        model.double()


def test_opposite_sides_of_an_expression() -> None:
    assert [opposite(n) for n in ("eyeBlink_L", "jawLeft", "mouthRight", "jawOpen")] == [
        "eyeBlink_R",
        "jawRight",
        "mouthLeft",
        "jawOpen",
    ]
