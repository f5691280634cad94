"""Every short cut against the long way: pieces, skipped members, points left alone, sparse grids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes
from torch import Tensor

from nphm_track.heads import decoder
from nphm_track.heads import mesh as M
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.inverse import PosedPoints, pose_points
from nphm_track.heads.loading import load_head_model

Build = Callable[..., Any]
KINDS = ("softplus", "silu", "mononphm")
BATCHES = [(), (2,), (1, 2)]


def draw(model: Any, batch: tuple[int, ...], count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    c, dtype = model.config, model.mean_anchors.dtype
    points = torch.rand(*batch, count, 3, generator=generator) - 0.5
    z_id = torch.randn(*batch, c.identity_dim, generator=generator) * 0.3
    z_ex = torch.randn(*batch, c.expression_dim, generator=generator) * 0.3
    return points.to(dtype), z_id.to(dtype), z_ex.to(dtype)


def gradients(out: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.autograd.grad((out * torch.linspace(-1, 1, out.shape[-1], dtype=out.dtype)).sum(), inputs)


# -- pieces ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", ["softplus", "silu"])
def test_pieces_that_fit_the_cache_equal_the_whole(
    build: Build, kind: str, batch: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(kind)
    inputs = tuple(x.requires_grad_() for x in draw(model, batch, 50))
    whole = model.sdf(*inputs), model.deform(*inputs)[0]
    expected = gradients(whole[0], inputs)
    monkeypatch.setattr(decoder, "CACHED", 2**6)
    calls = 0
    forward = model.ensemble.forward

    def counted(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return forward(*arguments)

    monkeypatch.setattr(model.ensemble, "forward", counted)
    pieces = model.sdf(*inputs), model.deform(*inputs)[0]
    assert calls > 5
    for got, want in zip(pieces, whole, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    for got, want in zip(gradients(pieces[0], inputs), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


# -- skipped members ---------------------------------------------------------------------------------------------------
def every_member(model: Any, points: Tensor, z_id: Tensor, z_ex: Tensor) -> tuple[Tensor, Tensor]:
    """Distance and blend weight of all members [N, K] at points of one head."""
    q = model.canonical_queries(points, z_id, z_ex)[None]
    head = model._condition(z_id[None], None)
    member, blend = model._blend(q[..., :3], head.anchors)
    return model._members(q, head, member, None)[0][0], blend[0]


def heaviest(blend: Tensor, share: float) -> Tensor:
    """Mask [N, K] without the lightest members that together weigh at most ``share``, one point after the other."""
    keep = torch.ones_like(blend, dtype=torch.bool)
    for n, weights in enumerate(blend.tolist()):
        total = 0.0
        for k in sorted(range(len(weights)), key=weights.__getitem__):
            total += weights[k]
            if total > share:
                break
            keep[n, k] = False
    return keep


@pytest.mark.parametrize("kind", KINDS)
def test_skipping_equals_its_plain_twin_and_keeps_its_bound(build: Build, kind: str) -> None:
    model = build(kind)
    inputs = tuple(x.requires_grad_() for x in draw(model, (), 60))
    values, blend = every_member(model, *inputs)
    difference = (values.amax(-1) - values.amin(-1)).detach()
    tolerance = 0.02 * difference.max().item()
    keep = heaviest(blend, 0.02)
    assert 0.1 < (~keep).float().mean() < 0.9
    kept = blend * keep
    plain = (values * kept).sum(-1) / kept.sum(-1)
    fast = model.sdf(*inputs, tolerance=tolerance)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-11)
    for got, want in zip(gradients(fast, inputs), gradients(plain, inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)
    error = (fast - model.sdf(*inputs)).detach().abs()
    assert error.max() > 0
    assert (error <= (blend * ~keep).sum(-1) * difference + 1e-7).all(), "skipped weight times difference"
    assert (error <= tolerance + 1e-7).all()


@pytest.mark.parametrize("batch", [(2,), (1, 2)])
def test_the_bound_holds_for_batches_and_beyond_the_pilot_points(
    build: Build, batch: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "PILOT", 16)
    model = build("silu")
    inputs = draw(model, batch, 400)
    exact = model.sdf(*inputs)
    for tolerance in (1e-2, 1e-3, 1e-4):
        bounded = model.sdf(*inputs, tolerance=tolerance)
        assert bounded.shape == exact.shape
        assert (bounded - exact).abs().max() <= tolerance


def test_tolerance_saves_evaluations_and_is_off_by_default(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("mononphm", dtype=torch.float32)
    inputs = draw(model, (), 700)
    assert torch.equal(model.sdf(*inputs), model.sdf(*inputs, tolerance=0))
    rows = 0
    forward = model.ensemble.forward

    def counted(points: Tensor, *arguments: Any) -> Tensor:
        nonlocal rows
        rows += len(points)
        return forward(points, *arguments)

    monkeypatch.setattr(model.ensemble, "forward", counted)
    model.sdf(*inputs)
    every, rows = rows, 0
    model.sdf(*inputs, tolerance=0.02)
    assert every == 700 * 13 and rows < 0.9 * every + 350 * 13  # the pilot points are evaluated twice
    assert model.sdf(inputs[0][:0], *inputs[1:], tolerance=0.1).shape == (0,)


# -- points left alone -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["softplus", "silu"])
def test_leaving_solved_points_alone_solves_as_well_as_moving_all(build: Build, kind: str) -> None:
    model = build(kind, dtype=torch.float32)
    model.deformation[-1].weight *= 0.3
    canonical, z_id, z_ex = draw(model, (), 300)
    eye = torch.eye(3).expand(300, 3, 3)
    start = PosedPoints(canonical, eye, torch.zeros(300))
    alone = pose_points(model, canonical, z_id, z_ex, warm=start)
    batched = pose_points(
        model,
        canonical[None],
        z_id[None],
        z_ex[None],
        warm=PosedPoints(canonical[None], eye[None], torch.zeros(1, 300)),
    )
    assert (alone.points - canonical).norm(dim=-1).mean() > 2e-3, "nothing to solve"
    back = alone.points + model.deform(alone.points, z_id, z_ex)[0]
    torch.testing.assert_close(alone.residual, (back - canonical).norm(dim=-1), rtol=0, atol=1e-6)
    assert (alone.residual <= 2e-4).float().mean() > 0.99
    assert (batched.residual <= 2e-4).float().mean() > 0.99
    assert (alone.points - batched.points[0]).norm(dim=-1).quantile(0.99) < 8e-4
    assert torch.equal(start.points, canonical) and torch.equal(start.inverse_jacobian, eye)


# -- sparse grids of the released head ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def small() -> NphmDecoder:
    return load_head_model()


def axes(nodes: int) -> list[NDArray[np.float64]]:
    return [np.linspace(low, high, nodes) for low, high in M.BOX]


@pytest.fixture(scope="module")
def dense(small: NphmDecoder) -> NDArray[np.float32]:
    """The canonical head on all nodes of a 49^3 grid."""
    points = np.stack(np.meshgrid(*axes(49), indexing="ij"), -1).reshape(-1, 3)
    return M.model_field(small, torch.zeros(small.config.identity_dim), None)(points).reshape(49, 49, 49)


def test_sparse_grid_of_the_head_has_the_dense_surface(small: NphmDecoder, dense: NDArray[np.float32]) -> None:
    field = M.model_field(small, torch.zeros(small.config.identity_dim), None)
    sparse, _, evaluations = M.evaluate_grid(field, axes(49))
    assert evaluations < 0.5 * dense.size
    step = tuple(a[1] - a[0] for a in axes(49))
    a, b = (marching_cubes(values, 0.0, spacing=step)[0] for values in (dense, sparse))
    assert cKDTree(a).query(b)[0].max() < min(step) / 2
    assert cKDTree(b).query(a)[0].max() < min(step) / 2


def test_a_256_grid_of_the_head_costs_a_twentieth_of_dense_evaluation(dense: NDArray[np.float32]) -> None:
    low, high = (np.array([bounds[i] for bounds in M.BOX]) for i in (0, 1))

    def field(points: NDArray[np.floating]) -> NDArray[np.float32]:
        return map_coordinates(dense, ((points - low) / (high - low) * 48).T, order=1).astype(np.float32)

    assert M.evaluate_grid(field, axes(257))[2] <= 257**3 / 20
