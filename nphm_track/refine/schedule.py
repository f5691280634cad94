"""The refinement's order of work: identity and focal length on key frames, then all frames window by window.

Poses move first, alone: they are what a new camera or head shifts most, and points tell them at once. Pixels go from
few to many. Once the head is about right, points of the skin are followed through the key frames (``tracks``). Windows
overlap; the end of one is solved again with the next, whose first frames are held to the last two settled ones, so the
result has no seams and memory does not grow with the clip. A window starts from the feed-forward state, not from its
neighbour's: a resumed run is the same as an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track.conventions import MODEL_UNIT, N_LANDMARKS
from nphm_track.geometry.maps import GeometryMaps
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.mononphm import known_landmarks
from nphm_track.refine.clip import Head, MapSource, PersonViews, hidden
from nphm_track.refine.codes import CodeSpace, State
from nphm_track.refine.config import RefineConfig, Stage, groups
from nphm_track.refine.key_frames import key_frames
from nphm_track.refine.landmarks import POINTS, Landmarks
from nphm_track.refine.pixels import Targets, pixel_rays, rays_of
from nphm_track.refine.solver import Evidence, Free, Problem, Working, optimise
from nphm_track.refine.surface import Renderer, SurfaceRenderer
from nphm_track.refine.terms import Terms
from nphm_track.refine.tracks import Follower
from nphm_track.refine.volume import VolumeRenderer

RENDERERS: dict[str, Callable[[NphmDecoder, CodeSpace], Renderer]] = {
    "surface": SurfaceRenderer,
    "volume": VolumeRenderer,
}
MEASURES = ("normal_deg", "point_mm", "landmark_px")
"""What is reported of a frame."""


class Log(Protocol):
    """Records that survive the process, such as ``tracking.observations.ObservationLog``."""

    def __len__(self) -> int: ...

    def append(self, record: Any) -> None: ...

    def read(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Refined:
    """The refined clip: its state and the frames' records (``frame_dtype``)."""

    state: State
    frames: np.ndarray


def person_dtype(identity_dim: int) -> np.dtype[Any]:
    """The record of the first stage."""
    return np.dtype([("z_id", "f4", (identity_dim,)), ("K", "f8", (3, 3))])


def frame_dtype(expression_dim: int) -> np.dtype[Any]:
    """A refined frame: its state, ``MEASURES`` before and after (NaN where not measured), and whether it got worse and
    was taken back to the feed-forward state."""
    return np.dtype(
        [
            ("z_ex", "f4", (expression_dim,)),
            ("R", "f8", (3, 3)),
            ("t", "f8", (3,)),
            ("before", "f4", (len(MEASURES),)),
            ("after", "f4", (len(MEASURES),)),
            ("rolled_back", "?"),
        ]
    )


def refine_clip(
    model: NphmDecoder,
    clip: PersonViews,
    maps: MapSource,
    config: RefineConfig,
    person_log: Log,
    frame_log: Log,
    advance: Callable[[int], None] = lambda _: None,
) -> Refined:
    """Refine a clip; what the logs hold already is not done again. ``advance`` hears of finished frames."""
    refiner = Refiner(model, clip, maps, config)
    if not len(person_log):
        person, records = refiner.solve_person()
        if records is not None and not len(frame_log):
            frame_log.append(records)
        person_log.append(np.array((person.z_id.cpu().numpy(), person.K.cpu().numpy()), person_log.read().dtype))
    record = person_log.read()[0]
    z_id, K = torch.from_numpy(np.array(record["z_id"])), torch.from_numpy(np.array(record["K"]))
    refiner.settle_person(z_id.to(clip.start.z_id), K.to(clip.start.K))
    advance(len(frame_log))
    while len(frame_log) < len(clip):
        done = frame_log.read()
        records = refiner.solve_window(done[-2:], len(done))
        frame_log.append(records)
        advance(len(records))
    frames = frame_log.read()
    state = replace(
        refiner.clip.start,
        z_ex=torch.from_numpy(np.array(frames["z_ex"])),
        R=torch.from_numpy(np.array(frames["R"])),
        t=torch.from_numpy(np.array(frames["t"])),
    )
    return Refined(state, frames)


