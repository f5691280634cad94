"""E_n and E_p with their dense decoders: normals and canonical points from a face crop (Pix2NPHM, section 3.2).

The small configuration stands on the frozen trunk of the face landmarker, which saw millions of real faces, and on the
rasterised landmark mesh: each encoder is a ViT over their 16 x 16 cells.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nphm_track.conventions import BROWS, LIDS, LIPS
from nphm_track.faces.roi import CROP_SIZE
from nphm_track.geometry.landmark_mesh import MAP_CHANNELS
from nphm_track.models import load_network
from nphm_track.transformer import Block

GRID = 16
"""Tokens along each side of the crop."""
TRUNK = {64: 32, 32: 64, 16: 128, 8: 128, 4: 128}
"""Channels of the landmark network's stages by the size of their maps."""
DETAIL_POINTS = LIDS + LIPS + BROWS
DETAIL = TRUNK[64] + TRUNK[32]
"""Channels of a point's details: the trunk's two finest maps there."""
DENSE = 128
"""Pixels of a side of the dense outputs and of the landmark maps."""


@dataclass(frozen=True)
class GeometryConfig:
    """Sizes of both encoders and decoders."""

    width: int = 128
    layers: int = 3
    heads: int = 4
    trunk: bool = True
    landmark_mesh: bool = True
    decoder: tuple[int, int] = (48, 24)  # channels at 32 and 64 pixels
    stem: tuple[int, ...] = ()  # channels at 64 and 32 pixels of a convolutional stem on the crop; none without
    stem_blocks: tuple[int, ...] = (2, 3)  # residual blocks at each of these sizes

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GeometryConfig:
        lists = {k: tuple(v) for k, v in values.items() if isinstance(v, (list, tuple))}
        return cls(**{**values, **lists})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Residual(nn.Module):
    """Pre-norm residual block of two 3 x 3 convolutions; the identity until it is trained."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(cast("Tensor", self.second.bias))

    def forward(self, x: Tensor) -> Tensor:
        return x + cast("Tensor", self.second(F.gelu(self.first(self.norm(x)))))


class Stem(nn.Module):
    """Maps {64: ..., 32: ...} of the crop's own pixels, helped by the frozen trunk and the landmark maps.

    The trunk knows real faces but was made for landmarks; shading and fine shape are learnt here.
    """

    def __init__(self, c: GeometryConfig) -> None:
        super().__init__()
        fine, coarse = c.stem
        self.config = c
        self.patch = nn.Conv2d(3 * 16, fine, 3, padding=1)
        self.known = nn.Conv2d((TRUNK[64] if c.trunk else 0) + MAP_CHANNELS, fine, 1)
        self.fine = nn.Sequential(*(Residual(fine) for _ in range(c.stem_blocks[0])))
        self.down = nn.Conv2d(fine, coarse, 2, 2)
        self.coarse = nn.Sequential(*(Residual(coarse) for _ in range(c.stem_blocks[1])))

    def forward(self, crop: Tensor, trunk: dict[int, Tensor], maps: Tensor) -> dict[int, Tensor]:
        known = F.avg_pool2d(maps, 2) * float(self.config.landmark_mesh)
        known = torch.cat([trunk[64], known], 1) if self.config.trunk else known
        x = self.fine(self.patch(F.pixel_unshuffle(crop - 0.5, 4)) + self.known(known))
        return {64: x, 32: self.coarse(self.down(x))}


class Encoder(nn.Module):
    """Tokens [B, 256, width] of a crop, from the stem, the frozen trunk's maps and the landmark maps."""

    def __init__(self, c: GeometryConfig) -> None:
        super().__init__()
        self.config = c
        if c.trunk:
            self.fine = nn.Conv2d(TRUNK[32], c.width, 2, 2)
            self.middle = nn.Linear(TRUNK[16], c.width)
            self.coarse = nn.ModuleDict({str(s): nn.Linear(TRUNK[s], c.width) for s in (8, 4)})
        if c.stem:
            self.learnt = nn.Conv2d(c.stem[1], c.width, 2, 2)
        elif not c.trunk:
            self.patch = nn.Conv2d(3, c.width, 16, 16)
        if c.landmark_mesh:
            self.mesh = nn.Conv2d(MAP_CHANNELS, c.width, DENSE // GRID, DENSE // GRID)
        self.position = nn.Parameter(torch.randn(GRID * GRID, c.width) * 0.02)
        self.blocks = nn.ModuleList(Block(c.width, c.heads) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width)

    def forward(self, crop: Tensor, trunk: dict[int, Tensor], stem: dict[int, Tensor], maps: Tensor) -> Tensor:
        x: Tensor = self.position.unsqueeze(0)
        if self.config.trunk:
            x = x + _rows(self.fine(trunk[32])) + self.middle(_rows(trunk[16]))
            for size, layer in self.coarse.items():
                cells = layer(_rows(trunk[int(size)])).transpose(1, 2).unflatten(2, (int(size), int(size)))
                x = x + _rows(F.interpolate(cells, size=(GRID, GRID), mode="bilinear"))
        if self.config.stem:
            x = x + _rows(self.learnt(stem[32]))
        elif not self.config.trunk:
            x = x + _rows(self.patch(crop - 0.5))
        if self.config.landmark_mesh:
            x = x + _rows(self.mesh(maps))
        for block in self.blocks:
            x = block(x)
        return cast("Tensor", self.norm(x))


class Decoder(nn.Module):
    """Dense map [B, out, 128, 128] from tokens; finer maps of the trunk and the landmark mesh join on the way.

    The last doubling is a pixel shuffle: convolutions at 128 pixels would cost as much as everything before them.
    """

    def __init__(self, c: GeometryConfig, out: int) -> None:
        super().__init__()
        self.config = c
        skips = {32: TRUNK[32], 64: TRUNK[64]} if c.trunk else {32: 0, 64: 3}
        if c.stem:
            skips = {32: skips[32] + c.stem[1], 64: skips[64] + c.stem[0]}
        if c.landmark_mesh:
            skips[64] += MAP_CHANNELS
        widths = (c.width, *c.decoder)
        self.up = nn.ModuleList(nn.Conv2d(i, 4 * o, 1) for i, o in pairwise(widths))
        self.merge = nn.ModuleList(nn.Conv2d(o + skips[s], o, 1) for s, o in zip((32, 64), c.decoder, strict=True))
        self.mix = nn.ModuleList(nn.Conv2d(o, o, 3, padding=1) for o in c.decoder)
        self.head = nn.Conv2d(c.decoder[-1], 4 * out, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(cast("Tensor", self.head.bias))

    def forward(
        self, tokens: Tensor, crop: Tensor, trunk: dict[int, Tensor], stem: dict[int, Tensor], maps: Tensor
    ) -> Tensor:
        x = tokens.transpose(1, 2).unflatten(2, (GRID, GRID))
        for size, up, merge, mix in zip((32, 64), self.up, self.merge, self.mix, strict=True):
            parts = [F.pixel_shuffle(up(x), 2)]
            parts += [trunk[size]] if self.config.trunk else []
            parts += [stem[size]] if self.config.stem else []
            if size == 64:
                parts += [] if self.config.trunk else [F.avg_pool2d(crop, 4) - 0.5]
                parts += [F.avg_pool2d(maps, 2)] if self.config.landmark_mesh else []
            x = F.gelu(merge(torch.cat(parts, 1)))
            x = x + F.gelu(mix(x))
        return F.pixel_shuffle(self.head(x), 2)


class GeometryNet(nn.Module):
    """Both encoders and decoders over one trunk.

    The maps start from the landmark mesh: what is learnt is the difference.
    """

    mean_landmarks: Tensor
    triangles: Tensor
    crop_size = CROP_SIZE
    """Pixels of a side of the crops that are read."""

    def __init__(self, config: GeometryConfig, n_triangles: int) -> None:
        super().__init__()
        self.config = c = config
        self.register_buffer("mean_landmarks", torch.zeros(478, 3))
        self.register_buffer("triangles", torch.zeros(n_triangles, 3, dtype=torch.int32))
        for size, channels in TRUNK.items():  # trunk maps are standardised channel by channel
            self.register_buffer(f"trunk_mean_{size}", torch.zeros(channels))
            self.register_buffer(f"trunk_spread_{size}", torch.ones(channels))
        self.stem = Stem(c) if c.stem else None
        self.normal_encoder, self.point_encoder = Encoder(c), Encoder(c)
        self.normal_decoder, self.point_decoder = Decoder(c, 4), Decoder(c, 4)

    def standardise(self, features: dict[int, Tensor]) -> dict[int, Tensor]:
        """The trunk's maps {size: [B, C, size, size]} with zero mean and unit spread in every channel."""
        return {
            s: (x - getattr(self, f"trunk_mean_{s}")[:, None, None]) / getattr(self, f"trunk_spread_{s}")[:, None, None]
            for s, x in features.items()
        }

    def features(self, trunk: nn.Module, crop: Tensor) -> dict[int, Tensor]:
        """The maps of the landmark network (``trunk_features``) that the others take."""
        return trunk_features(trunk, crop)

    def encode(self, crop: Tensor, features: dict[int, Tensor], maps: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of E_n and E_p, [B, 256, width] each.

        crop [B, 3, 256, 256] in 0..1, features: the trunk's maps (``trunk_features``), maps [B, 7, 128, 128] of
        ``landmark_mesh.landmark_maps``.
        """
        trunk = self.standardise(features)
        stem = self._look(crop, trunk, maps)
        return self.normal_encoder(crop, trunk, stem, maps), self.point_encoder(crop, trunk, stem, maps)

    def _look(self, crop: Tensor, trunk: dict[int, Tensor], maps: Tensor) -> dict[int, Tensor]:
        return {} if self.stem is None else self.stem(crop, trunk, maps)

    def details(self, features: dict[int, Tensor], landmarks: Tensor) -> Tensor:
        """[B, P, DETAIL]: the trunk's finest maps at ``DETAIL_POINTS`` of the landmarks [B, 478, 3] (crop px)."""
        trunk = self.standardise({s: features[s] for s in (64, 32)})
        grid = (landmarks[:, DETAIL_POINTS, :2] / (CROP_SIZE / 2) - 1)[:, :, None].to(features[64].dtype)
        maps = (F.grid_sample(trunk[s], grid, padding_mode="border", align_corners=False) for s in (64, 32))
        return torch.cat([m[..., 0] for m in maps], 1).transpose(-1, -2)

    def trunk_tokens(self, features: dict[int, Tensor]) -> Tensor:
        """The trunk's own 16 x 16 map as tokens [B, 256, 128], for comparison with E_n and E_p."""
        return _rows(self.standardise({16: features[16]})[16])

    def forward(self, crop: Tensor, features: dict[int, Tensor], maps: Tensor) -> dict[str, Tensor]:
        """``normals`` [B, 3, 128, 128] unit, head frame; ``points`` [B, 3, 128, 128] metres, head space;
        ``normal_logit``, ``point_logit`` [B, 128, 128]: confidence before the sigmoid; ``tokens_n``, ``tokens_p``.
        """
        trunk = self.standardise(features)
        stem = self._look(crop, trunk, maps)
        tokens_n, tokens_p = (e(crop, trunk, stem, maps) for e in (self.normal_encoder, self.point_encoder))
        n = self.normal_decoder(tokens_n, crop, trunk, stem, maps).float()
        p = self.point_decoder(tokens_p, crop, trunk, stem, maps).float()
        front = torch.tensor([0.0, 0.0, 0.3], device=n.device)[:, None, None]
        return {
            "tokens_n": tokens_n,
            "tokens_p": tokens_p,
            "normals": F.normalize(n[:, :3] + maps[:, 3:6] + front * (1 - maps[:, 6:]), dim=1),
            "points": (0.3 * p[:, :3] + maps[:, :3]) / 10,
            "normal_logit": n[:, 3],
            "point_logit": p[:, 3],
        }

    @classmethod
    def from_pretrained(cls, name_or_path: str = "geometry", *, device: torch.device | str = "cpu") -> GeometryNet:
        """The released networks. Raises ModelError when the file is missing, damaged or of another kind."""
        return load_network(
            name_or_path,
            "geometry",
            "a geometry network",
            lambda config, tensors: cls(GeometryConfig.from_dict(config["geometry"]), len(tensors["triangles"])),
            device,
        )


def trunk_features(trunk: nn.Module, crop: Tensor) -> dict[int, Tensor]:
    """The landmark network's maps {size: [B, C, size, size]} of crops [B, 3, 256, 256] in 0..1."""
    out = trunk(crop, True)
    return {size: out[f"features_{size}"].contiguous() for size in TRUNK}


def _rows(x: Tensor) -> Tensor:
    """Cells of maps [B, C, h, w] as tokens [B, h * w, C]."""
    return x.flatten(2).transpose(1, 2)
