"""Gauss-Newton on ideal evidence: the objective's gradient, and the way back to the truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nphm_track.refine.codes import State, Step
from nphm_track.refine.solver import Free, Problem, Working, optimise
from nphm_track.refine.terms import Normals, Terms
from nphm_track.rigid import rotation


def still(**changes: Any) -> Free:
    return replace(
        Free(identity=True, focal=True, expression=True, settled=torch.zeros(3, dtype=torch.bool)), **changes
    )


def disturbed(person: Any) -> State:
    """A state some way from the truth."""
    generator = torch.Generator().manual_seed(1)
    truth, space = person.truth, person.space
    K = truth.K.clone()
    K[[0, 1], [0, 1]] *= 1.03
    weights = 0.05 * torch.randn(3, space.expression.shape[1], generator=generator)
    return State(
        truth.z_id + space.identity @ (0.1 * torch.randn(space.identity.shape[1], generator=generator)),
        truth.z_ex + weights @ space.expression.mT,
        rotation(0.03 * torch.randn(3, 3, generator=generator).double()) @ truth.R,
        truth.t + 0.003 * torch.randn(3, 3, generator=generator).double(),
        K,
    )


def begin(person: Any, free: Free, state: State, terms: Terms | None = None) -> tuple[Problem, Working]:
    evidence = replace(person.evidence, start=state)
    problem = Problem(person.renderer, person.landmarks, person.space, evidence, terms or Terms(), free)
    marks = person.landmarks.carry(state.z_id, state.z_ex)
    at = problem.linearise(state, person.depth, marks)
    return problem, problem.linearise(state, at.depth, at.landmarks.points)


def test_gradient_of_the_whole_objective(person: Any) -> None:
    """A small move along each kind of column changes the energy as the normal equations say."""
    free = still()
    state = disturbed(person)
    # Normals have a test of their own: in creases they turn by more than a finite difference can follow.
    problem, at = begin(person, free, state, Terms(normals=Normals(evidence=2)))
    usable = at.seen.valid.view(at.depth.shape)
    k, e = person.space.identity.shape[1], person.space.expression.shape[1]
    zero = Step(*(torch.zeros(s, dtype=torch.float64) for s in ((k,), (), (3, e), (3, 6))))

    def moved(step: Step) -> Working:
        new = state.moved(person.space, step)
        ahead = problem.linearise(new, at.depth, at.landmarks.points)
        ahead = problem.linearise(new, ahead.depth, ahead.landmarks.points)
        return ahead

    def only(name: str, index: tuple[int, ...], size: float) -> Step:
        value = getattr(zero, name).clone()
        value[index] = size
        return replace(zero, **{name: value})

    moves = [
        ("identity", (2,), 0.02),
        ("log_focal", (), 0.003),
        ("expression", (1, person.model.config.expression_names.index("jawOpen")), 0.01),
        ("pose", (0, 1), 0.002),
        ("pose", (2, 5), 0.0005),
    ]
    for name, index, h in moves:
        ahead, back = moved(only(name, index, h)), moved(only(name, index, -h))
        both = usable & ahead.seen.valid.view(usable.shape) & back.seen.valid.view(usable.shape)
        slope = (problem.energy(ahead, both) - problem.energy(back, both)) / (2 * h)
        expected = float(getattr(problem.gradient(at, both), name)[index])
        assert slope == pytest.approx(expected, rel=0.1, abs=5), name


def test_finds_the_way_back(person: Any) -> None:
    """What is seen falls into place; how far depth, focal length and size share in it is the priors' affair."""
    problem, at = begin(person, still(focal=False), disturbed(person))
    found, _ = optimise(problem, at, 8)

    def errors(w: Working) -> list[float]:
        camera = w.landmarks.points.double() @ w.state.R.mT + w.state.t[:, None]
        pixels = ((camera / camera[..., 2:]) @ w.state.K.mT)[..., :2]
        usable = w.seen.valid.view(w.depth.shape)
        points = problem.rows(w, usable)["points"].residual.view(*w.depth.shape, 3).norm(dim=-1)
        return [float((pixels - person.evidence.landmarks).norm(dim=-1).mean()), float(points[usable].median())]

    before, after = errors(at), errors(found)
    assert all(new < 0.4 * old for new, old in zip(after, before, strict=True)), (before, after)


def test_held_columns_stay(person: Any) -> None:
    state = disturbed(person)
    free = still(identity=False, focal=False, expression=False, settled=torch.tensor([True, False, False]))
    problem, at = begin(person, free, state)
    found, _ = optimise(problem, at, 6)
    for name in ("z_id", "z_ex", "K"):
        assert torch.equal(getattr(found.state, name), getattr(state, name)), name
    assert torch.allclose(found.state.R[0], state.R[0]) and torch.allclose(found.state.t[0], state.t[0])
    assert not torch.allclose(found.state.t[1:], state.t[1:])
