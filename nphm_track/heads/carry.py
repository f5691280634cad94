"""Carrying a canonical mesh to expressions: the skin by warm starts, the lips along with the skin around them.

Every vertex that is solved costs a network evaluation, and skin moves smoothly. So coarse vertices, one every 8 mm, are
solved in every frame, then those vertices of a finer level that did not go with the coarse ones before, then those of
the mesh that did not go with that level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track.conventions import INNER_LIPS, MODEL_UNIT
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.inverse import PosedPoints, pose_points
from nphm_track.heads.lips import LipZone
from nphm_track.heads.mesh import CanonicalMesh, open_mouth_code

TOLERANCE = 2e-4
"""Model units (0.05 mm)."""
CELLS, LEADERS = (0.008, 0.004), 6
"""Metres of a cell of space with one vertex of a level in it, and how many vertices of a level lead one of the next."""
WARM_START = 0.4
"""Change of the expression code between frames beyond which one says too little of the other: a quarter of a full ARKit
expression of nphm-small."""
CODE_STALENESS, LEAST_SENSITIVITY = 1e-4, 0.02
"""A change of the code by 1 counts as this motion of a coarse vertex; a vertex is never taken to be surer than this."""


@dataclass(frozen=True)
class Carried:
    """A mesh in one expression, with what the next frame needs (model units).

    Attributes:
        posed: the vertices [V, 3] and how well they were solved when last solved.
        z_ex: [D_ex] the expression.
        sensitivity: [V] how far a vertex was from where it was expected, when last solved, a unit of ``staleness``.
        staleness: [V] how far the coarse vertex near it has moved since.
    """

    posed: PosedPoints
    z_ex: Tensor
    sensitivity: Tensor
    staleness: Tensor


class MeshCarrier:
    """The vertices of one person's mesh, posed; expressions that follow each other in time are cheapest.

    From frame to frame a vertex is expected where the motion of the level above takes it, and solved only when, by
    how far off it was before, it may be off by half of ``TOLERANCE``: skull, ears and neck rest most of the time.

    Where the lips touch, the deformation folds both onto one canonical place, and a vertex there may end on the other
    lip. Such vertices are started from where they were with the mouth open, moved along with the skin around the lips
    (harmonically), and one that is still solved far from there follows its neighbours.
    """

    @torch.no_grad()
    def __init__(self, model: NphmDecoder, mesh: CanonicalMesh, z_id: Tensor) -> None:
        self.model, self.z_id = model, z_id
        self.canonical = _tensor(mesh.vertices, z_id)
        self.opened: Tensor | None = None
        code = open_mouth_code(model)
        skin = np.arange(len(mesh.vertices))
        if mesh.open_vertices is not None and code is not None:
            self.opened, self.code = _tensor(mesh.open_vertices, z_id), code
            rim = (model.landmarks(z_id)[list(INNER_LIPS)] * MODEL_UNIT).cpu().numpy()
            self.lips = LipZone.find(mesh, rim, z_id.device)
            skin = np.setdiff1d(skin, self.lips.index.cpu().numpy())
        self.skin = torch.from_numpy(skin).to(z_id.device)
        self.levels = find_levels(self.canonical if self.opened is None else self.opened, self.skin)
        self.nearest_coarse = _nearest(self.canonical, self.canonical[self.levels[0].index])

    @torch.no_grad()
    def __call__(self, z_ex: Tensor, previous: Carried | None = None) -> Carried:
        """Vertices for z_ex [D_ex]; ``previous`` is the result for the frame before, None starts afresh.

        So does a change of the expression by more than ``WARM_START``.
        """
        if previous is None or (z_ex - previous.z_ex).norm() > WARM_START:
            return self._afresh(z_ex)
        posed = PosedPoints(*(a.clone() for a in vars(previous.posed).values()))
        now = Carried(posed, z_ex, previous.sensitivity.clone(), previous.staleness.clone())
        coarse, *finer = self.levels
        self._update(coarse.index, now)
        moved = posed.points - previous.posed.points
        now.staleness.add_(
            moved[coarse.index].norm(dim=-1)[self.nearest_coarse] + CODE_STALENESS * (z_ex - previous.z_ex).norm()
        )
        for level in finer:
            posed.points[level.index] += level.interpolate(posed.points - previous.posed.points)
            may_be_off = now.sensitivity[level.index] * now.staleness[level.index] > TOLERANCE / 2
            self._update(level.index[may_be_off], now)
        if self.opened is not None:  # from the open mouth in every frame: a vertex on the wrong lip would stay there
            self._solve_lips(posed, z_ex, self.opened)
        return now

    def _update(self, index: Tensor, now: Carried) -> None:
        """Solve the vertices ``index``, in place."""
        expected = _part(now.posed, index)
        found = self._solve(index, now.z_ex, expected)
        off = (found.points - expected.points).norm(dim=-1) + found.residual
        now.sensitivity[index] = (off / now.staleness[index].clamp_min(1e-9)).clamp_min(LEAST_SENSITIVITY)
        now.staleness[index] = 0
        _put(now.posed, index, found)

    def _afresh(self, z_ex: Tensor) -> Carried:
        unknown = torch.full_like(self.canonical[:, 0], torch.inf)
        if self.opened is None:
            whole = pose_points(self.model, self.canonical, self.z_id, z_ex, tolerance=TOLERANCE)
            return Carried(whole, z_ex, unknown, torch.zeros_like(unknown))
        skin = pose_points(
            self.model,
            self.canonical[self.skin],
            self.z_id,
            z_ex,
            origin=(self.opened[self.skin], self.code),
            tolerance=TOLERANCE,
            cold_steps=2,
        )
        eye = torch.eye(3).to(self.opened).repeat(len(self.opened), 1, 1)
        whole = PosedPoints(self.opened.clone(), eye, torch.zeros_like(unknown))
        _put(whole, self.skin, skin)
        self._solve_lips(whole, z_ex, self.opened)
        return Carried(whole, z_ex, unknown, torch.zeros_like(unknown))

    def _solve(self, index: Tensor, z_ex: Tensor, start: PosedPoints) -> PosedPoints:
        return pose_points(self.model, self.canonical[index], self.z_id, z_ex, warm=start, tolerance=TOLERANCE)

    def _solve_lips(self, whole: PosedPoints, z_ex: Tensor, opened: Tensor) -> None:
        lips = self.lips
        guess = opened[lips.index] + lips.extend(whole.points[lips.border] - opened[lips.border])
        slope = lips.extend(whole.inverse_jacobian[lips.border].flatten(1)).unflatten(1, (3, 3))
        solved = self._solve(lips.index, z_ex, PosedPoints(guess, slope, whole.residual[lips.index]))
        points = guess + lips.agree(solved.points - guess) + lips.closing
        _put(whole, lips.index, PosedPoints(points, solved.inverse_jacobian, solved.residual))


@dataclass(frozen=True)
class Level:
    """Vertices ``index`` [N] of the skin that go with the vertices ``near`` [N, K] of coarser levels.

    ``weight`` [N, K] is exact for motions that are linear in space.
    """

    index: Tensor
    near: Tensor
    weight: Tensor

    def interpolate(self, moved: Tensor) -> Tensor:
        """Motion [N, C] of the level for that of the whole mesh [V, C], of which coarser levels are known."""
        return (self.weight.unsqueeze(-1) * moved[self.near]).sum(1)


def find_levels(points: Tensor, skin: Tensor) -> list[Level]:
    """Of ``skin`` [S], vertices of ``points`` [V, 3]: one a cell of space, cells getting finer, then all others."""
    p, rest = points.cpu().numpy().astype(np.float64) * MODEL_UNIT, skin.cpu().numpy()
    above, levels = np.empty(0, np.int64), []
    for cell in (*CELLS, 0.0):
        chosen = rest[np.unique(np.floor(p[rest] / cell), axis=0, return_index=True)[1]] if cell else rest
        near, weight = _moving_least_squares(p, chosen, above)
        arrays = (chosen, near, weight)
        levels.append(Level(*(torch.from_numpy(a).to(points.device) for a in arrays)))
        above, rest = np.union1d(above, chosen), np.setdiff1d(rest, chosen)
    return levels


def _moving_least_squares(
    p: NDArray[np.float64], index: NDArray[np.int64], leaders: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Places [N, K] in ``p`` of the leaders around each of the points ``index`` [N], and their weights [N, K]."""
    from nphm_track.kd_tree import kd_tree

    k = min(LEADERS, len(leaders))
    if not k or not len(index):
        return np.empty((len(index), 0), np.int64), np.empty((len(index), 0), np.float32)
    distance, found = (a.reshape(len(index), k) for a in kd_tree(p[leaders]).query(p[index], k=k))
    near = leaders[found]
    reach = np.maximum(distance.mean(1, keepdims=True), 1e-9)
    close = np.exp(-((distance / reach) ** 2))
    away = (p[near] - p[index][:, None]) / reach[..., None]
    basis = np.concatenate([np.ones((*away.shape[:2], 1)), away], -1)
    normal = np.einsum("nka,nk,nkb->nab", basis, close, basis) + np.diag([0, 0.02, 0.02, 0.02])
    at_point = np.linalg.solve(normal, np.eye(4)[None, :, :1])[..., 0]
    return near, (np.einsum("nka,na->nk", basis, at_point) * close).astype(np.float32)


def _nearest(points: Tensor, others: Tensor) -> Tensor:
    from nphm_track.kd_tree import kd_tree

    return torch.from_numpy(kd_tree(others.cpu().numpy()).query(points.cpu().numpy())[1]).to(points.device)


def _tensor(vertices: NDArray[np.float32], like: Tensor) -> Tensor:
    return torch.from_numpy(vertices / MODEL_UNIT).to(like)


def _part(points: PosedPoints, index: Tensor) -> PosedPoints:
    return PosedPoints(points.points[index], points.inverse_jacobian[index], points.residual[index])


def _put(whole: PosedPoints, index: Tensor, part: PosedPoints) -> None:
    whole.points[index], whole.inverse_jacobian[index] = part.points, part.inverse_jacobian
    whole.residual[index] = part.residual
