"""Random numbers of one device, drawn for a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor


class Rng:
    """A seeded generator with the few distributions that renders need."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def below(self, bound: int, *shape: int) -> Tensor:
        """Integers [0, bound)."""
        return torch.randint(bound, shape, generator=self.generator, device=self.device)

    def chance(self, probability: float, *shape: int) -> Tensor:
        return self.uniform(*shape) < probability
