"""Weights in a quarter of their size, to keep an unfinished run under version control: int8 rows with scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nphm_track.models import read_weights

SCALE = ":scale"
"""Ending of the name of a packed tensor's scales."""


def pack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels as int8 [R, ...] with a scale a row [R]; everything else as float16 or as it is.

    Off by half a step at most, 1/254 of the largest value of a row: good enough to train on from.
    """
    out: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if not value.is_floating_point():
            out[name] = value
        elif value.dim() < 2 or value.numel() < 4096:
            out[name] = value.half()
        else:
            rows = value.float().flatten(1)
            scale = rows.abs().amax(1).clamp_min(1e-12) / 127
            out[name] = (rows / scale[:, None]).round().to(torch.int8).view(value.shape)
            out[name + SCALE] = scale
    return out


def unpack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`pack`, float32; weights that were never packed are left as they are."""
    out: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name + SCALE in tensors:
            scale = tensors[name + SCALE]
            out[name] = value.float() * scale.view(-1, *[1] * (value.dim() - 1))
        elif not name.endswith(SCALE):
            out[name] = value
    return out


def read_initial(path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights to start from, packed or not, and their configuration. Raises ModelError as ``read_weights`` does."""
    tensors, config = read_weights(path)
    return unpack(tensors), config
