"""What cameras and codecs do to pictures, for batches on any device."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nphm_track.training.rng import Rng

# Annex K of ITU-T T.81: the tables behind a JPEG's quality setting.
_LUMA = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"
)
_CHROMA = (
    "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99 "
    "99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"
)


def degrade_batch(rng: Rng, image: Tensor) -> Tensor:
    """Exposure, white balance, blur, low resolution, noise, grey, JPEG; images [B, 3, H, W] in 0..1."""
    b = len(image)

    def some(p: float) -> Tensor:
        return rng.chance(p, b)[:, None, None, None]

    gamma = rng.uniform(b, 1, 1, 1, low=0.75, high=1.3)
    gain = rng.uniform(b, 1, 1, 1, low=0.7, high=1.25) * rng.uniform(b, 3, 1, 1, low=0.88, high=1.12)
    out = image.clamp(1e-4, 1) ** gamma * gain
    sigma = torch.where(rng.chance(0.4, b), rng.uniform(b, low=0.3, high=1.8), 0.05)
    out = gaussian_blur(out, sigma)
    noise = rng.normal(*out.shape) * rng.uniform(b, 1, 1, 1, low=0.003, high=0.05)
    out = torch.where(some(0.4), out + noise, out)
    grey = out.mean(1, keepdim=True).expand_as(out)
    out = torch.where(some(0.12), grey, out).clamp(0, 1)
    scale = float(rng.uniform(1, low=0.3, high=0.85))
    small = F.interpolate(out, scale_factor=scale, mode="bilinear", antialias=True, recompute_scale_factor=True)
    small = F.interpolate(small, size=out.shape[2:], mode="bicubic").clamp(0, 1)
    out = torch.where(some(0.3), small, out)
    return torch.where(some(0.5), jpeg(out, rng.uniform(b, low=25, high=92)), out)


def gaussian_blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Blur images [B, C, H, W] by sigma [B] px, up to 3 px."""
    b, c, h, w = image.shape
    reach = 6
    x = torch.arange(-reach, reach + 1, device=image.device)
    kernel = torch.exp(-0.5 * (x / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)  # [B C, taps]
    flat = F.pad(image.reshape(1, b * c, h, w), (reach,) * 4, mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, None], groups=b * c)
    return F.conv2d(flat, kernel[:, None, :, None], groups=b * c).view(b, c, h, w)


def jpeg(image: Tensor, quality: Tensor) -> Tensor:
    """JPEG's losses without its bit stream: images [B, 3, H, W] in 0..1, sides multiples of 16, quality [B] 1..99."""
    b = len(image)
    to_ycc = image.new_tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    ycc = torch.einsum("ij,bjhw->bihw", to_ycc, image) * 255
    ycc[:, 0] -= 128
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[(..., *[None] * 5)] / 100
    k = torch.arange(8, device=image.device, dtype=image.dtype)
    dct = torch.cos(math.pi * (2 * k + 1) * k[:, None] / 16) * 0.5
    dct[0] *= 0.5**0.5

    def squeeze(plane: Tensor, text: str) -> Tensor:  # [B, C, H, W]
        table = torch.tensor([float(v) for v in text.split()], device=plane.device).view(8, 8)
        step = (table * scale).round().clamp_min(1)
        height, width = plane.shape[2:]
        blocks = plane.reshape(b, -1, height // 8, 8, width // 8, 8).transpose(3, 4)
        coefficients = dct @ blocks @ dct.T
        coefficients = (coefficients / step).round() * step
        return (dct.T @ coefficients @ dct).transpose(3, 4).reshape(plane.shape)

    luma = squeeze(ycc[:, :1], _LUMA)
    chroma = squeeze(F.avg_pool2d(ycc[:, 1:], 2), _CHROMA)
    ycc = torch.cat([luma + 128, F.interpolate(chroma, scale_factor=2, mode="bilinear")], 1) / 255
    return torch.einsum("ij,bjhw->bihw", torch.linalg.inv(to_ycc), ycc).clamp(0, 1)
