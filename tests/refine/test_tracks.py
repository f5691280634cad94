"""Points of the skin followed through frames: shifts are found, slides are free, and what is not alike is left out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nphm_track.conventions import MODEL_UNIT
from nphm_track.refine import terms
from nphm_track.refine import tracks as module
from nphm_track.refine.codes import State
from nphm_track.refine.landmarks import POINTS, Landmarks
from nphm_track.refine.solver import Free, Problem
from nphm_track.refine.tracks import Follower, Tracks
from nphm_track.refine.view import Rows
from nphm_track.rigid import rotation

B, N, C = 3, 4, 5
ROI = torch.tensor([160.0, 160.0, 220.0, 220.0, 0.1])
CROP = 256


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def follower(person: Any) -> Follower:
    return Follower(person.model.mean_landmarks * MODEL_UNIT, 60)


@pytest.fixture(scope="module")
def marks(person: Any, follower: Follower) -> Tensor:
    """[1, M, 3] of the head at rest in the first frame's expression."""
    return Landmarks(person.model, person.space, follower.marks).carry(person.truth.z_id, person.truth.z_ex[:1])


def frames(count: int, person: Any) -> State:
    """The first frame, some times over."""
    return person.truth.rows(torch.zeros(count, dtype=torch.long))


def skin(seed: int = 0) -> Tensor:
    """A picture [3, CROP, CROP] with detail everywhere."""
    noise = torch.rand(1, 3, CROP, CROP, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(noise, 5, 1, 2)[0]


def seen(tracks: Tracks) -> Tensor:
    return (tracks.slide != 0).flatten(2).any(-1)


def follow(follower: Follower, person: Any, marks: Tensor, crops: Tensor) -> Tracks:
    count = len(crops)
    one = torch.ones(count, dtype=torch.float64)
    return follower(crops, ROI.repeat(count, 1), person.camera, frames(count, person), marks.repeat(count, 1, 1), one)


def test_points_are_spread_and_names_stay_in_order(follower: Follower) -> None:
    assert len(follower.points) == len(set(follower.points)) == 60
    assert follower.marks[: len(POINTS)] == POINTS
    assert [follower.marks[i] for i in follower.index] == list(follower.points)


def test_patches_bend_with_the_skin(person: Any) -> None:
    """Where a ball turned by 30 degrees is seen around a point, up to 8 mm away."""
    mean = person.model.mean_landmarks * MODEL_UNIT
    ball = 0.09 * torch.nn.functional.normalize(mean - torch.tensor([0.0, 0.0, -0.05]), dim=1)
    follower = Follower(ball, 60)
    marks = ball[list(follower.marks)].double()
    camera = marks @ rotation(torch.tensor([math.pi, 0, 0]).double()) @ rotation(torch.tensor([0, 0.5, 0]).double()).mT
    pixels = 600 * camera[:, :2] / (camera[:, 2:] + 0.5)
    own, offsets = marks[follower.index], marks[follower.near] - marks[follower.index, None]
    skin = module._on_the_skin(offsets, own)
    found = torch.einsum("nij,nkj->nki", follower.straighten(pixels[None])[0], module._bent(skin))
    error = (found - pixels[follower.near] + pixels[follower.index, None]).norm(dim=-1)
    assert error[skin.norm(dim=-1) < 0.008].max() < 0.05


def test_a_moved_picture_moves_its_points(follower: Follower, person: Any, marks: Tensor) -> None:
    """Two frames of the same head, whose skin lies 2 and -1 pixels of the crop apart."""
    picture = skin()
    tracks = follow(follower, person, marks, torch.stack([picture, picture.roll((-1, 2), (1, 2))]))
    both = seen(tracks).all(0)
    assert both.sum() > 35
    cos, sin = torch.cos(ROI[4]), torch.sin(ROI[4])
    expected = torch.stack([2 * cos + sin, 2 * sin - cos]).double() * ROI[2] / CROP
    assert torch.allclose((tracks.pixels[1] - tracks.pixels[0])[both].median(0).values, expected, atol=0.05)
    assert (tracks.pixels[1] - tracks.pixels[0] - expected)[both].norm(dim=-1).quantile(0.9) < 0.25


def test_nothing_is_followed_without_detail_or_likeness(follower: Follower, person: Any, marks: Tensor) -> None:
    blank = follow(follower, person, marks, torch.full((2, 3, CROP, CROP), 0.5))
    other = follow(follower, person, marks, torch.stack([skin(1), skin(2)]))
    assert not seen(blank).any() and seen(other).float().mean() < 0.1
    assert all(torch.isfinite(x).all() for x in (blank.pixels, blank.whiten, other.pixels, other.whiten))


def term(p: Tensor, base: Tensor, jacobian: Tensor, whiten: Tensor, slide: Tensor) -> Rows:
    """Three frames whose own columns are the same parameters p [C]."""
    one = torch.ones(B, dtype=torch.float64)
    return terms.Tracks().compare(base + jacobian @ p, jacobian, 0 * base, whiten, slide, one)


def test_gradient_and_matrix_know_the_slides() -> None:
    """The energy after the slides have been chosen has the gradient of the rows and the matrix less its coupling."""
    base, jacobian, whiten = 0.2 * draw(B, N, 2), draw(B, N, 2, C, seed=1), draw(B, N, 2, 2, seed=2)
    slide = 1e3 * draw(B, N, 2, 2, seed=3)
    whiten[0, 1], slide[0, 1] = 0, 0
    zero = torch.zeros(C, dtype=torch.float64)
    rows = term(zero, base, jacobian, whiten, slide)
    matrix, gradient = (part.sum(0) for part in rows.normal_equations())
    assert rows.coupling is not None
    coupling = rows.coupling.sum(1)  # the frames share their columns here
    matrix = matrix - coupling.mT @ coupling
    assert torch.linalg.eigvalsh(matrix).min() > 0
    steps = 1e-4 * torch.eye(C, dtype=torch.float64)
    ahead, back = ([term(sign * s, base, jacobian, whiten, slide) for s in steps] for sign in (1, -1))
    slope = torch.stack([a.energy.sum() - b.energy.sum() for a, b in zip(ahead, back, strict=True)]) / 2e-4
    assert torch.allclose(slope, gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))
    bend = torch.stack(
        [a.normal_equations()[1].sum(0) - b.normal_equations()[1].sum(0) for a, b in zip(ahead, back, strict=True)]
    )
    assert torch.allclose(bend / 2e-4, matrix, rtol=0.1, atol=0.1 * float(matrix.abs().max()))


