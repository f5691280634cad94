"""Forward posing by inverting the backward deformation: find x with x + offset(x; z_id, z_ex) = v for canonical v.

Broyden's method for every point at once (as SNARF, ICCV 2021, does for bodies): one network evaluation an iteration,
warm-started from the previous frame. All quantities in model units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nphm_track.heads.decoder import NphmDecoder


@dataclass(frozen=True)
class PosedPoints:
    """Result of :func:`pose_points` (model units).

    Attributes:
        points: [..., N, 3] posed points.
        inverse_jacobian: [..., N, 3, 3] estimate of (d canonical / d posed)^-1, reused as a warm start.
        residual: [..., N] distance between the mapped-back point and its canonical point.
    """

    points: Tensor
    inverse_jacobian: Tensor
    residual: Tensor


@torch.no_grad()
def pose_points(
    model: NphmDecoder,
    canonical: Tensor,
    z_id: Tensor,
    z_ex: Tensor,
    *,
    warm: PosedPoints | None = None,
    origin: tuple[Tensor, Tensor] | None = None,
    tolerance: float = 2e-4,
    max_iterations: int = 12,
    cold_steps: int = 4,
) -> PosedPoints:
    """Carry canonical points [..., N, 3] to the expression z_ex [..., D_ex].

    Without ``warm`` the expression is reached in ``cold_steps`` equal steps from neutral, so that large motions stay on
    the right branch; or from ``origin``, (points [..., N, 3], z_ex [..., D_ex]) known to belong together. The lips need
    one with the mouth open: at rest they touch, and a canonical point between them belongs to both.
    Points that do not reach ``tolerance`` (model units; 2e-4 = 0.05 mm) keep their best position and
    say so in ``residual``.
    """
    if warm is None:
        eye = torch.eye(3, dtype=canonical.dtype, device=canonical.device).expand(*canonical.shape, 3)
        points, code = (canonical, torch.zeros_like(z_ex)) if origin is None else origin
        warm = PosedPoints(points.expand_as(canonical), eye, torch.zeros_like(canonical[..., 0]))
        for k in range(1, cold_steps):
            between = torch.lerp(code.expand_as(z_ex), z_ex, k / cold_steps)
            warm = _broyden(model, canonical, z_id, between, warm, 4 * tolerance, max_iterations)
    return _broyden(model, canonical, z_id, z_ex, warm, tolerance, max_iterations)


def _broyden(
    model: NphmDecoder,
    canonical: Tensor,
    z_id: Tensor,
    z_ex: Tensor,
    start: PosedPoints,
    tolerance: float,
    max_iterations: int,
) -> PosedPoints:
    x = start.points.expand_as(canonical).clone()
    inverse = start.inverse_jacobian.expand(*canonical.shape, 3).clone()
    g = x + model.deform(x, z_id, z_ex)[0] - canonical
    residual = g.norm(dim=-1)
    state = PosedPoints(x, inverse, residual)
    if canonical.dim() > 2:
        return _iterate(model, canonical, z_id, z_ex, state, g, tolerance, max_iterations)
    return _iterate_moving(model, canonical, z_id, z_ex, state, g, tolerance, max_iterations)


def _iterate_moving(
    model: NphmDecoder,
    canonical: Tensor,
    z_id: Tensor,
    z_ex: Tensor,
    state: PosedPoints,
    g: Tensor,
    tolerance: float,
    max_iterations: int,
) -> PosedPoints:
    """As :func:`_iterate` for one head, in place: points within ``tolerance`` (skull, ears and neck hardly move between
    frames) are left alone, and join the others no more.
    """
    points, inverse, residual = state.points, state.inverse_jacobian, state.residual
    active = (residual > tolerance).nonzero().squeeze(1)
    enough = 0.005 * len(active)
    x, h, g = points[active], inverse[active], g[active]
    for _ in range(max_iterations):
        if len(active) <= enough:
            break
        x, h, g = _step(model, canonical[active], z_id, z_ex, x, h, g)
        error = g.norm(dim=-1)
        better = error < residual[active]
        best = active[better]
        points[best], residual[best] = x[better], error[better]
        inverse[active] = h
        left = (residual[active] > tolerance).nonzero().squeeze(1)
        active, x, h, g = active[left], x[left], h[left], g[left]
    return state


def _iterate(
    model: NphmDecoder,
    canonical: Tensor,
    z_id: Tensor,
    z_ex: Tensor,
    state: PosedPoints,
    g: Tensor,
    tolerance: float,
    max_iterations: int,
) -> PosedPoints:
    """Broyden steps until 99.5 % of the points are within ``tolerance``; every point ends at its best position."""
    x, inverse = state.points, state.inverse_jacobian
    best_x, best = x, state.residual
    for _ in range(max_iterations):
        if best.numel() == 0 or bool((best <= tolerance).float().mean() > 0.995):
            break
        x, inverse, g = _step(model, canonical, z_id, z_ex, x, inverse, g)
        residual = g.norm(dim=-1)
        better = residual < best
        best = torch.where(better, residual, best)
        best_x = torch.where(better.unsqueeze(-1), x, best_x)
    return PosedPoints(best_x, inverse, best)


def _step(
    model: NphmDecoder, canonical: Tensor, z_id: Tensor, z_ex: Tensor, x: Tensor, inverse: Tensor, g: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One Broyden step from x with inverse Jacobian and error g: all three afterwards."""
    step = -(inverse @ g.unsqueeze(-1)).squeeze(-1)
    step = step * (0.06 / step.norm(dim=-1, keepdim=True).clamp_min(0.06))  # at most 15 mm at once
    x = x + step
    g_new = x + model.deform(x, z_id, z_ex)[0] - canonical
    # Good Broyden update of the inverse: J^-1 += (dx - J^-1 dg) dx^T J^-1 / (dx^T J^-1 dg)
    change = (inverse @ (g_new - g).unsqueeze(-1)).squeeze(-1)
    denominator = (step * change).sum(-1, keepdim=True)
    safe = denominator.abs() > 1e-12
    factor = torch.where(safe, (step - change) / torch.where(safe, denominator, 1.0), 0.0)
    inverse = inverse + factor.unsqueeze(-1) * (step.unsqueeze(-2) @ inverse)
    return x, inverse, g_new


def attach_gradient(model: NphmDecoder, posed: Tensor, canonical: Tensor, z_id: Tensor, z_ex: Tensor) -> Tensor:
    """Posed points [..., N, 3] with exact gradients to z_id, z_ex and ``canonical`` (implicit function theorem).

    ``posed`` must solve the equation; one Newton step with a detached Jacobian carries the derivative.
    """
    with torch.enable_grad():
        x = posed.detach().requires_grad_(True)
        g = x + model.deform(x, z_id.detach(), z_ex.detach())[0]
        rows = [torch.autograd.grad(g[..., i].sum(), x, retain_graph=i < 2)[0] for i in range(3)]
    jacobian = torch.stack(rows, -2)
    jacobian = jacobian + 1e-6 * torch.eye(3, dtype=x.dtype, device=x.device)
    x = posed.detach()
    residual = x + model.deform(x, z_id, z_ex)[0] - canonical
    return x - torch.linalg.solve(jacobian, residual.unsqueeze(-1)).squeeze(-1)
