"""NeuS-style volume rendering of the head (MonoNPHM, CVPR 2024, section 3.4): the slow twin of ``surface``.

Samples of F along each ray turn into weights by the logistic of their distances; depth and normal are weighted means.
It knows no mesh and no start depth, and its derivatives are autograd's, so it checks the surface renderer's.
"""

from __future__ import annotations

from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor

from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.refine.codes import CodeSpace
from nphm_track.refine.surface import MIN_FACING, Rays, Seen, SeenRows, tangent_frame

SPHERE = 0.7
"""Radius of the sphere that holds a head, model units."""
COARSE, FINE = 96, 32
"""Coarse samples lie at most 4 mm apart: lips, lids and the skin before the mouth's pocket are shells of 5 to 15 mm."""
SHARPNESS = (160.0, 320.0)
"""Logistic slopes (1 / model unit) that place finer samples, round after round. The first is as steep as the coarse
samples allow: a blur as wide as a shell lets the ray through it."""
FINAL_SHARPNESS = 500.0
"""Slope of the rendering itself: half a millimetre of blur. MonoNPHM goes from 20 to 3000; where the slope outruns the
samples the derivative is lost."""
MIN_OPACITY = 0.5
CHUNK = 128


class VolumeRenderer:
    """Depth and normal by volume rendering; same interface as ``SurfaceRenderer``."""

    def __init__(self, model: NphmDecoder, space: CodeSpace) -> None:
        self.model, self.space = model, space

    def see(self, rays: Rays, z_id: Tensor, z_ex: Tensor) -> Seen:
        parts = []
        for part in rays.split(CHUNK):
            depth, normal, opacity = render(self.model, part, z_id.expand(len(part.depth), -1), z_ex[part.frame])
            parts.append((depth.detach(), normal.detach(), self._valid(part, normal, opacity)))
        return Seen(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def linearise(self, rays: Rays, z_id: Tensor, z_ex: Tensor, *, identity: bool) -> SeenRows:
        parts = [self._linearise(part, z_id, z_ex, identity) for part in rays.split(CHUNK)]
        return SeenRows(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(SeenRows)))

    def _linearise(self, rays: Rays, z_id: Tensor, z_ex: Tensor, identity: bool) -> SeenRows:
        n = len(rays.depth)
        origin, direction = (v.detach().clone().requires_grad_(True) for v in (rays.origin, rays.direction))
        person = z_id.expand(n, -1).clone().requires_grad_(identity)
        expression = z_ex[rays.frame].detach().requires_grad_(True)
        leaves = [origin, direction, *([person] if identity else []), expression]
        bases = [*([self.space.identity] if identity else []), self.space.expression]
        leaf_rays = Rays(origin, direction, rays.frame, rays.depth)
        depth, normal, opacity = render(self.model, leaf_rays, person, expression)
        tangents = tangent_frame(normal.detach())
        outputs = [depth, *((normal * tangents[:, i]).sum(-1) for i in (0, 1))]
        rows = [torch.autograd.grad(y.sum(), leaves, retain_graph=i < 2) for i, y in enumerate(outputs)]
        ray = torch.stack([torch.cat(row[:2], -1) for row in rows], 1)
        code = torch.stack(
            [torch.cat([d @ basis for d, basis in zip(row[2:], bases, strict=True)], -1) for row in rows], 1
        )
        valid = self._valid(rays, normal, opacity)
        return SeenRows(
            depth.detach(), normal.detach(), valid, tangents, code[:, 0], ray[:, 0], code[:, 1:], ray[:, 1:]
        )

    def _valid(self, rays: Rays, normal: Tensor, opacity: Tensor) -> Tensor:
        facing = -(normal.detach() * F.normalize(rays.direction.detach(), dim=-1)).sum(-1)
        return (opacity > MIN_OPACITY) & (facing > MIN_FACING)


@torch.enable_grad()
def render(model: NphmDecoder, rays: Rays, z_id: Tensor, z_ex: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Depth [P], normal [P, 3] and opacity [P]; z_id [P, D_id], z_ex [P, D_ex]."""
    s = _samples(model, rays, z_id.detach(), z_ex.detach())
    origin, direction = rays.origin / MODEL_UNIT, rays.direction / MODEL_UNIT
    x = origin[:, None] + s[..., None] * direction[:, None]
    if not x.requires_grad:
        x = x.requires_grad_(True)
    sdf = model.sdf(x, z_id, z_ex)
    (gradient,) = torch.autograd.grad(sdf.sum(), x, create_graph=True)
    weight = _weights(sdf, FINAL_SHARPNESS)
    opacity = weight.sum(-1).clamp_min(1e-6)
    depth = (weight * (s[:, 1:] + s[:, :-1]) / 2).sum(-1) / opacity
    normals = F.normalize(gradient, dim=-1)
    normal = (weight[..., None] * (normals[:, 1:] + normals[:, :-1]) / 2).sum(1)
    return depth, F.normalize(normal, dim=-1), opacity.detach()


@torch.no_grad()
def _samples(model: NphmDecoder, rays: Rays, z_id: Tensor, z_ex: Tensor) -> Tensor:
    """Depths [P, FINE] around the surface, ascending."""
    origin, direction = rays.origin / MODEL_UNIT, rays.direction / MODEL_UNIT
    length = direction.norm(dim=-1)
    middle = -(origin * direction).sum(-1) / length.square()
    nearest = (origin + middle[:, None] * direction).square().sum(-1)
    half = (SPHERE**2 - nearest).clamp_min(1e-4).sqrt() / length
    s = middle[:, None] + half[:, None] * torch.linspace(-1, 1, COARSE, dtype=origin.dtype, device=origin.device)
    for slope in SHARPNESS:
        x = origin[:, None] + s[..., None] * direction[:, None]
        s = _resample(s, _weights(model.sdf(x, z_id, z_ex), slope), FINE)
    return s


def _weights(sdf: Tensor, slope: float) -> Tensor:
    """Weight [P, S - 1] of each interval between samples, NeuS equation 13."""
    sigmoid = torch.sigmoid(sdf * slope)
    before, after = sigmoid[:, :-1], sigmoid[:, 1:]
    alpha = ((before - after + 1e-5) / (before + 1e-5)).clamp(0, 1)
    clear = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1] + 1e-7], 1), 1)
    return alpha * clear


def _resample(s: Tensor, weight: Tensor, count: int) -> Tensor:
    """``count`` depths with the density of ``weight`` over the intervals of ``s``, ascending."""
    cumulative = (weight + 1e-4 / weight.shape[1]).cumsum(-1)
    cumulative = torch.cat([torch.zeros_like(cumulative[:, :1]), cumulative / cumulative[:, -1:]], -1)
    u = ((torch.arange(count, dtype=s.dtype, device=s.device) + 0.5) / count).expand(len(s), -1).contiguous()
    above = torch.searchsorted(cumulative.contiguous(), u, right=True).clamp(1, s.shape[1] - 1)
    low, high = cumulative.gather(1, above - 1), cumulative.gather(1, above)
    share = ((u - low) / (high - low).clamp_min(1e-9)).clamp(0, 1)
    return torch.lerp(s.gather(1, above - 1), s.gather(1, above), share)