def test_a_common_slide_costs_next_to_nothing() -> None:
    slide = 2e3 * torch.eye(2, dtype=torch.float64).expand(B, N, 2, 2)
    whiten, jacobian = 2 * torch.eye(2, dtype=torch.float64).expand(B, N, 2, 2), draw(B, N, 2, C)
    common = draw(1, N, 2, seed=1).expand(B, N, 2)
    zero = torch.zeros(C, dtype=torch.float64)
    together, apart = (
        term(zero, base, jacobian, whiten, slide).energy.sum() for base in (common, draw(B, N, 2, seed=1))
    )
    assert together < 0.05 * apart


def test_parallax_finds_the_shape(person: Any, follower: Follower) -> None:
    """Points followed without names bring a wrong head nearer to the truth than nothing does."""
    marks = Landmarks(person.model, person.space, follower.marks)
    truth = person.truth
    camera = marks.carry(truth.z_id, truth.z_ex).double() @ truth.R.mT + truth.t[:, None]
    pixels = ((camera / camera[..., 2:]) @ truth.K.mT)[:, follower.index, :2]
    whiten = torch.eye(2, dtype=torch.float64).expand(*pixels.shape, 2) / 0.2
    tracks = Tracks(follower.index, pixels, whiten, whiten * 900)
    evidence = replace(person.evidence, start=truth, tracks=tracks)
    free = Free(identity=True, focal=False, expression=False, settled=torch.ones(3, dtype=torch.bool))
    nothing = {name: {"evidence": 0} for name in ("normals", "points", "landmarks")}
    only = terms.Terms().changed(nothing | {"identity": {"sigma": 3}})
    problem = Problem(person.renderer, marks, person.space, evidence, only, free)
    wrong = replace(truth, z_id=truth.z_id + person.space.identity[:, :12].sum(1) * 0.3)
    problem.evidence = replace(evidence, start=wrong)

    def depths(z_id: Tensor) -> Tensor:
        return marks.carry(z_id, truth.z_ex[:1])[0, follower.index, 2]

    at = problem.linearise(wrong, person.depth, marks.carry(wrong.z_id, wrong.z_ex))
    usable = torch.ones_like(at.depth, dtype=torch.bool)
    for _ in range(3):
        at = problem.ahead(at, problem.step(at, usable, 1e-3))
    before, after = ((depths(z) - depths(truth.z_id)).std() for z in (wrong.z_id, at.state.z_id))
    assert after < 0.7 * before, (before, after)
