"""Encoders of the paper's kind, narrow: shapes, DINOv2's weights, the place of the released ones, training."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nphm_track.errors import ModelError
from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.geometry.loading import load_geometry
from nphm_track.geometry.predict import GeometryPredictor
from nphm_track.geometry.vit import DenseVit, Vit, VitConfig, VitGeometry, join, take_dinov2
from nphm_track.models import write_weights
from nphm_track.training.dense_task import DenseData, DenseTask
from nphm_track.training.recipe import TrainerConfig
from nphm_track.training.samples import write_shard
from nphm_track.training.trainer import Trainer

SMALL = {"size": 32, "patch": 16, "width": 12, "layers": 2, "heads": 2}
DECODER = {"decoder_width": 16, "decoder_layers": 1, "decoder_heads": 2}


def config(**changes: object) -> VitConfig:
    return VitConfig(**(SMALL | DECODER | changes))  # type: ignore[arg-type]


def test_maps_have_the_crops_resolution() -> None:
    assert (VitConfig().grid, VitConfig().out) == (32, 512)
    normals, sure = DenseVit(config())(torch.rand(2, 3, 32, 32))
    assert normals.shape == (2, 3, 32, 32) and sure.shape == (2, 32, 32)
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(2, 32, 32))


def test_checkpointing_changes_no_gradient() -> None:
    crop, gradients = torch.rand(1, 3, 32, 32), []
    for recompute in (False, True):
        torch.manual_seed(0)
        net = DenseVit(config(recompute=recompute)).train()
        net(crop)[0].sum().backward()
        gradients.append(net.encoder.patch.weight.grad)
    torch.testing.assert_close(*gradients)


def dinov2(width: int, layers: int, side: int, patch: int) -> dict[str, Tensor]:
    """A state in DINOv2's layout with random weights."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    state = {"cls_token": random(1, 1, width), "pos_embed": random(1, 1 + side**2, width)}
    state |= {"patch_embed.proj.weight": random(width, 3, patch, patch), "patch_embed.proj.bias": random(width)}
    shapes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    shapes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for k in range(layers):
        for name, shape in shapes.items():
            state |= {f"blocks.{k}.{name}.weight": random(*shape), f"blocks.{k}.{name}.bias": random(shape[0])}
        for name in ("norm1", "norm2"):
            state |= {f"blocks.{k}.{name}.{kind}": 1 + random(width) for kind in ("weight", "bias")}
        state |= {f"blocks.{k}.ls{i}.gamma": random(width) for i in (1, 2)}
    return state | {f"norm.{kind}": random(width) for kind in ("weight", "bias")}


