"""Plain skin colours for heads without a photo, for batches on any device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track.training.ict import IctHeads
from nphm_track.training.paint import brow_distances, in_polygon
from nphm_track.training.rng import Rng

CLAY = 0.45
"""Share of the heads in one colour."""


class Painter:
    """Vertex colours: skin with blotches, lips, brows, eyes; or clay."""

    def __init__(self, heads: IctHeads, landmarks68: NDArray[np.int64], device: torch.device | str) -> None:
        def put(x: NDArray[np.generic]) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(x)).to(device)

        v = heads.neutral
        inside = in_polygon(v[:, :2], v[landmarks68[48:60]][:, :2]) & (v[:, 2] > 0.03) & ~heads.is_pocket
        brows = brow_distances(v, landmarks68)
        radius = np.full(len(v), np.inf)
        for side in (-1, 1):
            own = heads.is_eye & (np.sign(v[:, 0]) == side)
            radius[own] = np.linalg.norm(v[own, :2] - v[own].mean(0)[:2], axis=1)
        self.neutral, self.lips, self.pocket, self.eye = put(v), put(inside), put(heads.is_pocket), put(heads.is_eye)
        self.brow = put(np.where(heads.is_eye, np.inf, np.minimum(*brows)).astype(np.float32))
        self.radius = put(radius.astype(np.float32))

    def __call__(self, rng: Rng, count: int) -> Tensor:
        """Colours [count, V, 3] in 0..1."""
        neutral = self.neutral
        tone = neutral.new_tensor([0.78, 0.58, 0.48]) * rng.uniform(count, 1, 1, low=0.3, high=1.15)
        skin = tone * rng.uniform(count, 1, 3, low=0.93, high=1.07)
        wave = rng.normal(count, 3, 8) * 90
        blotch = torch.sin(neutral @ wave + rng.uniform(count, 1, 8, high=6.3)).sum(-1, keepdim=True)
        tint = neutral.new_tensor([0.6, 1.0, 1.0])
        colour = skin * (1 + 0.025 * rng.uniform(count, 1, 1) * blotch * tint)
        colour = torch.where(self.lips[:, None], skin * neutral.new_tensor([0.85, 0.55, 0.55]), colour)
        colour = torch.where(self.pocket[:, None], neutral.new_tensor([0.15, 0.05, 0.05]), colour)
        thick = rng.uniform(count, 1, low=0.002, high=0.0045)
        hair = skin * rng.uniform(count, 1, 1, low=0.12, high=0.6)
        colour = torch.where((self.brow < thick)[..., None], hair, colour)
        iris = rng.uniform(count, 1, 3, low=0.05, high=0.5)
        eye = torch.where((self.radius < 0.006)[:, None], iris, 0.85)
        eye = torch.where((self.radius < 0.0025)[:, None], 0.02, eye)
        colour = torch.where(self.eye[:, None], eye, colour)
        clay = rng.uniform(count, 1, 1, low=0.35, high=0.95) * rng.uniform(count, 1, 3, low=0.85, high=1.15)
        return torch.where(rng.chance(CLAY, count)[:, None, None], clay, colour).clamp(0, 1)
