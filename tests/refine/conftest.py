"""A small person: the released head model, one identity, one camera, and ideal evidence of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from nphm_track._runtime import prepare_torch
from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.loading import load_head_model
from nphm_track.refine import clip
from nphm_track.refine.codes import CodeSpace, State
from nphm_track.refine.landmarks import POINTS, Landmarks
from nphm_track.refine.pixels import Targets, rays_of
from nphm_track.refine.solver import Evidence
from nphm_track.refine.surface import Rays, SurfaceRenderer
from nphm_track.rigid import rotation

FRONTAL = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
SIZE, FOCAL = (320, 320), 480.0


@dataclass(frozen=True)
class Person:
    """A head model with a truth of B frames and what perfect networks would see of it."""

    model: NphmDecoder
    space: CodeSpace
    renderer: SurfaceRenderer
    landmarks: Landmarks
    camera: Intrinsics
    truth: State
    evidence: Evidence
    depth: Tensor  # [B, N] the true depths


@pytest.fixture(scope="session", autouse=True)
def coarse_heads() -> Iterator[None]:
    """Rays start from a coarser mesh than in a real run: Newton steps make up for it, and extraction is what costs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip, "DETAIL", 0.25)
        yield


@pytest.fixture(scope="session")
def person() -> Person:
    """Three frames, turned differently, with 48 pixels each."""
    prepare_torch()
    model = load_head_model()
    space, generator = CodeSpace.of(model, local_spread=0.1), torch.Generator().manual_seed(3)
    frames, count = 3, 48
    z_id = space.identity @ (0.3 * torch.randn(space.identity.shape[1], generator=generator))
    weights = 0.1 * torch.rand(frames, space.expression.shape[1], generator=generator)
    turns = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.3, 0.0], [0.0, -0.3, 0.1]], dtype=torch.float64)
    camera = Intrinsics.from_focal(FOCAL, SIZE)
    t = torch.tensor([[0.0, 0.0, 0.55], [0.01, 0.0, 0.56], [-0.01, 0.01, 0.54]], dtype=torch.float64)
    truth = State(z_id, weights @ space.expression.mT, rotation(turns) @ FRONTAL, t, torch.from_numpy(camera.K.copy()))
    renderer, landmarks = SurfaceRenderer(model, space), Landmarks(model, space)

    # Pixels of places inside the face; the surface is found by marching from the front.
    places = (torch.rand(frames, count, 3, generator=generator).double() - 0.5) * torch.tensor([0.07, 0.08, 0.0])
    places[..., 2] = 0.05
    seen = (places @ truth.R.mT + truth.t[:, None]) @ truth.K.mT
    pixels = seen[..., :2] / seen[..., 2:]
    rays = rays_of(truth, pixels, torch.full((frames, count), 0.42))
    found = renderer.see(rays, z_id, truth.z_ex)
    for _ in range(12):
        rays = Rays(rays.origin, rays.direction, rays.frame, found.depth)
        found = renderer.see(rays, z_id, truth.z_ex)
    assert found.valid.float().mean() > 0.6
    points = rays.origin + found.depth[:, None] * rays.direction
    marks = landmarks.carry(z_id, truth.z_ex).double() @ truth.R.mT + truth.t[:, None]
    marks = (marks / marks[..., 2:]) @ truth.K.mT
    weight = found.valid.float().view(frames, count)
    targets = Targets(
        pixels,
        torch.zeros(frames, count, dtype=torch.long),
        found.normal.view(frames, count, 3),
        points.view(frames, count, 3),
        weight,
        weight,
    )
    one = torch.ones(frames, dtype=torch.float64)
    times, still = torch.arange(frames) / 30.0, torch.zeros(frames, dtype=torch.long)
    evidence = Evidence(targets, marks[..., :2], one, 60 * one, times.double(), still, truth)
    assert evidence.landmarks.shape[1] == len(POINTS)
    return Person(model, space, renderer, landmarks, camera, truth, evidence, found.depth.view(frames, count))
