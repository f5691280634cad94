"""Gauss-Newton on a few frames at once: shared columns (identity, focal), a block for each frame, temporal coupling.

The step solves the damped normal equations (Levenberg-Marquardt) of ``terms``; networks are linearised
in float32, equations summed and solved in float64. Windows are short, so the matrix is dense: 32 frames are 1,900
unknowns and a twentieth of a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nphm_track.refine.codes import CodeSpace, State, Step
from nphm_track.refine.landmarks import POINTS, LandmarkRows, Landmarks
from nphm_track.refine.pixels import Targets, camera_directions, pixel_rays, rays_of
from nphm_track.refine.surface import Renderer, SeenRows
from nphm_track.refine.terms import Terms
from nphm_track.refine.tracks import Tracks
from nphm_track.refine.view import Rows, View, bends
from nphm_track.rigid import cross_matrix

DAMPING, MAX_DAMPING = 1e-3, 1e3
LEAST_KEPT = 0.9
"""Share of the pixels that must still see the head after a step: one that loses them gains for nothing."""
MAX_MOVE = 0.01
"""Metres; a depth predicted farther from the last than this is not believed."""


@dataclass(frozen=True)
class Evidence:
    """What is observed of B frames.

    Attributes:
        targets: pixels of the geometry maps.
        landmarks: [B, L, 2] observed, undistorted px (``landmarks.POINTS``); confidence: [B], 0 where not seen.
        eyes: [B] distance of the outer eye corners, px.
        times: [B] s; segments: [B] shots.
        start: the feed-forward state of these frames.
        tracks: points of the skin followed through them, or None.
    """

    targets: Targets
    landmarks: Tensor
    confidence: Tensor
    eyes: Tensor
    times: Tensor
    segments: Tensor
    start: State
    tracks: Tracks | None = None


@dataclass(frozen=True)
class Free:
    """Which columns move. ``settled`` [B] marks frames that are constants (the end of the window before)."""

    identity: bool
    focal: bool
    expression: bool
    settled: Tensor


@dataclass(frozen=True)
class Working:
    """A linearised state: rays with their depth, landmarks, and their rows."""

    state: State
    depth: Tensor  # [B, N]
    seen: SeenRows
    landmarks: LandmarkRows


class Problem:
    """The objective over one group of frames."""

    def __init__(
        self,
        renderer: Renderer,
        landmarks: Landmarks,
        space: CodeSpace,
        evidence: Evidence,
        terms: Terms,
        free: Free,
    ) -> None:
        self.renderer, self.landmarks, self.space = renderer, landmarks, space
        self.evidence, self.terms, self.free = evidence, terms, free
        self.k = space.identity.shape[1] if free.identity else 0
        self.e = space.expression.shape[1]
        self.bends = bends(evidence.times, evidence.segments)
        self.start_weights = space.expression_weights(evidence.start.z_ex).double()

    # -- one iteration -------------------------------------------------------------------------------------------------
    def linearise(self, state: State, depth: Tensor, landmarks: Tensor) -> Working:
        """Rows at ``state`` from depths [B, N] and landmark positions [B, L, 3] (metres, head space) near it."""
        B, N = depth.shape
        rays = rays_of(state, self.evidence.targets.pixels, depth)
        seen = self.renderer.linearise(rays, state.z_id, state.z_ex, identity=self.free.identity)
        marks = self.landmarks.linearise(landmarks, state.z_id, state.z_ex, identity=self.free.identity)
        return Working(state, seen.depth.view(B, N), seen, marks)

    def ahead(self, at: Working, step: Step) -> Working:
        """Linearised after a step, from the depths that the rows predict."""
        B, N = at.depth.shape
        state = at.state.moved(self.space, step)
        pose = torch.cat([step.log_focal.expand(B, 1), step.pose], -1)[:, None, :, None]
        ray = (self._ray_by_pose(at.state) @ pose)[..., 0].float()
        code = torch.cat([step.identity.expand(B, -1)[:, : self.k], step.expression], -1).float()
        moved = (at.seen.depth_ray.view(B, N, 6) * ray).sum(-1)
        moved += (at.seen.depth_code.view(B, N, -1) @ code[..., None])[..., 0]
        marks = self.landmarks.ahead(at.landmarks, code)
        return self.linearise(state, at.depth + moved.clamp(-MAX_MOVE, MAX_MOVE), marks)

    def again(self, at: Working) -> Working:
        """The same state, linearised where its rays meet the head: after a long step rows predict depths badly."""
        rays = rays_of(at.state, self.evidence.targets.pixels, at.depth)
        depth = self.renderer.see(rays, at.state.z_id, at.state.z_ex).depth
        return self.linearise(at.state, depth.view_as(at.depth), at.landmarks.points)

    def view(self, at: Working, usable: Tensor) -> View:
        """What the terms see; ``usable`` [B, N] are the pixels that count."""
        B, N = at.depth.shape
        e, state, seen = self.evidence, at.state, at.seen
        targets, start = e.targets, e.start

        # Rays move with the pose, and depths and normals with rays and codes.
        pose_ray = self._ray_by_pose(state)  # [B, N, 6, 7]
        depth_by = self._columns(seen.depth_code.view(B, N, 1, -1), seen.depth_ray.view(B, N, 1, 6).double() @ pose_ray)
        normals_by = self._columns(
            seen.normal_code.view(B, N, 2, -1), seen.normal_ray.view(B, N, 2, 6).double() @ pose_ray
        )

        # A point is x = o + s d, so dx = do + s dd + d ds.
        origin, direction = pixel_rays(targets.pixels, state.R, state.t, state.K)
        s = at.depth.double()[..., None]
        base = pose_ray[..., :3, :] + s[..., None] * pose_ray[..., 3:, :]
        no_code = torch.zeros_like(seen.depth_code).view(B, N, 1, -1).expand(-1, -1, 3, -1)
        points_by = direction[..., None] * depth_by + self._columns(no_code, base)

        landmarks, landmarks_by = self._projected(at, torch.arange(len(POINTS)))
        tracks = None if e.tracks is None else self._projected(at, e.tracks.index)
        person = self.space.identity_weights(state.z_id - start.z_id).double() if self.k else state.R.new_zeros(0)
        return View(
            normals=seen.normal.view(B, N, 3).double(),
            tangents=seen.tangents.view(B, N, 2, 3).double(),
            normals_by=normals_by,
            normals_seen=targets.normals.double(),
            normals_confidence=targets.normal_weight.double() * usable,
            points=origin + s * direction,
            points_by=points_by,
            points_seen=targets.points.double(),
            points_confidence=targets.point_weight.double() * usable,
            landmarks=landmarks,
            landmarks_by=landmarks_by,
            landmarks_seen=e.landmarks,
            confidence=e.confidence.double(),
            eyes=e.eyes,
            tracks=None if tracks is None else tracks[0],
            tracks_by=None if tracks is None else tracks[1],
            tracks_seen=None if e.tracks is None else e.tracks.pixels,
            tracks_whiten=None if e.tracks is None else e.tracks.whiten,
            tracks_slide=None if e.tracks is None else e.tracks.slide,
            identity=person,
            focal=(state.K[0, 0] / start.K[0, 0]).log()[None],
            expression=self.start_weights + self.space.expression_weights(state.z_ex - start.z_ex).double(),
            expression_start=self.start_weights,
            motion=self.space.expression_weights(state.z_ex).double(),
            bends=self.bends,
            R=state.R,
            t=state.t,
        )

    def rows(self, at: Working, usable: Tensor) -> dict[str, Rows]:
        """The rows of every term that has something to compare."""
        view = self.view(at, usable)
        found = {name: term.rows(view) for name, term in self.terms.named() if self.space.boxed or name != "range"}
        return {name: rows for name, rows in found.items() if rows is not None}

    def _projected(self, at: Working, index: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [B, I, 2] of the landmarks ``index`` [I] and their derivative [B, I, 2, C]."""
        state = at.state
        turned = at.landmarks.points[:, index].double() @ state.R.mT  # [B, I, 3]
        camera = turned + state.t[:, None]
        z = camera[..., 2:].clamp_min(1e-3)
        focal, centre = state.K[[0, 1], [0, 1]], state.K[:2, 2]
        xy = camera[..., :2] / z
        to_pixels = camera.new_zeros(*camera.shape[:2], 2, 3)
        to_pixels[..., [0, 1], [0, 1]] = focal / z
        to_pixels[..., :, 2] = -xy * focal / z
        code = to_pixels @ (state.R[:, None] @ at.landmarks.by_code[:, index].double())
        pose = torch.cat([(xy * focal)[..., None], -to_pixels @ cross_matrix(turned), to_pixels], -1)
        return xy * focal + centre, self._columns(code, pose)

    def _columns(self, code: Tensor, pose: Tensor) -> Tensor:
        """Columns identity, log focal, expression, rotation, translation of code rows and [log focal, pose] rows."""
        return torch.cat([code[..., : self.k].double(), pose[..., :1], code[..., self.k :].double(), pose[..., 1:]], -1)

    def _ray_by_pose(self, state: State) -> Tensor:
        """Derivatives [B, N, 6, 7] of a ray's origin and direction by log focal, rotation and translation.

        o = -R^T t and d = R^T k; R becomes exp(omega) R.
        """
        k = camera_directions(self.evidence.targets.pixels, state.K)
        B, N = k.shape[:2]
        out = k.new_zeros(B, N, 6, 7)
        back = state.R.mT
        out[..., :3, 1:4] = (-back @ cross_matrix(state.t))[:, None]
        out[..., :3, 4:] = -back[:, None]
        flat = torch.cat([-k[..., :2], torch.zeros_like(k[..., :1])], -1)
        out[..., 3:, 0] = flat @ state.R
        out[..., 3:, 1:4] = back[:, None] @ cross_matrix(k)
        return out

    # -- the whole objective -------------------------------------------------------------------------------------------
    def energy(self, at: Working, usable: Tensor) -> float:
        """The objective; ``usable`` [B, N] are the pixels that count."""
        return sum(float(rows.energy.sum()) for rows in self.rows(at, usable).values())

    def gradient(self, at: Working, usable: Tensor) -> Step:
        """The derivative of ``energy``, by each quantity of a step."""
        return self._split(self._equations(at, usable)[1])

    def step(self, at: Working, usable: Tensor, damping: float) -> Step:
        """The damped Gauss-Newton step."""
        matrix, gradient = self._equations(at, usable)
        fixed = self._fixed(len(at.depth))
        matrix.diagonal().mul_(1 + damping).add_(1e-9)
        matrix[fixed], matrix[:, fixed], gradient[fixed] = 0, 0, 0
        matrix.diagonal()[fixed] = 1
        return self._split(-torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(matrix))[:, 0])

    def _split(self, vector: Tensor) -> Step:
        frames = vector[self.k + 1 :].view(-1, self.e + 6)
        identity = vector[: self.k] if self.k else vector.new_zeros(self.space.identity.shape[1])
        return Step(identity, vector[self.k], frames[:, : self.e], frames[:, self.e :])

    def _equations(self, at: Working, usable: Tensor) -> tuple[Tensor, Tensor]:
        """Gauss-Newton matrix and gradient; columns are identity, log focal, then each frame's expression and pose."""
        S, P, B = self.k + 1, self.e + 6, len(at.depth)
        found = {name: (getattr(self.terms, name).acts_on, rows) for name, rows in self.rows(at, usable).items()}
        matrix, gradient = self._frame_equations([rows for on, rows in found.values() if on == "frames"])

        frames = gradient[S:].view(B, P)
        blocks = matrix[S:, S:].view(B, P, B, P)
        diagonal = matrix.diagonal()
        own = {"identity": slice(0, self.k), "focal": slice(self.k, S)}
        moving = {
            "bends of expression": slice(0, self.e),
            "bends of R": slice(self.e, self.e + 3),
            "bends of t": slice(self.e + 3, self.e + 6),
        }
        for on, rows in found.values():
            if on in own:
                d, g = rows.diagonal()
                diagonal[own[on]] += d
                gradient[own[on]] += g
            elif on == "expression":
                d, g = rows.diagonal()
                diagonal[S:].view(B, P)[:, : self.e] += d
                frames[:, : self.e] += g
            elif on in moving:
                _add_bends(blocks, frames, moving[on], self.bends.frames, rows)
        return matrix, gradient

    def _frame_equations(self, terms: list[Rows]) -> tuple[Tensor, Tensor]:
        """Rows have columns [identity, focal, their frame's]: the shared ones are summed, the frame's form blocks."""
        parts = [rows.normal_equations() for rows in terms]
        H, g = torch.stack([p[0] for p in parts]).sum(0), torch.stack([p[1] for p in parts]).sum(0)
        S, P = self.k + 1, self.e + 6
        B = len(H)
        matrix, gradient = H.new_zeros(S + B * P, S + B * P), torch.cat([g[:, :S].sum(0), g[:, S:].flatten()])
        matrix[:S, :S] = H[:, :S, :S].sum(0)
        matrix[:S, S:] = H[:, :S, S:].permute(1, 0, 2).reshape(S, -1)
        matrix[S:, :S] = matrix[:S, S:].mT
        frame = torch.arange(B, device=H.device)
        matrix[S:, S:].view(B, P, B, P)[frame, :, frame] = H[:, S:, S:]
        for coupling in (rows.coupling for rows in terms if rows.coupling is not None):
            factors = torch.cat([coupling[..., :S].sum(1), coupling[..., S:].flatten(1)], -1)  # [Q, S + B P]
            matrix -= factors.mT @ factors
        return matrix, gradient

    def _fixed(self, B: int) -> Tensor:
        """Which columns do not move."""
        settled = self.free.settled
        fixed = torch.zeros(self.k + 1 + B * (self.e + 6), dtype=torch.bool, device=settled.device)
        fixed[self.k] = not self.free.focal
        frames = fixed[self.k + 1 :].view(B, -1)
        frames[settled] = True
        if not self.free.expression:
            frames[:, : self.e] = True
        return fixed


