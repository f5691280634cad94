"""The three networks of Google's face_landmarker bundle as torch modules (weights: ``models/face_landmarker``).

Layers are declared in the order of the published graphs; ``training/convert_face_landmarker.py`` relies on that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _pad_channels(x: Tensor, channels: int) -> Tensor:
    """Zero channels appended, so that a narrower input can be a residual."""
    return F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1])) if channels > x.shape[1] else x


def _pad_same(x: Tensor, kernel: int) -> Tensor:
    """TensorFlow's SAME padding for stride 2 and even sizes: the odd pixel goes right and below."""
    before = (kernel - 2) // 2
    return F.pad(x, (before, kernel - 2 - before, before, kernel - 2 - before))


class BlazeBlock(nn.Module):
    """Depthwise 3x3 and pointwise convolution with a zero-padded (and, at stride 2, max-pooled) residual."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c_in, c_in, 3, stride, padding=2 - stride, groups=c_in)
        self.pointwise = nn.Conv2d(c_in, c_out, 1)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.pointwise(self.depthwise(x if self.stride == 1 else _pad_same(x, 3)))
        residual = x if self.stride == 1 else F.max_pool2d(x, 2)
        return F.relu_(y + _pad_channels(residual, y.shape[1]))


class BlazeFace(nn.Module):
    """Short-range BlazeFace: one box with six key points and a score for each of 896 anchors.

    Args:
        stem: channels of the first convolution.
        fine, coarse: (channels, stride) of each block before and after the first prediction layer.
    """

    def __init__(self, stem: int, fine: Sequence[Sequence[int]], coarse: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 5, stride=2)
        self.fine, width = _blaze_blocks(stem, fine)
        self.coarse, coarse_width = _blaze_blocks(width, coarse)
        self.score_fine = nn.Conv2d(width, 2, 1)
        self.score_coarse = nn.Conv2d(coarse_width, 6, 1)
        self.box_fine = nn.Conv2d(width, 2 * 16, 1)
        self.box_coarse = nn.Conv2d(coarse_width, 6 * 16, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [B, 3, 128, 128] in -1..1
        """Raw boxes [B, 896, 16] (x, y, w, h and six x, y; input pixels relative to the anchor) and logits [B, 896]."""
        fine = self.fine(F.relu_(self.stem(_pad_same(x, 5))))
        coarse = self.coarse(fine)
        boxes = [_rows(self.box_fine(fine), 16), _rows(self.box_coarse(coarse), 16)]
        logits = [_rows(self.score_fine(fine), 1), _rows(self.score_coarse(coarse), 1)]
        return torch.cat(boxes, 1), torch.cat(logits, 1).squeeze(-1)


def _blaze_blocks(width: int, blocks: Sequence[Sequence[int]]) -> tuple[nn.Sequential, int]:
    layers = []
    for channels, stride in blocks:
        layers.append(BlazeBlock(width, channels, stride))
        width = channels
    return nn.Sequential(*layers), width


def _rows(x: Tensor, columns: int) -> Tensor:
    """[B, A * columns, h, w] -> [B, h * w * A, columns], the anchors of a cell side by side."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, columns)


class Bottleneck(nn.Module):
    """Residual bottleneck with a depthwise middle; at stride 2 the way in is a 2x2 convolution."""

    def __init__(self, c_in: int, c_mid: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(c_in, c_mid, stride, stride)
        self.act_mid = nn.PReLU(c_mid)
        self.depthwise = nn.Conv2d(c_mid, c_mid, 3, padding=1, groups=c_mid)
        self.expand = nn.Conv2d(c_mid, c_out, 1)
        self.act = nn.PReLU(c_out)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.depthwise(self.act_mid(self.reduce(x))))
        residual = x if self.stride == 1 else F.max_pool2d(x, 2)
        return self.act(y + _pad_channels(residual, y.shape[1]))


