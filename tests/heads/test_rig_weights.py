"""Weights of the rig for codes of a model that names no expressions: solved from how the codes move the head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.editing import expression_code, random_identities
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.rig import Rig, knows_arkit
from nphm_track.heads.rig_weights import rig_weights, solved_weights
from nphm_track.heads.template import load_template
from nphm_track.heads.wrap import wrap

EXPRESSIONS = (
    {"jawOpen": 0.6},
    {"mouthSmile_L": 0.8, "mouthSmile_R": 0.8},
    {"browInnerUp_L": 0.7, "browInnerUp_R": 0.7},
    {"eyeBlink_L": 0.9},
    {},
)


@pytest.fixture(scope="module")
def model() -> NphmDecoder:
    return load_head_model()


@pytest.fixture(scope="module")
def person(model: NphmDecoder) -> torch.Tensor:
    return random_identities(model, 1, seed=3)[0].detach()


@pytest.fixture(scope="module")
def rig(model: NphmDecoder, person: torch.Tensor) -> Rig:
    template = load_template()
    return Rig.of(template, wrap(template, model, person))


@pytest.fixture(scope="module")
def codes(model: NphmDecoder) -> torch.Tensor:
    return torch.stack([expression_code(model, named).detach() for named in EXPRESSIONS])


def test_solved_weights_move_the_head_as_the_codes_own_do(
    model: NphmDecoder, rig: Rig, person: torch.Tensor, codes: torch.Tensor
) -> None:
    solved, linear = solved_weights(rig, model, person, codes), rig.weights(model, codes)
    assert solved.min() >= 0 and solved.max() <= 1
    for row, named in enumerate(EXPRESSIONS):
        there, here = rig.vertices(solved[row]), rig.vertices(linear[row])
        moved = np.linalg.norm(here - rig.neutral, axis=1)
        missed = np.linalg.norm(there - here, axis=1)
        assert missed.max() < max(0.0003, 0.2 * moved.max())
        strongest = [rig.names[k] for k in np.argsort(-solved[row])[: len(named)]]
        assert set(strongest) == set(named)


def test_models_that_name_expressions_are_read_and_others_solved(
    model: NphmDecoder, rig: Rig, person: torch.Tensor, codes: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert knows_arkit(model)
    np.testing.assert_array_equal(rig_weights(rig, model, person, codes), rig.weights(model, codes))
    bare = replace(model.config, expression_names=())
    solved = solved_weights(rig, model, person, codes[:1])
    monkeypatch.setattr(model, "config", bare)
    monkeypatch.setattr("nphm_track.heads.rig_weights.solved_weights", lambda *_: solved.copy())
    assert not knows_arkit(model)
    looking_down = np.tile(np.array([0.0, -0.3, 0.954]), (1, 2, 1))
    found = rig_weights(rig, model, person, codes[:1], looking_down)
    assert found[0, rig.names.index("eyeLookDown_L")] > 0.3
