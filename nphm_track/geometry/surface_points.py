"""Where the surface lies: points of the template in a face crop, each with its covariance.

The points start where the landmarks put them and are moved by what the pixels around them show, twice. After Wood et
al. 2022 (arXiv 2204.02776), dense landmarks with an uncertainty each; here every point also has a depth.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nphm_track.faces.roi import CROP_SIZE
from nphm_track.geometry.networks import TRUNK, Residual
from nphm_track.models import load_network

STEP = 4.0
"""Pixels that an output of 1 moves a point, and its first standard deviation."""


class SurfacePoints(NamedTuple):
    """N points of the template in B crops; pixels of the crop (256 a side, centres at 0.5).

    The covariance of a position is ``(L.T L)^-1`` with ``L = [[exp(p), 0], [q, exp(r)]]`` and ``precision`` = p, q, r.
    Depth is measured from the mean depth of all points, scaled like x and y (pixels), positive away from the camera.
    """

    xy: Tensor
    """[B, N, 2] px."""
    precision: Tensor
    """[B, N, 3] logarithms (p, r) and value (q) of the factor of the inverse covariance, 1 / px."""
    depth: Tensor
    """[B, N] px."""
    depth_sigma: Tensor
    """[B, N] px, standard deviation of ``depth``."""

    def factor(self) -> Tensor:
        """L [B, N, 2, 2] of the inverse covariance ``L.T L``."""
        p, q, r = self.precision.unbind(-1)
        return torch.stack([torch.stack([p.exp(), torch.zeros_like(p)], -1), torch.stack([q, r.exp()], -1)], -2)


@dataclass(frozen=True)
class SurfacePointsConfig:
    """Sizes of the network."""

    points: int
    components: int = 64  # of the landmarks, that points start from
    fine: int = 32  # channels at 64 pixels
    coarse: int = 64  # at 32 pixels and coarser
    blocks: tuple[int, int] = (1, 2)  # residual blocks at 64 and 32 pixels
    width: int = 96  # of a point's state
    slots: int = 48  # through which points tell each other
    looks: int = 2

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SurfacePointsConfig:
        return cls(**{**values, "blocks": tuple(values["blocks"])})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Pyramid(nn.Module):
    """Maps {64: [B, fine, 64, 64], 32: [B, coarse, 32, 32]} of the crop's own pixels and the landmark network's trunk.

    What the coarse maps know reaches the fine ones.
    """

    def __init__(self, c: SurfacePointsConfig) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3 * 16, c.fine, 3, padding=1)
        self.known = nn.ModuleDict({str(s): nn.Conv2d(n, c.coarse if s < 64 else c.fine, 1) for s, n in TRUNK.items()})
        self.fine = nn.Sequential(*(Residual(c.fine) for _ in range(c.blocks[0])))
        self.down = nn.Conv2d(c.fine, c.coarse, 2, 2)
        self.coarse = nn.Sequential(*(Residual(c.coarse) for _ in range(c.blocks[1])))
        self.up = nn.Conv2d(c.coarse, c.fine, 1)

    def forward(self, crop: Tensor, trunk: dict[int, Tensor]) -> dict[int, Tensor]:
        known = {s: self.known[str(s)](x) for s, x in trunk.items()}
        fine = self.fine(self.patch(F.pixel_unshuffle(crop - 0.5, 4)) + known[64])
        far = known[4]
        for size in (8, 16, 32):
            far = F.interpolate(far, size=(size, size), mode="bilinear") + known[size]
        coarse = self.coarse(self.down(fine) + far)
        return {64: fine + F.interpolate(self.up(coarse), size=(64, 64), mode="bilinear"), 32: coarse}


class Mixer(nn.Module):
    """A point's state changes by what all points say, gathered in a few slots, and by its own."""

    def __init__(self, c: SurfacePointsConfig) -> None:
        super().__init__()
        self.gather = nn.Parameter(torch.randn(c.slots, c.points) * c.points**-0.5)
        self.scatter = nn.Parameter(torch.zeros(c.points, c.slots))
        self.norm, self.own_norm = nn.LayerNorm(c.width), nn.LayerNorm(c.width)
        self.together = nn.Sequential(nn.Linear(c.width, 2 * c.width), nn.GELU(), nn.Linear(2 * c.width, c.width))
        self.own = nn.Sequential(nn.Linear(c.width, c.width), nn.GELU(), nn.Linear(c.width, c.width))

    def forward(self, x: Tensor) -> Tensor:
        slots = self.gather @ self.norm(x)
        x = x + self.scatter @ (slots + self.together(slots))
        return x + cast("Tensor", self.own(self.own_norm(x)))


