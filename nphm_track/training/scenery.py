"""Around and in front of heads: backdrops, photos that follow a moved head, occluders, glasses; for batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nphm_track.training.degrade import gaussian_blur
from nphm_track.training.renders import Renders
from nphm_track.training.rng import Rng

RIGHT_EYE, LEFT_EYE = (33, 133, 159, 145), (263, 362, 386, 374)
"""Landmarks: outer and inner corner, upper and lower lid."""


class Scenery:
    """Takes its pictures from photos uint8 [N, 3, S, S]."""

    def __init__(self, photos: Tensor, renders: Renders) -> None:
        self.photos, self.renders = photos, renders

    def backdrop(self, rng: Rng, count: int, size: int) -> Tensor:
        """Pictures [count, 3, size, size]: parts of photos, smooth noise of any fineness, plain colours."""
        scale = rng.uniform(count, low=0.15, high=0.5)
        shift = rng.uniform(count, 2, low=-1, high=1) * (1 - scale)[:, None]
        photo = self.photos[rng.below(len(self.photos), count)].float() / 255
        part = _window(photo, scale, shift, size)
        fine = torch.exp(rng.uniform(count, low=-2.8, high=0.0))
        place = rng.uniform(count, 2, low=-1, high=1) * (1 - fine)[:, None]
        noise = _window(rng.uniform(count, 3, 40, 40), fine, place, size)
        plain = rng.uniform(count, 3, 1, 1) + 0.03 * rng.normal(count, 3, size, size)
        choice = rng.uniform(count, 1, 1, 1)
        return torch.where(choice < 0.6, part, torch.where(choice < 0.85, noise, plain)).clamp(0, 1)

    def follow(
        self, uv: Tensor, known: Tensor, view: tuple[Tensor, Tensor, Tensor], photo: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """Photo pixels [B, H, W, 2] that the crop's pixels show when the surroundings move with the head.

        ``uv`` [B, H, W, 2] where ``known`` [B, H, W]; elsewhere the head's motion is continued smoothly. ``view`` and
        ``photo``: K, R, t of both cameras.
        """
        (K, R, t), (photo_K, photo_R, photo_t) = view, photo
        height, width = known.shape[1:]
        grid = torch.meshgrid(
            torch.arange(height, device=uv.device) + 0.5, torch.arange(width, device=uv.device) + 0.5, indexing="ij"
        )
        pixels = torch.stack(grid[::-1], -1)[None]
        to, source = _centre(K, t), _centre(photo_K, photo_t)
        scale = (photo_K[:, 0, 0] / photo_t[:, 2]) / (K[:, 0, 0] / t[:, 2])
        angle = _roll(photo_R) - _roll(R)
        cos, sin = angle.cos() * scale, angle.sin() * scale
        x, y = (pixels - to[:, None, None]).unbind(-1)
        cos, sin = cos[:, None, None], sin[:, None, None]
        base = torch.stack([cos * x - sin * y, sin * x + cos * y], -1) + source[:, None, None]
        moved = fill_smoothly((uv - base).permute(0, 3, 1, 2), known[:, None].float()).permute(0, 2, 3, 1)
        return torch.where(known[..., None], uv, base + moved)

    def occlude(self, rng: Rng, image: Tensor) -> tuple[Tensor, Tensor]:
        """Blobs in the colours of other pictures (a hand, a sheet) over some faces, and where they are."""
        b, _, size, _ = image.shape
        y, x = _centred(size, image.device)
        angle, turn = rng.uniform(b, 1, 1, high=6.2832), rng.uniform(b, 1, 1, high=3.1416)
        away = rng.uniform(b, 1, 1, low=0.12, high=0.36) * size
        dx, dy = x - away * angle.cos(), y - away * angle.sin()
        u, v = dx * turn.cos() + dy * turn.sin(), dy * turn.cos() - dx * turn.sin()
        a, c = (rng.uniform(b, 1, 1, low=0.05, high=0.22) * size for _ in range(2))
        wobble = F.interpolate(rng.normal(b, 1, 12, 12), size=(size, size), mode="bicubic")[:, 0] * 0.35
        blob = ((u / a) ** 2 + (v / c) ** 2 + wobble < 1) & rng.chance(self.renders.occluded, b)[:, None, None]
        soft = gaussian_blur(blob[:, None].float(), torch.full((b,), 1.0, device=image.device))
        return image * (1 - soft) + self.backdrop(rng, b, size) * soft, blob

    def glasses(self, rng: Rng, image: Tensor, landmarks: Tensor) -> Tensor:
        """Dark rims and a faint reflection around the eyes of some; landmarks [B, 478, 2] px of the crop."""
        b, _, size, _ = image.shape
        grid = torch.arange(size, device=image.device) + 0.5
        out = image
        colour = (rng.uniform(b, 3, 1, 1, high=0.35) * rng.uniform(b, 1, 1, 1, low=0.5)).clamp(0, 1)
        width, power = rng.uniform(b, 1, 1, low=0.08, high=0.2), rng.uniform(b, 1, 1, low=2, high=5)
        tint, glare = rng.uniform(b, 1, 1, 1, high=0.3) ** 2, rng.uniform(b, 1, 1, 1)
        worn = rng.chance(self.renders.glasses, b)[:, None, None]
        down = F.normalize(landmarks[:, 152] - landmarks[:, 10], dim=-1)
        for outer, inner, upper, lower in (RIGHT_EYE, LEFT_EYE):
            across = (landmarks[:, outer] - landmarks[:, inner]) * 0.85
            length = across.norm(dim=-1, keepdim=True).clamp_min(4)
            centre = landmarks[:, [outer, inner, upper, lower]].mean(1) + 0.12 * length * down
            basis = torch.linalg.inv(torch.stack([F.normalize(across, dim=-1) * length, down * 0.75 * length], -1))
            dx, dy = grid[None, None] - centre[:, None, :1], grid[None, :, None] - centre[:, 1:, None]
            local = [basis[:, i, 0, None, None] * dx + basis[:, i, 1, None, None] * dy for i in range(2)]
            radius = (local[0].abs().clamp_min(1e-4) ** power + local[1].abs().clamp_min(1e-4) ** power) ** (1 / power)
            rim = ((radius - 1).abs() < width) & worn
            ring = gaussian_blur(rim[:, None].float(), torch.full((b,), 0.7, device=image.device))
            glass = tint * ((radius < 1) & worn)[:, None]
            out = out * (1 - glass) + glass * glare
            out = out * (1 - ring) + colour * ring
        return out


def fill_smoothly(values: Tensor, known: Tensor) -> Tensor:
    """Values [B, C, H, W] (H = W, a power of two) continued from where ``known`` [B, 1, H, W] is 1: push and pull."""
    levels = [(values * known, known)]
    while levels[-1][1].shape[-1] > 1:
        levels.append(tuple(F.avg_pool2d(x, 2) for x in levels[-1]))  # type: ignore[arg-type]
    total, weight = levels[-1]
    filled = total / weight.clamp_min(1e-6)
    for total, weight in levels[-2::-1]:
        coarse = F.interpolate(filled, scale_factor=2, mode="bilinear")
        filled = total + (1 - weight) * coarse
    return filled


def _centre(K: Tensor, t: Tensor) -> Tensor:
    return K[:, :2, 2] + t[:, :2] / t[:, 2:] * K[:, :1, 0]


def _roll(R: Tensor) -> Tensor:
    """In-plane angle [B] of the head's x axis."""
    return torch.atan2(R[:, 1, 0], R[:, 0, 0])


def _centred(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    x = torch.arange(size, device=device) + 0.5 - size / 2
    return x[:, None], x[None]


def _window(image: Tensor, scale: Tensor, shift: Tensor, size: int) -> Tensor:
    """The part of each image [B, C, H, W] around ``shift`` [B, 2] of the share ``scale`` [B], at ``size`` px."""
    theta = torch.zeros(len(image), 2, 3, device=image.device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, [len(image), image.shape[1], size, size], align_corners=False)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)
