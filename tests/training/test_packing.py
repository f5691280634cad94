"""Packed weights are a quarter as large and come back nearly equal."""

from __future__ import annotations

from pathlib import Path

import torch

from nphm_track.models import write_weights
from nphm_track.training.packing import pack, read_initial


def test_packed_weights_come_back_within_half_a_step(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(64, 16, 3, 3, generator=generator) * torch.logspace(-3, 1, 64)[:, None, None, None]
    tensors = {
        "kernel": kernel,
        "matrix": torch.randn(128, 64, generator=generator),
        "none": torch.zeros(64, 64),
        "bias": torch.randn(128, generator=generator),
        "index": torch.arange(6).view(2, 3),
    }
    packed = pack(tensors)
    assert packed["kernel"].dtype == packed["matrix"].dtype == torch.int8
    write_weights(tmp_path / "packed.safetensors", packed, {"kind": "test"})
    again, config = read_initial(str(tmp_path / "packed.safetensors"))
    assert config == {"kind": "test"} and again.keys() == tensors.keys()
    for name in ("kernel", "matrix"):
        step = tensors[name].flatten(1).abs().amax(1) / 127
        assert ((again[name] - tensors[name]).flatten(1).abs() <= 0.501 * step[:, None]).all()
    assert torch.equal(again["none"], tensors["none"]) and torch.equal(again["index"], tensors["index"])
    assert torch.allclose(again["bias"], tensors["bias"], atol=2e-3)


def test_weights_that_were_never_packed_are_read_as_they_are(tmp_path: Path) -> None:
    weight = torch.randn(80, 80)
    write_weights(tmp_path / "plain.safetensors", {"weight": weight}, {})
    assert torch.equal(read_initial(str(tmp_path / "plain.safetensors"))[0]["weight"], weight)
