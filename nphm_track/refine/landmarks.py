"""The head's landmarks with exact derivatives by codes: those that a refinement compares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nphm_track.conventions import IBUG68_FROM_478, LIDS, LIPS, MODEL_UNIT
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.landmarks import LandmarkCarrier
from nphm_track.refine.codes import CodeSpace
from nphm_track.refine.network import PointDecoder
from nphm_track.refine.surface import MAX_CORRECTION

CHEEKS = (50, 280, 205, 425, 101, 330, 36, 266, 117, 346, 111, 340, 104, 333, 69, 299, 151, 9, 6, 195, 199, 200, 18)
POINTS = tuple(dict.fromkeys(IBUG68_FROM_478[17:] + LIDS + LIPS + CHEEKS))
"""Points of the landmark mesh compared; the outline is left out, it slides along the silhouette as the head turns."""


@dataclass(frozen=True)
class LandmarkRows:
    """Landmarks [B, L, 3] (metres, head space) and their derivative by the code weights [B, L, 3, C], laid out as in
    ``surface.SeenRows``."""

    points: Tensor
    by_code: Tensor


class Landmarks:
    """The landmarks of one head in any expression."""

    def __init__(self, model: NphmDecoder, space: CodeSpace, points: tuple[int, ...] = POINTS) -> None:
        """``points``: the L landmarks wanted, those of ``POINTS`` first."""
        self.model, self.space, self.points = model, space, points
        self.decoder = PointDecoder(model)
        self._carrier: LandmarkCarrier | None = None

    def carry(self, z_id: Tensor, z_ex: Tensor) -> Tensor:
        """Landmarks [B, L, 3], metres, head space, for z_id [D_id] and z_ex [B, D_ex]."""
        if self._carrier is None or self._carrier.z_id is not z_id:
            self._carrier = LandmarkCarrier(self.model, z_id, self.points)
        return torch.cat([self._carrier(part) for part in z_ex.split(64)])

    def ahead(self, rows: LandmarkRows, code: Tensor) -> Tensor:
        """Landmarks [B, L, 3] where ``rows`` predict them after a step of the code weights [B, C].

        Where lips touch, two points of the skin fit. Solved for afresh, a landmark takes one or the other by the last
        bits of a code, and the objective jumps with it; followed, it stays, and is put back when it drifts.
        """
        predicted = rows.points + (rows.by_code @ code[:, None, :, None])[..., 0]
        return predicted if self._carrier is None else self._carrier.put_back(predicted)

    @torch.enable_grad()
    def linearise(self, start: Tensor, z_id: Tensor, z_ex: Tensor, *, identity: bool) -> LandmarkRows:
        """One Newton step from ``start`` [B, L, 3] (metres) to the landmarks, and their derivatives.

        x + offset(x; z) = canonical(z_id), so dx = (I + d offset/dx)^-1 (d canonical - d offset/dz dz).
        """
        B, L = start.shape[:2]
        x = (start / MODEL_UNIT).reshape(-1, 3).detach().requires_grad_(True)
        z = z_ex.repeat_interleave(L, 0).detach().requires_grad_(True)
        leaves, bases = [z], [self.space.expression]
        compressed = slice(self.model.config.compressed_dim)  # all that the deformation knows of the person
        person = self.decoder.identity_parts(z_id)[compressed].detach()
        if identity:
            person = person.expand(B * L, -1).clone().requires_grad_(True)
            basis = self.decoder.identity_parts_by(z_id, self.space.identity)[compressed]
            leaves, bases = [person, z], [basis, self.space.expression]
        back = x + self.decoder.offsets(x, person, z)[:, :3]
        rows = [torch.autograd.grad(back[..., i].sum(), [x, *leaves], retain_graph=i < 2) for i in range(3)]
        with torch.no_grad():
            jacobian = torch.stack([row[0] for row in rows], 1)  # [B L, 3, 3]
            jacobian = jacobian + 1e-6 * torch.eye(3, dtype=x.dtype, device=x.device)
            canonical = self.model.landmarks(z_id)[list(self.points)].repeat(B, 1)
            code = [-torch.stack([row[k + 1] for row in rows], 1) @ basis for k, basis in enumerate(bases)]
            if identity:
                code[0] += self._canonical_by_identity().repeat(B, 1, 1)
            right = torch.cat([*code, (canonical - back)[..., None]], -1)
            # One product instead of a solve: LAPACK takes its time over hundreds of right-hand sides of a 3 x 3.
            solved = torch.linalg.inv(jacobian) @ right * MODEL_UNIT
            step = solved[..., -1]
            step = step * (MAX_CORRECTION / step.norm(dim=-1, keepdim=True).clamp_min(MAX_CORRECTION))
            points = start.reshape(-1, 3) + step
        return LandmarkRows(points.view(B, L, 3), solved[..., :-1].view(B, L, 3, -1))

    def _canonical_by_identity(self) -> Tensor:
        """[L, 3, k]: the landmarks of the canonical head are linear in the code."""
        zero = torch.zeros_like(self.space.identity[:, 0])
        moved = self.model.landmarks(self.space.identity.mT) - self.model.landmarks(zero)
        return moved[:, list(self.points)].permute(1, 2, 0)
