"""Seeded head models: the golden file's MonoNPHM weights, and small decoders of every kind."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nphm_track._runtime import prepare_torch
from nphm_track.heads.config import MONONPHM, HeadConfig
from nphm_track.heads.decoder import NphmDecoder

GOLDEN = Path(__file__).parent / "golden" / "mononphm_dev.npz"
State = dict[str, Tensor]

SOFTPLUS = HeadConfig(
    name="softplus",
    global_dim=8,
    local_dim=4,
    expression_dim=6,
    hidden=16,
    hidden_layers=3,
    nearest=5,
    sigma_rank=4,
    deform_hidden=24,
    deform_layers=4,
    deform_skip=2,
    compressed_dim=5,
    hyper_dim=2,
    anchor_hidden=8,
    activation="softplus",
    n_pairs=6,
    n_middle=3,
)
SILU = replace(
    SOFTPLUS,
    name="silu",
    activation="silu",
    bilinear=True,
    local_scale=4.0,
    deform_scale=2.0,
    sdf_scale=0.1,
    offset_scale=0.1,
)
CONFIGS = {"softplus": SOFTPLUS, "silu": SILU, "mononphm": MONONPHM}


@pytest.fixture(scope="session", autouse=True)
def fast_denormals() -> None:
    prepare_torch()


@pytest.fixture(scope="session")
def golden() -> dict[str, Tensor]:
    """Arrays of the golden file: inputs and the reference implementation's float32 outputs (``out_*``)."""
    with np.load(GOLDEN, allow_pickle=False) as data:
        return {name: torch.from_numpy(data[name]) for name in data.files}


@pytest.fixture(scope="session")
def public_state() -> tuple[State, State]:
    """The golden weights (id_decoder, ex_decoder), rebuilt from their names; copy the dicts before changing them."""
    return _seeded("id_decoder", dict(_identity_shapes())), _seeded("ex_decoder", dict(_expression_shapes()))


@pytest.fixture
def build() -> Callable[..., Any]:
    """``build("silu", seed=0, dtype=torch.float64)``: a random decoder with mirror-symmetric mean anchors."""

    def make(kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> NphmDecoder:
        config = CONFIGS[kind]
        torch.manual_seed(seed)
        model: Any = NphmDecoder(config)
        right = torch.rand(config.n_pairs, 3) * 0.6 - torch.tensor([0.7, 0.3, 0.3])
        left = right * torch.tensor([-1.0, 1.0, 1.0])
        middle = torch.rand(config.n_middle, 3) * torch.tensor([0.0, 0.6, 0.6]) - torch.tensor([0.0, 0.3, 0.3])
        model.mean_anchors.copy_(torch.cat([torch.stack([right, left], 1).flatten(0, 1), middle]))
        return model.to(dtype).eval().requires_grad_(False)

    return make


def _linear(name: str, out: int, inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, inputs)
    yield f"{name}.bias", (out,)


def _identity_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    for prefix, first, last in (("deepSDFensemble", 101, 1), ("aggr_app", 112, 3)):
        widths = (first, 200, 200, 200, 200, last)
        for member in range(36):
            for k in range(5):
                yield from _linear(f"{prefix}.layers.{member}.layers.{2 * k}", widths[k + 1], widths[k])
    yield from _linear("communcation_bottleneck1", 16, 200)
    yield from _linear("communcation_bottleneck2", 16, 16)
    for k, out in ((0, 64), (2, 64), (4, 195)):
        yield from _linear(f"mlp_pos.{k}", out, 64)


def _expression_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _linear("compressor.0", 16, 2371)
    for k, (out, inputs) in enumerate(
        [(400, 119), (400, 400), (400, 400), (400, 519), (400, 400), (400, 400), (5, 400)]
    ):
        yield from _linear(f"defDeepSDF.lin{k}", out, inputs)


def _seeded(group: str, shapes: dict[str, tuple[int, ...]]) -> State:
    state = {}
    for name, shape in shapes.items():
        x = np.random.default_rng(zlib.crc32(f"dev/{group}/{name}".encode())).standard_normal(shape)
        x *= 0.05 if len(shape) == 1 else np.sqrt(2 / shape[1])
        state[name] = torch.from_numpy(x.astype(np.float32))
    return state
