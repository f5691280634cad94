"""The 478 landmarks and iBUG-68 points of a head in any expression, carried by the model's own deformation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nphm_track.conventions import LIP_RIMS, LOWER_LIP, MODEL_UNIT
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.inverse import PosedPoints, pose_points
from nphm_track.heads.mesh import open_mouth_code

RIM_PAIRS = {
    13: 0, 82: 37, 81: 39, 80: 40, 191: 185, 312: 267, 311: 269, 310: 270, 415: 409,
    14: 17, 87: 84, 178: 181, 88: 91, 95: 146, 317: 314, 402: 405, 318: 321, 324: 375,
}  # fmt: skip
"""For each point of the inner rim the one of the outer rim of the same lip beside it."""
OUTLIER = 0.0015
"""Metres by which a point of an inner rim may move otherwise than its neighbours; from 1.5 times that it does not."""
OPEN_MOUTH = {"jawOpen": 0.4, "mouthSmile_L": 0.6, "mouthSmile_R": 0.6}
"""ARKit weights of the mouth that points are started from: opened by the jaw, the lower lip goes with the chin."""
BELOW_LIP = 18
"""A point of the chin just below the lower lip, whose motion is like the lip's."""

TOLERANCE = 8e-4
"""Model units (0.2 mm): a tenth of what landmark detection is good for."""


class LandmarkCarrier:
    """Landmarks of one identity, ready to be posed.

    At rest the lips touch, and a point of the lower lip may be taken for one of the upper. Points are therefore started
    from a slightly open mouth, where the lower lip is told to be with the chin. A point of the inner rim that still
    moves otherwise than its neighbours on the rim, each seen from the outer rim beside it, has changed lips and goes
    with them instead.
    """

    @torch.no_grad()
    def __init__(self, model: NphmDecoder, z_id: Tensor, points: Sequence[int]) -> None:
        self.model, self.z_id = model, z_id
        everything = model.landmarks(z_id)
        self.count = len(points)
        rims = [p for rim in LIP_RIMS for p in rim]
        points = [*points, *sorted({*rims, *(RIM_PAIRS[p] for p in rims)} - set(points))]
        place = {p: i for i, p in enumerate(points)}
        self.inner = torch.tensor([place[p] for p in rims], device=z_id.device)
        self.outer = torch.tensor([place[RIM_PAIRS[p]] for p in rims], device=z_id.device)
        self.canonical = everything[points]
        self.origin: tuple[Tensor, Tensor] | None = None
        code = open_mouth_code(model, OPEN_MOUTH)
        if code is None:
            return
        opened = pose_points(model, everything, z_id, code)
        guess = opened.points.clone()
        lower = list(LOWER_LIP)
        guess[lower] = everything[lower] + (opened.points - everything)[BELOW_LIP]
        start = PosedPoints(guess, _identities(guess), opened.residual)
        opened = pose_points(model, everything, z_id, code, warm=start)
        self.origin = self._on_own_lips(self.canonical, opened.points[points]), code

    @torch.no_grad()
    def __call__(self, z_ex: Tensor) -> Tensor:
        """Points [B, N, 3], metres, head space, for expressions z_ex [B, D_ex]."""
        b = len(z_ex)
        canonical = self.canonical.expand(b, -1, -1)
        posed = pose_points(
            self.model, canonical, self.z_id.expand(b, -1), z_ex, origin=self.origin, tolerance=TOLERANCE, cold_steps=2
        )
        own = posed.points if self.origin is None else self._on_own_lips(self.origin[0], posed.points)
        return own[:, : self.count] * MODEL_UNIT

    def put_back(self, points: Tensor) -> Tensor:
        """The points [B, N, 3], metres, found in another way than by a call, with those on the wrong lip put back.

        Both rims must be among them. Without an open mouth to compare with they are returned as they are.
        """
        if self.origin is None:
            return points
        return self._on_own_lips(self.origin[0], points / MODEL_UNIT) * MODEL_UNIT

    def _on_own_lips(self, start: Tensor, points: Tensor) -> Tensor:
        """Points [..., N, 3] (model units), moved from ``start`` [N, 3], with those that changed lips put back."""
        moved = points - start
        along = moved[..., self.outer, :]
        own = (moved[..., self.inner, :] - along).unflatten(-2, (len(LIP_RIMS), -1))
        rim = torch.cat([own[..., 1:3, :].flip(-2), own, own[..., -3:-1, :].flip(-2)], -2)
        around = rim.unfold(-2, 5, 1).median(-1).values
        far = (own - around).norm(dim=-1, keepdim=True) * MODEL_UNIT / OUTLIER
        kept = around + (own - around) * (3 - 2 * far).clamp(0, 1)
        return points.index_copy(-2, self.inner, start[self.inner] + along + kept.flatten(-3, -2))


def _identities(points: Tensor) -> Tensor:
    return torch.eye(3, dtype=points.dtype, device=points.device).expand(*points.shape, 3)
