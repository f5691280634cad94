"""L2D: normals of predicted heads along rays of the training renders, drawn by either renderer (Pix2NPHM, section 3.3).

The refinement's renderers give rows of derivatives for Gauss-Newton; here autograd takes a loss back to the codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.refine.surface import MIN_FACING, ON_SURFACE, Rays, newton
from nphm_track.refine.volume import MIN_OPACITY, render

Kind = Literal["surface", "volume"]
Drawn = tuple[Tensor, Tensor]
"""Normals [P, 3], differentiable by the codes, and whether the head was met [P]."""
STEPS = 4


def render_loss(
    head: NphmDecoder, kind: Kind, z_id: Tensor, z_ex: Tensor, points: Tensor, normals: Tensor, centre: Tensor
) -> Tensor:
    """Mean of 1 - cosine between the normals of predicted heads and ``normals``, over the rays that meet the heads.

    Args:
        z_id, z_ex: [B, D_id], [B, D_ex] predicted codes.
        points, normals: [B, N, 3] of the true surface, metres, head space; 0 where there is none.
        centre: [B, 3] the camera's, metres, head space.
    """
    b, n = points.shape[:2]
    known = (normals != 0).any(-1).flatten()
    if not known.any():
        return z_ex.sum() * 0
    frame = torch.arange(b, device=points.device).repeat_interleave(n)[known]
    target, origin = normals.flatten(0, 1)[known], centre[frame]
    rays = Rays(origin, points.flatten(0, 1)[known] - origin, frame, torch.ones_like(origin[:, 0]))
    seen, found = _DRAWERS[kind](head, rays, z_id[frame], z_ex[frame])
    cosine = (seen * target).sum(-1)
    return torch.where(found, 1 - cosine, 0).sum() / found.sum().clamp_min(1)


def draw_by_surface(head: NphmDecoder, rays: Rays, z_id: Tensor, z_ex: Tensor) -> Drawn:
    """Newton steps along the ray from the true depth; the meeting point moves with the codes by the implicit function
    theorem. Codes [P, D] of each ray."""
    origin, direction = rays.origin / MODEL_UNIT, rays.direction / MODEL_UNIT
    depth, found = rays.depth, torch.zeros_like(rays.frame, dtype=torch.bool)
    for _ in range(STEPS):
        sdf, gradient = _field(head, origin + depth[:, None] * direction, z_id.detach(), z_ex.detach(), False)
        depth, normal, found = newton(rays, depth, sdf, gradient)
    x = origin + depth[:, None] * direction
    sdf, gradient = _field(head, x, z_id, z_ex, True)
    slope = (gradient.detach() * direction).sum(-1)
    slope = torch.where(slope.abs() > 1e-6, slope, -1e-6)
    moved = x - (sdf / slope)[:, None] * direction
    normal = F.normalize(_field(head, moved, z_id, z_ex, True)[1], dim=-1)
    return normal, found


def draw_by_volume(head: NphmDecoder, rays: Rays, z_id: Tensor, z_ex: Tensor) -> Drawn:
    """NeuS-style weights of samples along the ray (``refine.volume``)."""
    depth, normal, opacity = render(head, rays, z_id, z_ex)
    facing = -(normal.detach() * F.normalize(rays.direction, dim=-1)).sum(-1)
    near = ((depth.detach() - 1) * rays.direction.norm(dim=-1)).abs() < 10 * ON_SURFACE
    return normal, (opacity > MIN_OPACITY) & (facing > MIN_FACING) & near


_DRAWERS: dict[Kind, Callable[[NphmDecoder, Rays, Tensor, Tensor], Drawn]] = {
    "surface": draw_by_surface,
    "volume": draw_by_volume,
}


@torch.enable_grad()
def _field(head: NphmDecoder, x: Tensor, z_id: Tensor, z_ex: Tensor, graph: bool) -> tuple[Tensor, Tensor]:
    """Distance [P] and its gradient [P, 3] at points [P, 3], model units."""
    y = x if x.requires_grad else x.detach().requires_grad_(True)
    sdf = head.sdf(y[:, None], z_id, z_ex)[:, 0]
    (gradient,) = torch.autograd.grad(sdf.sum(), y, create_graph=graph)
    return (sdf, gradient) if graph else (sdf.detach(), gradient)