class SurfacePointNet(nn.Module):
    """Template points of a face from its crop, the landmark network's maps of it and its 478 landmarks.

    Buffers: ``vertex`` [N] ICT-FaceKit's vertices, ``mean`` [N, 3] their places on its mean head (metres, head space),
    ``mirror`` [N] the point on the other side of the face.
    """

    vertex: Tensor
    mean: Tensor
    mirror: Tensor
    landmark_mean: Tensor
    landmark_axes: Tensor

    def __init__(self, config: SurfacePointsConfig) -> None:
        super().__init__()
        self.config = c = config
        self.register_buffer("vertex", torch.zeros(c.points, dtype=torch.int32))
        self.register_buffer("mirror", torch.zeros(c.points, dtype=torch.int32))
        self.register_buffer("mean", torch.zeros(c.points, 3))
        self.register_buffer("landmark_mean", torch.zeros(478 * 3))
        self.register_buffer("landmark_axes", torch.zeros(c.components, 478 * 3))
        for size, channels in TRUNK.items():  # trunk maps are standardised channel by channel
            self.register_buffer(f"trunk_mean_{size}", torch.zeros(channels))
            self.register_buffer(f"trunk_spread_{size}", torch.ones(channels))
        self.start = nn.Linear(c.components, 3 * c.points)
        self.pyramid = Pyramid(c)
        self.embedding = nn.Parameter(torch.randn(c.points, c.width) * 0.5)
        self.look = nn.Linear(c.fine + c.coarse + 3, c.width)
        self.mixers = nn.ModuleList(Mixer(c) for _ in range(2))
        self.norm = nn.LayerNorm(c.width)
        self.move = nn.Linear(c.width, 7)
        nn.init.zeros_(self.move.weight)
        nn.init.zeros_(cast("Tensor", self.move.bias))

    def starts(self, landmarks: Tensor) -> Tensor:
        """Positions and depths [B, N, 3] (px) that landmarks [B, 478, 3] (crop px) say by themselves."""
        code = (landmarks.flatten(1) - self.landmark_mean) @ self.landmark_axes.T
        return self.start(code.float()).unflatten(1, (-1, 3)) * STEP

    def forward(self, crop: Tensor, features: dict[int, Tensor], landmarks: Tensor) -> list[SurfacePoints]:
        """The points after each look; the last one is the result.

        crop [B, 3, 256, 256] in 0..1, features: the trunk's maps of it by size, landmarks [B, 478, 3] crop px.
        """
        trunk = {
            s: (x - getattr(self, f"trunk_mean_{s}")[:, None, None]) / getattr(self, f"trunk_spread_{s}")[:, None, None]
            for s, x in features.items()
        }
        maps = self.pyramid(crop, trunk)
        place = self.starts(landmarks).float()
        state = self.embedding.expand(len(crop), -1, -1)
        out = []
        for _ in range(self.config.looks):
            grid = (place[..., :2] / (CROP_SIZE / 2) - 1).detach()[:, :, None]
            seen = [F.grid_sample(m.float(), grid, align_corners=False)[..., 0].mT for m in maps.values()]
            state = state + self.look(torch.cat([*seen, place.detach() / CROP_SIZE], -1))
            for mixer in self.mixers:
                state = mixer(state)
            change = self.move(self.norm(state)).float()
            place = place + STEP * change[..., :3]
            out.append(self._result(place, change[..., 3:]))
            place = place.detach()  # each look answers for its own step
        return out

    @staticmethod
    def _result(place: Tensor, spread: Tensor) -> SurfacePoints:
        first = -torch.tensor(STEP, device=place.device).log()
        p, q, r, d = spread.unbind(-1)
        precision = torch.stack([(p + first).clamp(-6, 3), q / STEP, (r + first).clamp(-6, 3)], -1)
        return SurfacePoints(place[..., :2], precision, place[..., 2], (-(d + first).clamp(-6, 3)).exp())

    @classmethod
    def from_pretrained(cls, name_or_path: str, *, device: torch.device | str = "cpu") -> SurfacePointNet:
        """A trained network. Raises ModelError when the file is missing, damaged or of another kind."""
        return load_network(
            name_or_path,
            "surface-points",
            "a network of surface points",
            lambda config, _: cls(SurfacePointsConfig.from_dict(config["points"])),
            device,
        )


def mahalanobis(out: SurfacePoints, xy: Tensor) -> Tensor:
    """Squared error [B, N] of positions against true ones xy [B, N, 2], in units of the covariance (2 expected)."""
    p, q, r = out.precision.unbind(-1)
    x, y = (xy - out.xy).unbind(-1)
    return (p.exp() * x).square() + (q * x + r.exp() * y).square()
