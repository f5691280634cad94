"""What the linear shapes of a rig miss of the network's own deformation, as a few directions of motion.

Shapes add up; the network's expressions do so nearly. What is missing in frames of a person that were inverted exactly
(``heads.inverse``) spans a small space: its principal directions are the correctives. In other frames their weights are
found at ``PROBES`` vertices that are inverted exactly, whose remaining error tells whether the directions are enough;
where they are not, the whole skin is inverted. A person's correctives serve further takes, which add what they lack.
Lips, lids, ears and what else the network's surface is no witness of keep the motion of the shapes. Lengths are metres,
head space.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import qr
from torch import Tensor

from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.inverse import PosedPoints, pose_points
from nphm_track.heads.rig import Rig
from nphm_track.heads.wrap import SkinField

Array = NDArray[np.float32]
FRAMES, DIRECTIONS, MOST_DIRECTIONS = 32, 28, 56
"""Frames that are inverted to learn from, those most unlike each other, directions that they give, and directions that
a person has at most, of all takes."""
PROBES = 128
ALONG_SKIN = 0.012
"""Metres from the edges of lids and lips within which shapes alone move the skin."""
TOLERANCE, CONVERGED = 1e-4, 1e-3
"""Of inverting, model units, and the residual above which a point was not found: it keeps the motion of the shapes."""
ENOUGH_MEAN, ENOUGH_MOST = 0.00007, 0.0003
"""Metres that the probes may be off, in the mean and at most, before the whole skin is inverted."""


@dataclass(frozen=True)
class Correctives:
    """Directions of motion beside a person's shapes.

    Attributes:
        index: [N] vertices of the skin that the network's deformation moves.
        basis: [K, N, 3] orthonormal displacements of them.
        probes: [P] places in ``index`` at which weights are found.
    """

    index: NDArray[np.int64]
    basis: Array
    probes: NDArray[np.int64]

    @cached_property
    def solver(self) -> Array:
        """[3 P, K] by which displacements at the probes give weights, in the sense of least squares."""
        at_probes = self.basis[:, self.probes].reshape(len(self.basis), -1).astype(np.float64)
        return np.linalg.pinv(at_probes).astype(np.float32)

    @classmethod
    def none(cls, index: NDArray[np.int64]) -> Correctives:
        """No direction yet."""
        return cls(index, np.empty((0, len(index), 3), np.float32), np.empty(0, np.int64))

    def extended(self, missing: Array) -> Correctives:
        """With directions for what shapes miss in further frames, ``missing`` [F, N, 3]."""
        n = 3 * len(self.index)
        flat, own = missing.reshape(-1, n), self.basis.reshape(-1, n)
        more = min(DIRECTIONS, MOST_DIRECTIONS - len(own))
        basis = np.concatenate([own, np.linalg.svd(flat - flat @ own.T @ own, full_matrices=False)[2][:more]])
        # Those that tell the directions apart best (Q-DEIM, Drmac and Gugercin 2016), the others spread over the skin.
        telling = np.unique(qr(basis, mode="r", pivoting=True)[1][: 2 * len(basis)] // 3)
        others = np.linspace(0, len(self.index) - 1, PROBES - len(telling)).astype(np.int64)
        return Correctives(self.index, basis.reshape(len(basis), -1, 3), np.union1d(telling, others))


class CorrectedFrames:
    """Displacements of the skin beside a rig's shapes, for codes of one person.

    Args:
        rig: the person's.
        z_id: [D_id] the person's code.
        z_ex: [T, D_ex] codes of frames.
        weights: [T, K] the rig's weights of them.
        known: what earlier takes of the person gave.
    """

    def __init__(
        self,
        model: NphmDecoder,
        rig: Rig,
        z_id: Tensor,
        z_ex: Tensor,
        weights: Array,
        known: Correctives | None = None,
    ) -> None:
        self.model, self.rig, self.z_id, self.z_ex, self.weights = model, rig, z_id, z_ex, weights
        self.correctives = known or Correctives.none(rig.template.clear_skin(ALONG_SKIN))

    def learn(self, rows: NDArray[np.int64]) -> None:
        """Add directions for those of frames ``rows`` [R], which have a head, that the known ones do not do for.

        To be called before any frame is asked for.
        """
        c = self.correctives
        chosen = rows[farthest(self.z_ex[rows].cpu().numpy(), FRAMES)]
        if len(c.basis):
            chosen = chosen[self._weights(chosen)[1]]
        if len(chosen) and len(c.basis) < MOST_DIRECTIONS:
            self.correctives = c.extended(np.stack([self._missing(int(row)) for row in chosen]))

    @cached_property
    def field(self) -> SkinField:
        """Spreads what is known at the correctives' vertices over the skin: to nothing at lids, lips and ears."""
        t, own = self.rig.template, self.correctives.index
        still = np.flatnonzero(t.trust == 0)
        x = self.rig.neutral[: t.skin_size].astype(np.float64)
        known = np.concatenate([own, still])
        return SkinField(t, x, known, np.ones(len(known)))

    @cached_property
    def spread(self) -> Array:
        """[K, S, 3] the correctives over the whole skin."""
        return np.stack([self._spread_out(direction) for direction in self.correctives.basis])

    def __call__(self, rows: NDArray[np.int64]) -> Array:
        """Displacements [R, S, 3] in frames ``rows`` [R]."""
        found, lacking = self._weights(rows)
        out = np.tensordot(found, self.spread, 1)
        for i in np.flatnonzero(lacking):
            out[i] = self._spread_out(self._missing(int(rows[i])))
        return out

    def _weights(self, rows: NDArray[np.int64]) -> tuple[Array, NDArray[np.bool_]]:
        """Weights [R, K] of the correctives in frames ``rows`` [R], and whether a frame needs more than those [R]."""
        c = self.correctives
        at_probes = self._missing_in_all(rows, c.probes)
        found = at_probes.reshape(len(rows), -1) @ c.solver
        left = np.linalg.norm(at_probes - np.tensordot(found, c.basis[:, c.probes], 1), axis=2)
        return found, (left.mean(1) > ENOUGH_MEAN) | (left.max(1) > ENOUGH_MOST)

    def _spread_out(self, displacements: Array) -> Array:
        own = self.correctives.index
        still = np.zeros((len(self.field.index) - len(own), 3))
        out = self.field.fit(np.concatenate([displacements, still])).astype(np.float32)
        out[own] = displacements
        return out

    @cached_property
    def _shapes(self) -> Array:
        """[K, N, 3] of the rig, at the correctives' vertices."""
        return np.ascontiguousarray(self.rig.shapes[:, self.correctives.index])

    def _missing(self, row: int) -> Array:
        return self._missing_in_all(np.array([row]))[0]

    def _missing_in_all(self, rows: NDArray[np.int64], places: NDArray[np.int64] | None = None) -> Array:
        """Displacements [R, N, 3] from where the shapes put vertices to the network's own place.

        Of the correctives' vertices, or those at ``places`` among them.
        """
        index, shapes = self.correctives.index, self._shapes
        if places is not None:
            index, shapes = index[places], shapes[:, places]
        device, rest = self.z_ex.device, self.rig.neutral[index]
        linear = rest + (self.weights[rows] @ shapes.reshape(len(shapes), -1)).reshape(len(rows), -1, 3)
        canonical = torch.from_numpy(rest / MODEL_UNIT).to(device)
        start = torch.from_numpy(linear / np.float32(MODEL_UNIT)).to(device)
        codes, z_id = self.z_ex[rows], self.z_id
        if len(rows) == 1:
            start, codes = start[0], codes[0]
        else:
            canonical, z_id = canonical.expand(len(rows), -1, 3), z_id.expand(len(rows), -1)
        warm = PosedPoints(start, torch.eye(3, device=device).expand(*start.shape, 3), torch.zeros_like(start[..., 0]))
        posed = pose_points(self.model, canonical, z_id, codes, warm=warm, tolerance=TOLERANCE)
        there = (posed.points - start) * MODEL_UNIT * (posed.residual <= CONVERGED).unsqueeze(-1)
        return there.reshape(len(rows), len(index), 3).cpu().numpy()


def farthest(codes: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Places, ascending, of so many rows of codes [N, D] that lie far from each other, the first being the longest."""
    away = np.full(len(codes), np.inf)
    chosen = [int(np.linalg.norm(codes, axis=1).argmax())]
    while len(chosen) < min(count, len(codes)):
        away = np.minimum(away, np.linalg.norm(codes - codes[chosen[-1]], axis=1))
        chosen.append(int(away.argmax()))
    return np.sort(np.array(chosen))
