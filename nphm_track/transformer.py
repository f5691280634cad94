"""The layer that the networks of geometry and codes are made of."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """Pre-norm transformer layer with a GELU MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # [B, L, D]
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + self.out(h)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def through(blocks: nn.ModuleList, x: Tensor, recompute: bool) -> Tensor:
    """x through all blocks; ``recompute``: gradient checkpointing."""
    for block in blocks:
        x = cast("Tensor", checkpoint(block, x, use_reentrant=False)) if recompute else block(x)
    return x