class LandmarkNet(nn.Module):
    """478 points and a presence logit from a 256 x 256 crop.

    Args:
        stages: channels of each stage; the first works at 128 x 128, each next one at half that.
        blocks: stride-1 bottlenecks in a stage.
        max_mid: bound of a bottleneck's inner width.
    """

    def __init__(self, stages: Sequence[int], blocks: int, max_mid: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stages[0], 3, stride=2)
        self.act = nn.PReLU(stages[0])
        self.stages = nn.ModuleList()
        width = stages[0]
        for index, channels in enumerate(stages):
            mid = min(channels // 2, max_mid)
            down = [] if index == 0 else [Bottleneck(width, mid, channels, stride=2)]
            self.stages.append(nn.Sequential(*down, *(Bottleneck(channels, mid, channels) for _ in range(blocks))))
            width = channels
        self.presence = nn.Conv2d(width, 1, 2)
        self.landmarks = nn.Conv2d(width, 478 * 3, 2)

    def forward(self, x: Tensor, return_features: bool = False) -> dict[str, Tensor]:  # [B, 3, 256, 256] in 0..1
        """``landmarks`` [B, 478, 3] in crop pixels (0..256) and ``presence`` [B], a logit.

        With ``return_features`` also ``features_{n}`` [B, C, n, n] for n = 128, 64, 32, 16, 8, 4 (C = 16, 32, 64,
        then 128): the last activation of the stage of that size.
        """
        out: dict[str, Tensor] = {}
        x = self.act(self.stem(_pad_same(x, 3)))
        for stage in self.stages:
            x = stage(x)
            if return_features and x.shape[-1] >= 4:
                out[f"features_{x.shape[-1]}"] = x
        out["landmarks"] = self.landmarks(x).reshape(-1, 478, 3)
        out["presence"] = self.presence(x).reshape(-1)
        return out


class MixerBlock(nn.Module):
    """MLP-Mixer block: an MLP across tokens, then one across channels, each behind a norm without offset."""

    def __init__(self, tokens: int, width: int, token_hidden: int, channel_hidden: int, eps: float) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(width, eps=eps, bias=False)
        self.token_in = nn.Linear(tokens, token_hidden)
        self.token_out = nn.Linear(token_hidden, tokens)
        self.channel_norm = nn.LayerNorm(width, eps=eps, bias=False)
        self.channel_in = nn.Linear(width, channel_hidden)
        self.channel_out = nn.Linear(channel_hidden, width)

    def forward(self, x: Tensor) -> Tensor:  # [B, tokens, width]
        mixed = self.token_out(F.relu(self.token_in(self.token_norm(x).transpose(1, 2))))
        x = x + mixed.transpose(1, 2)
        return x + self.channel_out(F.relu(self.channel_in(self.channel_norm(x))))


class BlendshapeNet(nn.Module):
    """52 blendshape scores from selected landmarks, in any unit and anywhere in the image (roll is not removed).

    Args:
        points: index of each selected landmark among the 478.
        scale: factor on the normalised points.
        eps: of the layer norms.
    """

    def __init__(
        self, points: Sequence[int], tokens: int, width: int, token_hidden: int, channel_hidden: int, blocks: int,
        scale: float, eps: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.points: Tensor
        self.register_buffer("points", torch.tensor(points), persistent=False)
        self.scale = scale
        self.token_embed = nn.Linear(len(points), tokens)
        self.channel_embed = nn.Linear(2, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(
            *(MixerBlock(tokens + 1, width, token_hidden, channel_hidden, eps) for _ in range(blocks))
        )
        self.head = nn.Linear(width, 52)

    def forward(self, landmarks: Tensor) -> Tensor:  # [B, 478, 2] px
        """Scores [B, 52] in 0..1."""
        points = landmarks[:, self.points]
        points = points - points.mean(1, keepdim=True)
        points = self.scale * points / points.norm(dim=-1, keepdim=True).mean(1, keepdim=True)
        tokens = self.channel_embed(self.token_embed(points.transpose(1, 2)).transpose(1, 2))
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], 1)
        return torch.sigmoid(self.head(self.blocks(tokens)[:, 0]))


class AppearanceSignature(nn.Module):
    """What a face looks like, as a vector whose direction tells people apart a little.

    Not a face recogniser: a linear discriminant of the landmark network's own ``features_16``, averaged over a grid of
    ``cells`` x ``cells``. Pose shows in it as well.
    """

    def __init__(self, channels: int, cells: int, size: int) -> None:
        super().__init__()
        self.cells = cells
        self.mean: Tensor
        self.projection: Tensor
        self.register_buffer("mean", torch.zeros(channels * cells * cells))
        self.register_buffer("projection", torch.eye(channels * cells * cells, size))

    def pool(self, features: Tensor) -> Tensor:  # [B, channels, 16, 16]
        """Averages [B, channels * cells * cells]."""
        return F.adaptive_avg_pool2d(features, self.cells).flatten(1)

    def forward(self, features: Tensor) -> Tensor:  # [B, channels, 16, 16]
        """Signatures [B, size]."""
        return (self.pool(features) - self.mean) @ self.projection


def build_networks(config: dict[str, Any]) -> dict[str, nn.Module]:
    """``detector``, ``landmarks``, ``blendshapes`` and ``signature`` of the sizes in ``config``, without weights."""
    return {
        "detector": BlazeFace(**config["detector"]),
        "landmarks": LandmarkNet(**config["landmarks"]),
        "blendshapes": BlendshapeNet(**config["blendshapes"]),
        "signature": AppearanceSignature(**config["signature"]),
    }