def reference(state: dict[str, Tensor], pixels: Tensor, heads: int, layers: int) -> Tensor:
    """DINOv2's own function, in its own terms: layer scale, class token, positions."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    patch = state["patch_embed.proj.weight"]
    x = F.conv2d(pixels, patch, state["patch_embed.proj.bias"], stride=patch.shape[-1]).flatten(2).mT
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    for k in range(layers):
        b, n, d = x.shape
        q, key, v = linear(norm(x, f"blocks.{k}.norm1"), f"blocks.{k}.attn.qkv").reshape(b, n, 3, heads, -1).unbind(2)
        q, key, v = (y.transpose(1, 2) for y in (q, key, v))
        attention = (q @ key.mT * (d // heads) ** -0.5).softmax(-1)
        h = linear((attention @ v).transpose(1, 2).reshape(b, n, d), f"blocks.{k}.attn.proj")
        x = x + state[f"blocks.{k}.ls1.gamma"] * h
        h = F.gelu(linear(norm(x, f"blocks.{k}.norm2"), f"blocks.{k}.mlp.fc1"))
        x = x + state[f"blocks.{k}.ls2.gamma"] * linear(h, f"blocks.{k}.mlp.fc2")
    return norm(x, "norm")[:, 1:]


def test_dinov2s_weights_give_dinov2s_tokens(tmp_path: Path) -> None:
    state = dinov2(12, 2, 2, 16)
    torch.save(state, tmp_path / "dinov2.pth")
    vit = Vit(config())
    take_dinov2(vit, tmp_path / "dinov2.pth")
    crop = torch.rand(2, 3, 32, 32)
    expected = reference(state, (crop - vit.mean) / vit.spread, heads=2, layers=2)
    torch.testing.assert_close(vit(crop), expected, atol=1e-4, rtol=1e-4)


def test_patches_and_positions_of_another_size_are_resampled() -> None:
    vit, state = Vit(config()), dinov2(12, 2, 5, 14)
    state["patch_embed.proj.weight"] = torch.ones(12, 3, 14, 14)
    take_dinov2(vit, state)
    torch.testing.assert_close(vit.patch.weight.sum((2, 3)), torch.full((12, 3), 196.0))
    with pytest.raises(ModelError, match="width 12 and 2 layers"):
        take_dinov2(vit, dinov2(16, 2, 2, 16))
    with pytest.raises(ModelError, match="no DINOv2"):
        take_dinov2(vit, {})


def written(path: Path, target: str) -> Path:
    net = DenseVit(config(target=target))
    write_weights(path, net.state_dict(), {"kind": "vit", "vit": net.config.to_dict()})
    return path


def test_both_take_the_place_of_the_released_networks(tmp_path: Path) -> None:
    n, p = (written(tmp_path / t / "model.safetensors", t) for t in ("normals", "points"))
    with pytest.raises(ModelError, match="not a network of normals"):
        join(p, n)
    write_weights(tmp_path / "both.safetensors", *join(n, p))
    net = load_geometry(str(tmp_path / "both.safetensors"))
    assert isinstance(net, VitGeometry)
    image = np.ascontiguousarray(pytest.importorskip("skimage.data").astronaut()[:300, :448])
    landmarker = FaceLandmarker.from_pretrained()
    landmarks = landmarker.find(image)[0].landmarks[None]
    maps = GeometryPredictor(landmarker, net, mirror=True).maps([image], landmarks)
    assert maps.normals.shape == maps.points.shape == (1, 32, 32, 3) and maps.crops.shape == (1, 3, 32, 32)
    own = DenseVit.from_pretrained(n)(maps.crops)[0].permute(0, 2, 3, 1)
    once = GeometryPredictor(landmarker, net).maps([image], landmarks)
    torch.testing.assert_close(once.normals, own, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("target", "unit"), [("normals", "degrees"), ("points", "mm")])
def test_training_brings_the_error_down(tmp_path: Path, target: str, unit: str) -> None:
    """The left half of a picture looks left, the right half looks right; dark and bright."""
    picture = np.zeros((24, 24, 3), np.uint8)
    picture[:, 12:] = 255
    jpeg = io.BytesIO()
    Image.fromarray(picture).save(jpeg, "JPEG")
    side = np.where(np.arange(16) < 8, -1.0, 1.0)
    x = np.broadcast_to(side, (16, 16))
    normals = np.stack([x, 0 * x, 1 + 0 * x], -1) / 2**0.5
    columns = {
        "normals": (127 * normals).round().astype(np.int8),
        "points": (0.05 * normals).astype(np.float16),
        "mask": np.ones((16, 16), bool),
    }
    write_shard(tmp_path / "shards" / "a.tar", [(jpeg.getvalue(), columns)] * 2)
    folder = str(tmp_path / "shards")
    task = DenseTask(DenseData(target=target, samples=folder, heldout=folder, batch=2, **SMALL, **DECODER))  # type: ignore[arg-type]
    before = task.evaluate(task.model)[unit]
    steps = TrainerConfig(steps=80, learning_rate=1e-2, warmup=2, ema=0.5, evaluate_every=1000)
    after = Trainer(task, steps, {"l1": 1.0 if target == "normals" else 20.0, "sure": 0.1}, tmp_path / "run").run()
    assert after[unit] < 0.6 * before
    assert DenseVit.from_pretrained(tmp_path / "run").config == task.model.config
