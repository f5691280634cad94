"""Light on heads, for batches on any device: soft harmonics, and lamps with cast shadows and highlights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nphm_track.training.rng import Rng
from nphm_track.training.texture_bank import harmonics

GRID = 128
REACH = 0.16
"""Metres: half the side of a shadow map."""
BIAS, SOFTNESS = 0.005, 0.0015
"""Metres by which a shadow starts behind what casts it, and over which it sets in."""
LIFT = 0.005
"""Metres off the surface at which shadow is looked for: cells of the map must not shade their own neighbours."""
LAMPS = 3


def visibility(points: Tensor, normals: Tensor, direction: Tensor) -> Tensor:
    """Share of a distant lamp's light that reaches each point: points and unit normals [B, V, 3], unit direction to the
    lamp [B, L, 3] -> [B, L, V].

    The points themselves are splatted into a shadow map, so they must lie densely on the surface.
    """
    b, v, _ = points.shape
    lamps = direction.shape[1]
    steep = direction[..., 1:2].abs() > 0.9
    helper = torch.where(steep, direction.new_tensor([1.0, 0, 0]), direction.new_tensor([0.0, 1, 0]))
    right = F.normalize(torch.linalg.cross(helper, direction, dim=-1), dim=-1)
    up = torch.linalg.cross(direction, right, dim=-1)
    centre = points.mean(1, keepdim=True)
    axes = torch.stack([right, up, direction], 2)  # [B, L, 3, 3]

    def seen_by_lamps(p: Tensor) -> tuple[Tensor, Tensor]:
        """Place in the maps [B L, V, 2], -1..1, and height towards the lamps [B L, V]."""
        local = (axes @ (p - centre).mT[:, None]).flatten(0, 1)
        return local[:, :2].mT / REACH, local[:, 2]

    uv, height = seen_by_lamps(points)
    cell = ((uv + 1) * (GRID / 2)).long().clamp(0, GRID - 1)
    top = torch.full((b * lamps, GRID * GRID), -1.0, device=points.device)
    top = top.scatter_reduce(1, cell[..., 1] * GRID + cell[..., 0], height, "amax").view(b * lamps, 1, GRID, GRID)
    top = F.max_pool2d(top, 3, 1, 1)
    uv, height = seen_by_lamps(points + LIFT * normals)
    over = F.grid_sample(top, uv[:, None], mode="bilinear", padding_mode="border", align_corners=False)
    return torch.sigmoid((height + BIAS - over[:, 0, 0]) / SOFTNESS).view(b, lamps, v)


def ambient_occlusion(points: Tensor, normals: Tensor, count: int = 64) -> Tensor:
    """Cosine-weighted share of an even sky that points [V, 3] of a surface with unit normals [V, 3] see, [V]."""
    k = torch.arange(count, device=points.device) + 0.5
    z, angle = 1 - 2 * k / count, k * 2.399963
    ring = (1 - z * z).sqrt()
    sky = torch.stack([ring * angle.cos(), ring * angle.sin(), z], -1)
    cosine = (sky @ normals.T).clamp_min(0)
    return (visibility(points[None], normals[None], sky[None])[0] * cosine).sum(0) / cosine.sum(0).clamp_min(1e-3)


def random_harmonics(rng: Rng, b: int) -> Tensor:
    """Coefficients [B, 9] of plausible light in the camera's frame: a broad key from the front or a side, some fill."""
    spread, shift = torch.tensor([1.0, 0.7, 0.35]), torch.tensor([0.0, -0.35, -0.9])
    d = F.normalize(rng.normal(b, 3) * spread.to(rng.device) + shift.to(rng.device), dim=-1)
    ambient, key = rng.uniform(b, 1, low=0.35, high=0.8), rng.uniform(b, 1, low=0.2, high=0.8)
    x, y, z = d.split(1, 1)
    second = 0.25 * key * torch.cat([x * y, y * z, x * z, (x * x - y * y) / 2, (3 * z * z - 1) / 6], 1)
    return torch.cat([ambient + 0.25 * key, key * d * 0.67, second], 1)


def lamp_light(rng: Rng, camera: Tensor, normals: Tensor, occlusion: Tensor) -> tuple[Tensor, Tensor]:
    """Irradiance and highlight [B, V, 3] each of random lamps on points [B, V, 3] with unit normals [B, V, 3] (camera
    frame), ``occlusion`` [V] of an even sky."""
    b = len(camera)
    spread, shift = camera.new_tensor([1.0, 0.7, 0.5]), camera.new_tensor([0.0, -0.35, -0.75])
    direction = F.normalize(rng.normal(b, LAMPS, 3) * spread + shift, dim=-1)
    strength = rng.uniform(b, LAMPS, low=0.0, high=1.0) ** 2
    strength[:, 0] = rng.uniform(b, low=0.5, high=1.1)
    tint = 1 + 0.12 * rng.normal(b, LAMPS, 3) * rng.uniform(b, 1, 1)
    energy = (strength[..., None] * tint).clamp_min(0)
    soft = rng.uniform(b, 1, 1) ** 2  # a large lamp wraps around and casts a faint shadow
    seen = visibility(camera, normals, direction)
    seen = 1 - (1 - seen) * (1 - 0.6 * soft)
    cosine = direction @ normals.mT  # [B, L, V]
    wrapped = ((cosine + 0.4 * soft) / (1 + 0.4 * soft)).clamp_min(0)
    sky = rng.uniform(b, 1, 1, low=0.08, high=0.5) * (1 + 0.1 * rng.normal(b, 1, 3))
    above = 1 - 0.4 * rng.uniform(b, 1, 1) * normals[..., 1:2]  # y points down: the sky is brighter than the floor
    irradiance = sky * above * occlusion[:, None] + (wrapped * seen).mT @ energy
    half = F.normalize(direction[:, :, None] - F.normalize(camera, dim=-1)[:, None], dim=-1)
    gloss = (half * normals[:, None]).sum(-1).clamp_min(0) ** rng.uniform(b, 1, 1, low=8, high=60)
    shine = rng.uniform(b, 1, 1, low=0.0, high=0.35) ** 2 * 3
    return irradiance, shine * ((gloss * seen * (cosine > 0)).mT @ energy)


def harmonic_light(normals: Tensor, light: Tensor) -> Tensor:
    """Shading [B, V] of unit normals [B, V, 3] (camera frame) under light [B, 9], kept within what photos show."""
    return (harmonics(normals) @ light[..., None])[..., 0].clamp(0.15, 2.2)