def _add_bends(blocks: Tensor, gradient: Tensor, columns: slice, frames: Tensor, rows: Rows) -> None:
    """Add a motion's rows to the frames' blocks [B, P, B, P] and gradient [B, P]."""
    weighted = rows.jacobian * rows.weight[..., None, None]
    for a in range(3):
        pull = torch.einsum("mdi,md->mi", weighted[:, :, a], rows.residual)
        gradient[:, columns].index_add_(0, frames + a - 1, pull)
        for b in range(3):
            part = torch.einsum("mdi,mdj->mij", weighted[:, :, a], rows.jacobian[:, :, b])
            for m, frame in enumerate(frames.tolist()):
                blocks[frame + a - 1, columns, frame + b - 1, columns] += part[m]


def optimise(problem: Problem, at: Working, iterations: int, tolerance: float = 2e-3) -> tuple[Working, int]:
    """At most ``iterations`` steps from ``at``, fewer when a step gains less than ``tolerance`` of the objective.

    A step that makes the objective worse is taken back and tried shorter. Returns the best state and the steps tried.
    """
    damping, targets = DAMPING, problem.evidence.targets
    observed = (targets.normal_weight > 0) | (targets.point_weight > 0)
    for iteration in range(iterations):
        usable = at.seen.valid.view(at.depth.shape)
        ahead = problem.ahead(at, problem.step(at, usable, damping))
        both, enough = usable & ahead.seen.valid.view(at.depth.shape), LEAST_KEPT * (usable & observed).sum()
        if (both & observed).sum() < enough:
            ahead = problem.again(ahead)
            both = usable & ahead.seen.valid.view(at.depth.shape)
        after, before = problem.energy(ahead, both), problem.energy(at, both)
        if after < before and (both & observed).sum() >= enough:
            at, damping = ahead, damping / 4
            if before - after < tolerance * before:
                return at, iteration + 1
        else:
            damping = max(damping, DAMPING) * 20
            if damping > MAX_DAMPING:
                return at, iteration + 1
    return at, iterations
