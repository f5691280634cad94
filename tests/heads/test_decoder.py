"""The fast decoder against a plain one: every member at every point, one after the other, nothing sorted or split."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nphm_track.errors import ModelError
from nphm_track.heads.decoder import GroupedMlp
from nphm_track.heads.mononphm import decoder_from_state

State = dict[str, Tensor]
Build = Callable[..., Any]
KINDS = ("softplus", "silu", "mononphm")
MIRROR = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)


# -- the plain twin, for one head at a time: points [N, 3], z_id [D_id], z_ex [D_ex] -----------------------------------
def plain_activation(model: Any, x: Tensor) -> Tensor:
    return F.softplus(x, beta=100) if model.config.activation == "softplus" else x * torch.sigmoid(x)


def plain_anchors(model: Any, z_id: Tensor) -> Tensor:
    first, second, last = model.anchor_mlp
    return model.mean_anchors + last(second(first(z_id[: model.config.global_dim]).relu()).relu()).view(-1, 3)


def plain_deform(model: Any, points: Tensor, z_id: Tensor, z_ex: Tensor) -> tuple[Tensor, Tensor]:
    c = model.config
    compressed = model.compressor(torch.cat([z_id, plain_anchors(model, z_id).flatten()]))
    entry = torch.cat([points * c.deform_scale, torch.cat([compressed, z_ex]).expand(len(points), -1)], 1)
    h = entry
    for k, layer in enumerate(model.deformation[:-1]):
        h = torch.cat([h, entry], 1) / math.sqrt(2) if k == c.deform_skip else h
        h = plain_activation(model, layer(h))
    out = model.deformation[-1](h)
    offset = out[:, :3]
    if c.bilinear:
        offset = offset + (model.expression_field(h).view(-1, 3, c.expression_dim) * z_ex).sum(-1)
    return offset * c.offset_scale, out[:, 3:] * c.offset_scale


def plain_mlp(model: Any, mlp: GroupedMlp, group: int, h: Tensor, relu: bool = False) -> tuple[Tensor, Tensor]:
    """Output and the last hidden layer before its activation."""
    last = len(mlp.weights) - 1
    feature = h
    for k in range(last + 1):
        h = h @ mlp.weights[k][group].T + mlp.biases[k][group]
        if k == last - 1:
            feature = h
        if k < last:
            h = h.relu() if relu else plain_activation(model, h)
    return h, feature


def plain_ensemble(model: Any, q: Tensor, z_id: Tensor, z_app: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    c = model.config
    anchors = plain_anchors(model, z_id)
    distance = (q[:, None, :3] - anchors).norm(dim=-1)
    ascending = distance.sort(dim=1)[0]
    sigma = ascending[:, c.sigma_rank - 1] / c.sigma_divisor
    sdf, colour, total = torch.zeros_like(sigma), torch.zeros_like(q[:, :3]), torch.full_like(sigma, 1e-8)
    for i in range(c.n_members):
        delta = q.clone()
        group = i - c.n_pairs
        if i < c.n_anchors:
            delta = torch.cat([q[:, :3] - anchors[i], q[:, 3:]], 1)
        if i < 2 * c.n_pairs:
            group = i // 2
            if i % 2 == 1:
                delta = torch.cat([-delta[:, :1], delta[:, 1:]], 1)
        start = c.global_dim + i * c.local_dim
        local = slice(start, start + c.local_dim)
        condition = torch.cat([z_id[: c.global_dim], z_id[local]]).expand(len(q), -1)
        value, feature = plain_mlp(model, model.ensemble, group, torch.cat([condition, delta * c.local_scale], 1))
        if i < c.n_anchors:
            weight = torch.exp(-0.5 * (distance[:, i] / sigma) ** 2)
            weight = torch.where(distance[:, i] <= ascending[:, c.nearest - 1], weight, 0.0)
        else:
            weight = torch.exp(-0.5 * (c.free_distance / sigma) ** 2)
        sdf = sdf + weight * value[:, 0] * c.sdf_scale
        total = total + weight
        if z_app is not None:
            shared = model.bottleneck[1](model.bottleneck[0](feature).relu())
            condition = torch.cat([z_app[: c.global_dim], z_app[local]]).expand(len(q), -1)
            own = plain_mlp(model, model.appearance, group, torch.cat([condition, shared], 1), relu=True)[0]
            colour = colour + weight[:, None] * own
    return sdf / total, None if z_app is None else colour / total[:, None]


def plain_sdf(model: Any, points: Tensor, z_id: Tensor, z_ex: Tensor) -> Tensor:
    offset, hyper = plain_deform(model, points, z_id, z_ex)
    return plain_ensemble(model, torch.cat([points + offset, hyper], 1), z_id)[0]


def over_batch(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """Apply a plain function to each head of arguments with the same leading batch dimensions."""
    lead = arguments[0].shape[:-2]
    flat = [a.reshape(-1, *a.shape[len(lead) :]) for a in arguments]
    rows = torch.stack([function(*(f[b] for f in flat)) for b in range(len(flat[0]))])
    return rows.reshape(*lead, *rows.shape[1:])


def draw(model: Any, batch: tuple[int, ...], count: int = 23) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    c = model.config
    points = torch.rand(*batch, count, 3, generator=generator, dtype=torch.float64) - 0.5
    z_id = torch.randn(*batch, c.identity_dim, generator=generator, dtype=torch.float64) * 0.3
    z_ex = torch.randn(*batch, c.expression_dim, generator=generator, dtype=torch.float64) * 0.3
    return points, z_id, z_ex


# -- twins agree -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch", [(), (2,), (1, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_equal_the_plain_twin(build: Build, kind: str, batch: tuple[int, ...]) -> None:
    model = build(kind)
    inputs = tuple(x.requires_grad_() for x in draw(model, batch))
    fast = model.sdf(*inputs)
    slow = over_batch(lambda *a: plain_sdf(model, *a), *inputs)
    assert fast.shape == (*batch, 23) and fast.std() > 1e-4
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-11)
    cotangent = torch.linspace(-1, 1, 23, dtype=torch.float64)
    for got, expected in zip(
        torch.autograd.grad((fast * cotangent).sum(), inputs),
        torch.autograd.grad((slow * cotangent).sum(), inputs),
        strict=True,
    ):
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("batch", [(), (2,), (1, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_deformation_equals_the_plain_twin(build: Build, kind: str, batch: tuple[int, ...]) -> None:
    model = build(kind)
    inputs = draw(model, batch)
    offset, hyper = model.deform(*inputs)
    assert hyper.shape == (*batch, 23, 2)
    torch.testing.assert_close(
        offset, over_batch(lambda *a: plain_deform(model, *a)[0], *inputs), rtol=1e-9, atol=1e-11
    )
    torch.testing.assert_close(hyper, over_batch(lambda *a: plain_deform(model, *a)[1], *inputs), rtol=1e-9, atol=1e-11)


def test_colour_equals_the_plain_twin(build: Build) -> None:
    model = build("mononphm")
    points, z_id, z_ex = draw(model, (2,))
    z_app = z_id.flip(-1)
    queries = model.canonical_queries(points, z_id, z_ex)
    rows: Any = [plain_ensemble(model, queries[b], z_id[b], z_app[b])[1] for b in range(2)]
    torch.testing.assert_close(model.colour(points, z_id, z_app, z_ex), torch.stack(rows), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["softplus", "silu"])
def test_one_code_serves_a_batch_of_points(build: Build, kind: str) -> None:
    model = build(kind)
    points, z_id, z_ex = draw(model, (2,))
    shared = model.sdf(points, z_id[0], z_ex[0])
    torch.testing.assert_close(shared[1], model.sdf(points[1], z_id[0], z_ex[0]))


@pytest.mark.parametrize("kind", ["softplus", "silu"])
def test_gradient_is_the_slope(build: Build, kind: str) -> None:
    model = build(kind)
    points, z_id, z_ex = draw(model, ())
    sdf, gradient = model.gradient(points, z_id, z_ex)
    assert not sdf.requires_grad and not gradient.requires_grad
    step = 1e-6 * torch.eye(3, dtype=torch.float64)
    slope = (
        torch.stack([model.sdf(points + s, z_id, z_ex) - model.sdf(points - s, z_id, z_ex) for s in step], -1) / 2e-6
    )
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-6)


def test_canonical_sdf_takes_points_without_hyper_coordinates(build: Build) -> None:
    model = build("silu")
    points, z_id, _ = draw(model, ())
    torch.testing.assert_close(model.canonical_sdf(points, z_id), model.canonical_sdf(F.pad(points, (0, 2)), z_id))


def test_grouped_mlp_with_empty_groups() -> None:
    mlp = GroupedMlp(4, condition=2, point=3, hidden=5, hidden_layers=1, out=2)
    x, constants = torch.randn(5, 3), torch.randn(6, 5)
    which = torch.tensor([4, 0, 4, 1, 2])
    out = mlp(x, [0, 3, 0, 2], constants, which, torch.relu)
    for row, group in enumerate([1, 1, 1, 3, 3]):
        h = (mlp.weights[0][group][:, 2:] @ x[row] + constants[which[row]]).relu()
        torch.testing.assert_close(out[row], mlp.weights[1][group] @ h + mlp.biases[1][group])
    assert mlp(x[:0], [0, 0, 0, 0], constants, which[:0], torch.relu).shape == (0, 2)


# -- symmetry ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["softplus", "silu"])
def test_swapping_the_blocks_of_pairs_mirrors_the_head(build: Build, kind: str) -> None:
    model = build(kind)
    c = model.config
    for parameter in (model.anchor_mlp[2].weight, model.anchor_mlp[2].bias):
        parameter.zero_()  # anchors stay at their symmetric means
    x_column = c.global_dim + c.local_dim
    model.ensemble.weights[0][c.n_pairs :, :, x_column] = 0  # members without a partner must be symmetric themselves
    points, z_id, _ = draw(model, ())
    member = torch.arange(c.n_members)
    partner = torch.where(member < 2 * c.n_pairs, member ^ 1, member)
    glob, local = model.split_identity(z_id)
    mirrored = torch.cat([glob, local[partner].flatten()])
    sdf = model.canonical_sdf(points, z_id)
    torch.testing.assert_close(model.canonical_sdf(points * MIRROR, mirrored), sdf, rtol=1e-9, atol=1e-12)
    assert (model.canonical_sdf(points * MIRROR, z_id) - sdf).abs().max() > 1e-4


# -- foreign state dicts -----------------------------------------------------------------------------------------------
def test_a_missing_tensor_is_named(public_state: tuple[State, State], golden: State) -> None:
    identity, expression = (dict(s) for s in public_state)
    del expression["defDeepSDF.lin3.bias"]
    with pytest.raises(ModelError, match=r"'defDeepSDF\.lin3\.bias' is missing"):
        decoder_from_state(identity, expression, golden["anchors_mean"])


def test_a_superfluous_tensor_is_named(public_state: tuple[State, State], golden: State) -> None:
    identity, expression = (dict(s) for s in public_state)
    identity["mlp_pos.6.weight"] = torch.zeros(3, 3)
    with pytest.raises(ModelError, match=r"unknown tensor 'mlp_pos\.6\.weight'"):
        decoder_from_state(identity, expression, golden["anchors_mean"])


@pytest.mark.parametrize(
    "name", ["deepSDFensemble.layers.7.layers.0.weight", "mlp_pos.4.bias", "communcation_bottleneck1.weight"]
)
def test_a_tensor_of_another_shape_is_named(public_state: tuple[State, State], golden: State, name: str) -> None:
    identity, expression = (dict(s) for s in public_state)
    identity[name] = identity[name][..., :-1]
    with pytest.raises(ModelError, match=rf"'{name}' has shape .* instead of"):
        decoder_from_state(identity, expression, golden["anchors_mean"])


def test_anchors_of_another_count_are_refused(public_state: tuple[State, State], golden: State) -> None:
    with pytest.raises(ModelError, match=r"\[39, 3\] instead of \[65, 3\]"):
        decoder_from_state(*public_state, golden["anchors_mean"][:39])
