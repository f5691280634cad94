"""The 478 landmarks and iBUG-68 points of a head in any expression, carried by the model's own deformation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.inverse import PosedPoints, pose_points
from nphm_track.heads.mesh import open_mouth_code

LOWER_LIP = (
    95, 88, 178, 87, 14, 317, 402, 318, 324,  # inner rim
    96, 89, 179, 86, 15, 316, 403, 319, 325,
    77, 90, 180, 85, 16, 315, 404, 320, 307,
    146, 91, 181, 84, 17, 314, 405, 321, 375,  # outer rim
)  # fmt: skip
"""Points of the lower lip without the corners."""
INNER_LIPS = (13, 82, 81, 80, 191, 78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312)
"""The inner rim of both lips."""
RIM_PAIRS = {
    13: 0, 82: 37, 81: 39, 80: 40, 191: 185, 312: 267, 311: 269, 310: 270, 415: 409,
    14: 17, 87: 84, 178: 181, 88: 91, 95: 146, 317: 314, 402: 405, 318: 321, 324: 375,
}  # fmt: skip
"""For each point of the inner rim the one of the outer rim of the same lip beside it."""
OUTLIER = 0.004
"""Metres by which an inner rim may move otherwise than the outer one; from 1.5 times that it does not."""
BELOW_LIP = 18
"""A point of the chin just below the lower lip, whose motion is like the lip's."""

TOLERANCE = 8e-4
"""Model units (.2 mm): a tenth of what landmark detection is good for."""


class LandmarkCarrier:
    """Landmarks of one identity, ready to be posed.

    At rest the lips touch, and a point of the lower lip may be taken for one of the upper. Points are therefore started
    from a slightly open mouth, where the lower lip is told to be with the chin. A point of the inner rim that still
    ends far from where the outer rim of its lip would take it has changed lips, and goes with the outer rim instead.
    """

    @torch.no_grad()
    def __init__(self, model: NphmDecoder, z_id: Tensor, points: Sequence[int]) -> None:
        self.model, self.z_id = model, z_id
        everything = model.landmarks(z_id)
        self.count = len(points)
        points = [*points, *sorted({RIM_PAIRS[p] for p in points if p in RIM_PAIRS} - set(points))]
        place = {p: i for i, p in enumerate(points)}
        pairs = [(place[p], place[RIM_PAIRS[p]]) for p in points[: self.count] if p in RIM_PAIRS]
        self.inner, self.outer = torch.tensor(pairs, dtype=torch.long, device=z_id.device).view(-1, 2).unbind(1)
        self.canonical = everything[points]
        self.origin: tuple[Tensor, Tensor] | None = None
        code = open_mouth_code(model)
        if code is None:
            return
        opened = pose_points(model, everything, z_id, code)
        guess = opened.points.clone()
        lower = list(LOWER_LIP)
        guess[lower] = everything[lower] + (opened.points - everything)[BELOW_LIP]
        start = PosedPoints(guess, _identities(guess), opened.residual)
        opened = pose_points(model, everything, z_id, code, warm=start)
        self.origin = opened.points[points], code

    @torch.no_grad()
    def __call__(self, z_ex: Tensor) -> Tensor:
        """Points [B, N, 3], metres, head space, for expressions z_ex [B, D_ex]."""
        b = len(z_ex)
        canonical = self.canonical.expand(b, -1, -1)
        posed = pose_points(
            self.model, canonical, self.z_id.expand(b, -1), z_ex, origin=self.origin, tolerance=TOLERANCE, cold_steps=2
        )
        return self._on_own_lips(posed.points)[:, : self.count] * MODEL_UNIT

    def _on_own_lips(self, posed: Tensor) -> Tensor:
        """Points [B, N, 3] (model units) with those of the inner rim that changed lips put back."""
        if self.origin is None:
            return posed
        moved = posed - self.origin[0]
        along = moved[:, self.outer]
        own = moved[:, self.inner] - along
        far = own.norm(dim=-1, keepdim=True) * MODEL_UNIT / OUTLIER
        return posed.index_copy(1, self.inner, self.origin[0][self.inner] + along + own * (3 - 2 * far).clamp(0, 1))


def _identities(points: Tensor) -> Tensor:
    return torch.eye(3, dtype=points.dtype, device=points.device).expand(*points.shape, 3)
