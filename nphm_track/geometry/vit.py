"""E_n and E_p at the paper's size: a ViT on the crop's own pixels with Pixel3DMM's dense decoder, each one network.

ViT-B of 16 pixel patches on crops of 512 pixels; the decoder is a linear layer to 256, 12 attention layers of 8 heads
and three transposed convolutions of stride 2, then 2 x 2 pixels a cell. Nothing of the landmark network is read. All
sizes are configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nphm_track.errors import ModelError
from nphm_track.models import load_network, read_weights
from nphm_track.transformer import Block, through

Target = Literal["normals", "points"]
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours, in which public encoders were trained."""
UP = 3
"""Transposed convolutions."""
NORM_EPSILON = 1e-6
"""DINOv2's."""


@dataclass(frozen=True)
class VitConfig:
    """Sizes of one encoder and its decoder; the defaults are the paper's."""

    target: Target = "normals"
    size: int = 512  # pixels of the crop's side
    patch: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    decoder_width: int = 256
    decoder_layers: int = 12
    decoder_heads: int = 8
    recompute: bool = False  # gradient checkpointing: activations of a layer are made again in the backward pass

    @property
    def grid(self) -> int:
        """Tokens along each side."""
        return self.size // self.patch

    @property
    def out(self) -> int:
        """Pixels of a side of the map: two a cell of the last transposed convolution."""
        return self.grid * 2 ** (UP + 1)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VitConfig:
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Vit(nn.Module):
    """Tokens [B, grid^2, width] of crops [B, 3, size, size] in 0..1."""

    mean: Tensor
    spread: Tensor

    def __init__(self, c: VitConfig) -> None:
        super().__init__()
        self.config = c
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("spread", torch.tensor(SPREAD)[:, None, None], persistent=False)
        self.patch = nn.Conv2d(3, c.width, c.patch, c.patch)
        self.first = nn.Parameter(torch.zeros(1, 1, c.width))  # DINOv2's class token
        self.position = nn.Parameter(torch.randn(1, c.grid**2, c.width) * 0.02)
        self.blocks = nn.ModuleList(Block(c.width, c.heads) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = NORM_EPSILON

    def forward(self, crop: Tensor) -> Tensor:
        x = self.patch((crop - self.mean) / self.spread).flatten(2).transpose(1, 2) + self.position
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        x = through(self.blocks, x, self.config.recompute and self.training)
        return cast("Tensor", self.norm(x)[:, 1:])


class DenseDecoder(nn.Module):
    """Map [B, 4, out, out] of tokens: three coordinates and a confidence before the sigmoid."""

    def __init__(self, c: VitConfig) -> None:
        super().__init__()
        self.config, d = c, c.decoder_width
        self.enter = nn.Linear(c.width, d)
        self.position = nn.Parameter(torch.randn(1, c.grid**2, d) * 0.02)
        self.blocks = nn.ModuleList(Block(d, c.decoder_heads) for _ in range(c.decoder_layers))
        widths = [d >> k for k in range(UP + 1)]
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairwise(widths))
        self.head = nn.Conv2d(widths[-1], 4 * 4, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = through(self.blocks, self.enter(tokens) + self.position, self.config.recompute and self.training)
        x = x.transpose(1, 2).unflatten(2, (self.config.grid, self.config.grid))
        for layer in self.up:
            x = F.gelu(layer(x))
        return F.pixel_shuffle(self.head(x), 2)


class DenseVit(nn.Module):
    """E_n with D_n, or E_p with D_p."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Vit(config), DenseDecoder(config)

    def forward(self, crop: Tensor) -> tuple[Tensor, Tensor]:
        """Normals (unit) or points (metres) [B, 3, out, out], head space, and confidence [B, out, out] before the
        sigmoid, of crops [B, 3, size, size] in 0..1.
        """
        return self.decoded(self.encoder(crop))

    def decoded(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        out = self.decoder(tokens).float()
        seen = F.normalize(out[:, :3], dim=1) if self.config.target == "normals" else out[:, :3] / 10
        return seen, out[:, 3]

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, device: torch.device | str = "cpu") -> DenseVit:
        """Raises ModelError when the file is missing, damaged or of another kind."""
        return load_network(
            name_or_path, "vit", "a geometry network of the paper's kind",
            lambda config, _: cls(VitConfig.from_dict(config["vit"])), device,
        )  # fmt: skip


class VitGeometry(nn.Module):
    """Both networks in the place of :class:`nphm_track.geometry.networks.GeometryNet`."""

    mean_landmarks: Tensor
    triangles: Tensor

    def __init__(self, n: VitConfig, p: VitConfig, n_triangles: int) -> None:
        super().__init__()
        self.register_buffer("mean_landmarks", torch.zeros(478, 3))
        self.register_buffer("triangles", torch.zeros(n_triangles, 3, dtype=torch.int32))
        self.n, self.p = DenseVit(n), DenseVit(p)
        self.config, self.crop_size = n, n.size

    def features(self, trunk: nn.Module, crop: Tensor) -> dict[int, Tensor]:
        """Nothing of the landmark network is read."""
        return {}

    def encode(self, crop: Tensor, features: dict[int, Tensor], maps: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of E_n and E_p, [B, grid^2, width] each, of crops [B, 3, size, size] in 0..1."""
        return self.n.encoder(crop), self.p.encoder(crop)

    def forward(self, crop: Tensor, features: dict[int, Tensor], maps: Tensor) -> dict[str, Tensor]:
        """As :meth:`GeometryNet.forward`, maps of ``VitConfig.out`` pixels."""
        tokens = self.encode(crop, features, maps)
        normals, sure_n = self.n.decoded(tokens[0])
        points, sure_p = self.p.decoded(tokens[1])
        return {
            "tokens_n": tokens[0], "tokens_p": tokens[1], "normals": normals, "points": points,
            "normal_logit": sure_n, "point_logit": sure_p,
        }  # fmt: skip


def take_dinov2(vit: Vit, weights: str | Path | Mapping[str, Tensor]) -> None:
    """Start from DINOv2's ViT of the same width and depth: a local file of its state (safetensors, or torch's own).

    Patches and positions are resampled to ``vit``'s; the factors of its layers (``ls1``, ``ls2``) go into the weights.

    Raises ModelError when the file cannot be read or holds a network of other sizes.
    """
    state = dict(_state(Path(weights)) if isinstance(weights, (str, Path)) else weights)
    c = vit.config
    names = {
        "norm1": "norm1",
        "norm2": "norm2",
        "attn.qkv": "qkv",
        "attn.proj": "out",
        "mlp.fc1": "up",
        "mlp.fc2": "down",
    }
    factors = {"out": "ls1.gamma", "down": "ls2.gamma"}
    own: dict[str, Tensor] = {}
    try:
        patch = state["patch_embed.proj.weight"]
        own["patch.weight"] = F.interpolate(patch, size=(c.patch, c.patch), mode="bicubic", antialias=True)
        own["patch.weight"] *= patch.shape[-1] ** 2 / c.patch**2  # the sum over a patch stays
        own["patch.bias"] = state["patch_embed.proj.bias"]
        own["first"] = state["cls_token"] + state["pos_embed"][:, :1]
        places = state["pos_embed"][:, 1:]
        side = round(places.shape[1] ** 0.5)
        cells = places.transpose(1, 2).unflatten(2, (side, side))
        cells = F.interpolate(cells, size=(c.grid, c.grid), mode="bicubic", antialias=True)
        own["position"] = cells.flatten(2).transpose(1, 2)
        for k in range(c.layers):
            for theirs, ours in names.items():
                factor = state.get(f"blocks.{k}.{factors[ours]}") if ours in factors else None
                for kind in ("weight", "bias"):
                    value = state[f"blocks.{k}.{theirs}.{kind}"]
                    if factor is not None:
                        value = value * (factor[:, None] if kind == "weight" else factor)
                    own[f"blocks.{k}.{ours}.{kind}"] = value
        own |= {f"norm.{kind}": state[f"norm.{kind}"] for kind in ("weight", "bias")}
        vit.load_state_dict(own)
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ModelError(f"no DINOv2 network of width {c.width} and {c.layers} layers: {reason}") from None


def _state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except Exception as error:  # safetensors raises its own kinds
            raise ModelError(f"{path} cannot be read: {error}") from None
    from nphm_track.heads.import_mononphm import read_checkpoint

    state = read_checkpoint(path)
    return {k: v for k, v in state.get("model", state).items() if isinstance(v, Tensor)}


def join(n: str | Path, p: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of a :class:`VitGeometry` from the files of E_n and E_p.

    Raises ModelError when they are not of the paper's kind, or swapped.
    """
    base, _ = read_weights("geometry")
    tensors: dict[str, Tensor] = {k: base[k] for k in ("mean_landmarks", "triangles")}
    config: dict[str, Any] = {}
    for name, path, target in (("n", n, "normals"), ("p", p, "points")):
        own, stored = read_weights(path)
        if stored.get("kind") != "vit" or stored["vit"]["target"] != target:
            raise ModelError(f"{path} is not a network of {target}")
        tensors |= {f"{name}.{k}": v for k, v in own.items()}
        config[name] = {**stored["vit"], "recompute": False}
    return tensors, {"kind": "geometry", "vit": config}
