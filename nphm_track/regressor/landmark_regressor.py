"""From the landmarks of a frame to NPHM codes: classifier tokens of a small transformer (Pix2NPHM, section 3.3).

The tokens of the image encoders are replaced by landmark tokens: the 478 points, grouped by place, and the blendshape
scores.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nphm_track.conventions import N_LANDMARKS, OUTER_EYE_CORNERS
from nphm_track.models import load_network
from nphm_track.transformer import Block, through


@dataclass(frozen=True)
class RegressorConfig:
    """Sizes; ``groups`` lists for every landmark token the points it sees (padded by repetition to equal length)."""

    global_dim: int
    local_dim: int
    n_members: int
    expression_dim: int
    groups: tuple[tuple[int, ...], ...]
    width: int = 128
    layers: int = 3
    heads: int = 4
    n_scores: int = 52

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RegressorConfig:
        return cls(**{**values, "groups": tuple(tuple(g) for g in values["groups"])})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def normalise_landmarks(landmarks: Tensor, image_size: Tensor) -> tuple[Tensor, Tensor]:
    """Landmarks [B, 478, 3] px and image sizes [B, 2] px -> points without place, size and roll, and a camera vector.

    Points [B, 478, 3]: x along the outer eye corners, y down the face, origin between the eyes and the mouth,
    unit = RMS radius of the points; z in the same unit, without its mean. Camera [B, 6]: place in the image, size and
    roll of the face.
    """
    xy = landmarks[..., :2]
    centre = xy.mean(1, keepdim=True)
    radius = (xy - centre).square().sum(-1).mean(1).sqrt().clamp_min(1e-6)  # [B]
    right, left = OUTER_EYE_CORNERS
    along = F.normalize(xy[:, left] - xy[:, right], dim=-1)
    turn = torch.stack([along, torch.stack([-along[:, 1], along[:, 0]], -1)], 1)  # rows: face axes in the image
    points = torch.cat(
        [(xy - centre) @ turn.transpose(-1, -2), landmarks[..., 2:] - landmarks[..., 2:].mean(1, keepdim=True)], -1
    )
    longest = image_size.amax(-1, keepdim=True)
    place = (centre[:, 0] - image_size / 2) / longest
    radius = radius[:, None]
    camera = torch.cat([place, radius / longest, along, torch.ones_like(radius)], -1)
    return points / radius[..., None], camera


class LandmarkRegressor(nn.Module):
    """Landmarks and scores of B frames -> identity codes [B, D_id], expression codes [B, D_ex] (model units)."""

    groups: Tensor
    recompute = False
    """Gradient checkpointing: activations of a layer are made again in the backward pass."""
    mean_points: Tensor
    spread_points: Tensor
    mean_id: Tensor
    spread_id: Tensor
    spread_ex: Tensor

    def __init__(self, config: RegressorConfig) -> None:
        super().__init__()
        self.config = c = config
        size = len(c.groups[0])
        self.register_buffer("groups", torch.tensor(c.groups), persistent=False)  # [G, size]
        self.point_weight = nn.Parameter(torch.randn(len(c.groups), size * 3, c.width) * 0.3 / (size * 3) ** 0.5)
        self.point_bias = nn.Parameter(torch.randn(len(c.groups), c.width) * 0.02)
        self.register_buffer("mean_points", torch.zeros(N_LANDMARKS, 3))
        self.register_buffer("spread_points", torch.ones(N_LANDMARKS, 3))
        self.scores = nn.Sequential(nn.Linear(c.n_scores, c.width), nn.GELU(), nn.Linear(c.width, c.width))
        self.camera = nn.Linear(6, c.width)
        # expression, then locals, then global
        self.classifiers = nn.Parameter(torch.randn(c.n_members + 1, c.width) * 0.02)
        self.blocks = nn.ModuleList(Block(c.width, c.heads) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width)
        self.to_expression = head(c.width, c.expression_dim)
        self.to_local = head(c.width, c.local_dim)
        self.to_global = head(c.width, c.global_dim + c.local_dim)
        n_id = c.global_dim + c.n_members * c.local_dim
        self.register_buffer("mean_id", torch.zeros(n_id))
        self.register_buffer("spread_id", torch.ones(n_id))
        self.register_buffer("spread_ex", torch.ones(c.expression_dim))

    def forward(self, landmarks: Tensor, scores: Tensor, image_size: Tensor) -> tuple[Tensor, Tensor]:
        """landmarks [B, 478, 3] px, scores [B, 52], image_size [B, 2] px (w, h)."""
        return self.codes(self.read_out(self.tokens(landmarks, scores, image_size)))

    def tokens(self, landmarks: Tensor, scores: Tensor, image_size: Tensor) -> Tensor:
        """Landmark, score and camera tokens [B, G + 2, width]."""
        with torch.autocast(landmarks.device.type, enabled=False):  # pixels need more than half precision
            points, camera = normalise_landmarks(landmarks, image_size)
        points = (points - self.mean_points) / self.spread_points
        grouped = points[:, self.groups].flatten(2)  # [B, G, size * 3]
        tokens = torch.einsum("bgi,gio->bgo", grouped, self.point_weight) + self.point_bias
        return torch.cat([tokens, self.scores(scores)[:, None], self.camera(camera)[:, None]], 1)

    def read_out(self, tokens: Tensor) -> Tensor:
        """Classifier tokens [B, members + 1, width] after the transformer: expression, locals, global."""
        x = torch.cat([self.classifiers.expand(len(tokens), -1, -1), tokens], 1)
        x = through(self.blocks, x, self.recompute and self.training)
        out: Tensor = self.norm(x[:, : self.config.n_members + 1])
        return out

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Identity codes [B, D_id] and expression codes [B, D_ex] from classifier tokens."""
        z_ex = self.to_expression(x[:, 0]) * self.spread_ex
        whole = self.to_global(x[:, -1])  # the global token also carries the anchor-less member
        glob, free = whole.split([self.config.global_dim, self.config.local_dim], -1)
        z_id = torch.cat([glob, self.to_local(x[:, 1:-1]).flatten(1), free], -1)
        return self.mean_id + z_id * self.spread_id, z_ex

    @classmethod
    def from_pretrained(
        cls, name_or_path: str = "landmark-regressor", *, device: torch.device | str = "cpu"
    ) -> LandmarkRegressor:
        """The released regressor. Raises ModelError when the file is missing, damaged or of another kind."""
        return load_network(
            name_or_path,
            "landmark-regressor",
            "a landmark regressor",
            lambda config, _: cls(RegressorConfig.from_dict(config["regressor"])),
            device,
        )


def group_landmarks(points: Tensor, groups: int = 24) -> tuple[tuple[int, ...], ...]:
    """Split landmark positions [478, 3] into compact groups (farthest-point centres), repeated up to one length."""
    centres = [int(points[:, 2].argmax())]
    distance = (points - points[centres[0]]).norm(dim=-1)
    while len(centres) < groups:
        centres.append(int(distance.argmax()))
        distance = torch.minimum(distance, (points - points[centres[-1]]).norm(dim=-1))
    owner = torch.cdist(points, points[centres]).argmin(1)
    members = [torch.nonzero(owner == g).flatten().tolist() for g in range(groups)]
    longest = max(map(len, members))
    return tuple(tuple((m * longest)[:longest]) for m in members)


def head(width: int, out: int) -> nn.Sequential:
    """Read-out of a token: a small MLP."""
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))