class Refiner:
    """The stages of one clip's refinement."""

    def __init__(self, model: NphmDecoder, clip: PersonViews, maps: MapSource, config: RefineConfig) -> None:
        self.model, self.clip, self.maps, self.config = model, clip, maps, config
        self.feed_forward = clip.start
        self.space = CodeSpace.of(model, config.local_spread)
        self.renderer = RENDERERS[config.renderer](model, self.space)
        self.landmarks = Landmarks(model, self.space)
        self.follower, self.marks = None, self.landmarks
        if config.track_points and len(known_landmarks(model)) == N_LANDMARKS:
            self.follower = Follower(model.mean_landmarks * MODEL_UNIT, config.track_points)
            self.marks = Landmarks(model, self.space, self.follower.marks)
        self.head: Head | None = None
        self.scale_change = 1.0

    # -- identity and camera -------------------------------------------------------------------------------------------
    def solve_person(self) -> tuple[State, np.ndarray | None]:
        """Identity (and focal length) on key frames, unless they are known; a single frame is finished by that, and its
        record comes along."""
        wanted = {name for stage in self.config.person for name in stage.free}
        identity = "identity" in wanted and not self.clip.identity_known
        focal = "focal" in wanted and not self.clip.camera_known
        if not identity and not focal:
            return self.clip.start, None
        rows = key_frames(self.clip, self.config.key_frames)
        maps = self.maps(rows)
        most = max(stage.pixels for stage in self.config.person)
        evidence = self.clip.evidence(rows, maps, most, independent=True)
        settled = torch.zeros(len(rows), dtype=torch.bool, device=evidence.start.R.device)
        follower = self.follower if identity and len(rows) > 1 else None
        terms = self.config.terms.of_person(len(rows))

        state: State = evidence.start
        at: Working | None = None
        for stages in groups(self.config.person, followed=follower is not None):
            if stages[0].follow and follower is not None:
                evidence = self._followed(follower, state, evidence, maps)
            head = Head(self.model, state.z_id)
            phases = [(self._free(stage, settled, identity=identity, focal=focal), stage) for stage in stages]
            at = self._solve(state, evidence, maps, (head, head.posed(state.z_ex)), phases, terms)
            state = at.state
        assert at is not None
        return state, self._records(at, evidence) if len(self.clip) == 1 else None

    def settle_person(self, z_id: Tensor, K: Tensor) -> None:
        """From here on identity and camera are constants. A head that has grown is as much farther away: poses start
        from there."""
        start, marks = self.clip.start, list(POINTS)
        old, new = (self.model.landmarks(z)[marks].std(0).norm() for z in (start.z_id, z_id))
        self.scale_change = float(new / old * K[0, 0] / start.K[0, 0])
        self.clip = replace(self.clip, start=replace(start, z_id=z_id, K=K, t=start.t * self.scale_change))
        self.head = Head(self.model, z_id)

    # -- windows -------------------------------------------------------------------------------------------------------
    def solve_window(self, before: np.ndarray, first: int) -> np.ndarray:
        """Records of the frames from ``first`` on that this window settles; ``before`` are the last settled records."""
        c, T = self.config, len(self.clip)
        end = min(first + c.window, T)
        settle = T if end == T else end - c.overlap
        context = len(before)
        rows = np.arange(first - context, end)
        maps = self.maps(rows)
        evidence = self.clip.evidence(rows, maps, max(stage.pixels for stage in c.frames))
        state = evidence.start
        if context:
            state = replace(state, **{k: _front(getattr(state, k), before[k]) for k in ("z_ex", "R", "t")})
        settled = torch.arange(len(rows), device=state.R.device) < context

        assert self.head is not None
        head = self.head, self.head.posed(state.z_ex)
        follower = self.follower if len(rows) > 1 else None
        at: Working | None = None
        for stages in groups(c.frames, followed=follower is not None):
            if stages[0].follow and follower is not None:
                evidence = self._followed(follower, state, evidence, maps)
            phases = [(self._free(stage, settled), stage) for stage in stages]
            at = self._solve(state, evidence, maps, head, phases, c.terms)
            state = at.state
        assert at is not None
        return self._records(at, evidence)[context : settle - first + context]

    @staticmethod
    def _free(stage: Stage, settled: Tensor, *, identity: bool = False, focal: bool = False) -> Free:
        """What moves in a stage, of what may: ``identity``, ``focal``."""
        return Free(
            identity=identity and "identity" in stage.free,
            focal=focal and "focal" in stage.free,
            expression="expression" in stage.free,
            settled=settled,
        )

    def _followed(self, follower: Follower, state: State, evidence: Evidence, maps: GeometryMaps) -> Evidence:
        """The evidence with the skin followed through its frames, from where a state's head has it."""
        marks = self.marks.carry(state.z_id, state.z_ex)
        tracks = follower(maps.crops, maps.rois, self.clip.camera, state, marks, evidence.confidence)
        return replace(evidence, tracks=tracks)

    def _solve(
        self,
        state: State,
        evidence: Evidence,
        maps: GeometryMaps,
        head: tuple[Head, list[NDArray[np.float32]]],
        phases: list[tuple[Free, Stage]],
        terms: Terms,
    ) -> Working:
        """Draw the posed head, then go through stages of one number of pixels.

        The vertices may be some millimetres old: rays go on to the surface from there.
        """
        part = replace(evidence, targets=evidence.targets.first(phases[0][1].pixels))
        depth, hit = head[0].depths(head[1], state, part.targets, maps.rois, maps.normals.shape[1])
        part = hidden(part, hit)
        seen = self.renderer.see(rays_of(state, part.targets.pixels, depth), state.z_id, state.z_ex)
        at: Working | None = None
        depth, identity = seen.depth.view_as(depth), False
        for free, stage in phases:
            landmarks = self.landmarks if part.tracks is None else self.marks
            problem = Problem(self.renderer, landmarks, self.space, part, terms.changed(stage.terms), free)
            if at is None or free.identity != identity:  # the rows of the stage before lack columns
                at = problem.linearise(state, depth, landmarks.carry(state.z_id, state.z_ex))
            at = optimise(problem, at, stage.steps, self.config.tolerance)[0]
            state, depth, identity = at.state, at.depth, free.identity
        assert at is not None
        return at

    # -- report --------------------------------------------------------------------------------------------------------
    def _records(self, at: Working, evidence: Evidence) -> np.ndarray:
        """What became of the frames; those that got worse go back to the feed-forward expression and pose, unless these
        are worse still on the refined head."""
        first = self.feed_forward
        start = replace(evidence.start, z_id=first.z_id, K=first.K, t=evidence.start.t / self.scale_change)
        back = replace(evidence.start, z_id=at.state.z_id, K=at.state.K)
        some = replace(evidence, targets=evidence.targets.first(self.config.report_pixels))
        places = self._places(at, some.targets)
        seen = [self._render(state, places, some) for state in (start, at.state, back)]
        both = seen[0].valid & seen[1].valid & seen[2].valid
        (before, was), (after, now), (fallback, then) = (self._measure(rendered, both, some) for rendered in seen)
        worse = (now > was) & (then < now)
        records = np.zeros(len(worse), frame_dtype(self.model.config.expression_dim))
        for name in ("z_ex", "R", "t"):
            new, old = getattr(at.state, name).cpu().numpy(), getattr(back, name).cpu().numpy()
            records[name] = np.where(worse.reshape(-1, *[1] * (new.ndim - 1)), old, new)
        records["before"], records["after"] = before, np.where(worse[:, None], fallback, after)
        records["rolled_back"] = worse
        return records

    def _places(self, at: Working, targets: Targets) -> Tensor:
        """Surface points [B, N, 3], metres, head space, at the first pixels of a linearised state."""
        origin, direction = pixel_rays(targets.pixels, at.state.R, at.state.t, at.state.K)
        return origin + at.depth[:, : targets.pixels.shape[1], None] * direction

    def _render(self, state: State, places: Tensor, evidence: Evidence) -> Rendered:
        """A state along the rays of the targets; the surface is near ``places`` in the head, whatever the pose."""
        targets = evidence.targets
        depth = (places @ state.R.mT + state.t[:, None])[..., 2].float()
        seen = self.renderer.see(rays_of(state, targets.pixels, depth), state.z_id, state.z_ex)
        origin, direction = pixel_rays(targets.pixels, state.R, state.t, state.K)
        shape = depth.shape
        camera = self.landmarks.carry(state.z_id, state.z_ex).double() @ state.R.mT + state.t[:, None]
        pixels = (camera / camera[..., 2:]) @ state.K.mT
        return Rendered(
            seen.normal.view(*shape, 3),
            origin + seen.depth.view(*shape, 1) * direction,
            seen.valid.view(shape),
            pixels[..., :2],
        )

    def _measure(
        self, rendered: Rendered, valid: Tensor, evidence: Evidence
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The terms of each frame [B, 3] in plain units over the pixels ``valid`` [B, N], and what must not rise [B]:
        normal and landmark error, each in units of its standard deviation."""
        targets, sigmas = evidence.targets, self.config.terms
        cosine = (rendered.normals * targets.normals).sum(-1).clamp(-1, 1)
        distance = (rendered.points - targets.points).norm(dim=-1)
        error = (rendered.landmarks - evidence.landmarks).norm(dim=-1)
        terms = torch.stack(
            [
                _mean(torch.rad2deg(cosine.acos()), targets.normal_weight * valid),
                _mean(distance * 1000, targets.point_weight * valid),
                torch.where(evidence.confidence > 0, error.nanmean(1), torch.nan),
            ],
            1,
        )
        normal = torch.deg2rad(terms[:, 0]) / sigmas.normals.sigma
        landmark = terms[:, 2] / (sigmas.landmarks.sigma * evidence.eyes)
        score = normal.nan_to_num(0.0) + landmark.nan_to_num(0.0)
        return terms.float().cpu().numpy(), score.cpu().numpy()


@dataclass(frozen=True)
class Rendered:
    """What B frames show: normals and points [B, N, 3] (head space), whether the head is there, landmarks [B, L, 2]."""

    normals: Tensor
    points: Tensor
    valid: Tensor
    landmarks: Tensor


def _front(values: Tensor, settled: np.ndarray) -> Tensor:
    """``values`` with the settled frames' in front."""
    return torch.cat([torch.from_numpy(np.array(settled)).to(values), values[len(settled) :]])


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of each row; NaN where nothing weighs."""
    total = weight.sum(1)
    return torch.where(total > 0, (values * weight).sum(1) / total.clamp_min(1e-9), torch.nan)
