"""Correctives: what the shapes of a rig miss of the network's deformation, in few directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nphm_track.heads import correctives
from nphm_track.heads.correctives import PROBES, CorrectedFrames, Correctives, farthest
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.editing import expression_code, random_identities
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.rig import Rig
from nphm_track.heads.template import load_template
from nphm_track.heads.wrap import wrap

EXPRESSIONS = (
    {"jawOpen": 0.6, "mouthSmile_L": 0.5},
    {"jawOpen": 0.2, "browDown_R": 0.6},
    {"mouthPucker": 0.7, "browInnerUp_L": 0.4},
    {"cheekPuff_L": 0.5, "jawLeft": 0.4},
)


@pytest.fixture(scope="module")
def model() -> NphmDecoder:
    return load_head_model()


@pytest.fixture(scope="module")
def frames(model: NphmDecoder) -> CorrectedFrames:
    """Four frames of a person; the last is not learned from."""
    z_id = random_identities(model, 2, seed=7)[1]
    rig = Rig.of(load_template(), wrap(load_template(), model, z_id))
    codes = torch.stack([expression_code(model, e) for e in EXPRESSIONS]).detach()
    found = CorrectedFrames(model, rig, z_id, codes, rig.weights(model, codes))
    found.learn(np.arange(3))
    return found


def test_frames_lie_where_the_deformation_puts_them_whether_learned_from_or_not(frames: CorrectedFrames) -> None:
    index = frames.correctives.index
    found = frames(np.arange(4))[:, index]
    for row in range(4):
        exact = frames._missing(row)
        off = np.linalg.norm(found[row] - exact, axis=1)
        assert off.mean() < 5e-5 and np.quantile(off, 0.999) < 3e-4
        assert np.linalg.norm(exact, axis=1).mean() > 1e-4  # what would be off without


def test_frames_that_the_directions_miss_are_inverted_whole(
    frames: CorrectedFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correctives, "ENOUGH_MEAN", np.inf)
    monkeypatch.setattr(correctives, "ENOUGH_MOST", np.inf)
    index = frames.correctives.index
    off = np.linalg.norm(frames(np.array([3, 3]))[0, index] - frames._missing(3), axis=1)
    assert off.mean() > 1e-4


def test_lips_and_lids_and_ears_keep_the_motion_of_the_shapes(frames: CorrectedFrames) -> None:
    template = frames.rig.template
    moved = np.linalg.norm(frames(np.arange(4)), axis=2).max(0)
    edges = np.concatenate(template.lid_edges)
    assert moved[edges].max() < 1e-4 and moved[template.part("mouth")].max() < 1e-4
    steps = moved[template.edges[(template.edges < template.skin_size).all(1)]]
    assert np.abs(steps[:, 0] - steps[:, 1]).max() < 1e-3  # no tear where one witness takes over from the other


def test_weights_come_back_from_few_vertices() -> None:
    rng = np.random.default_rng(0)
    directions = rng.normal(0, 1e-3, (4, 900, 3)).astype(np.float32)
    frames = np.tensordot(rng.normal(0, 1, (12, 4)), directions, 1).astype(np.float32)
    found = Correctives.none(np.arange(900)).extended(frames)
    new = np.tensordot([0.3, -1, 2, 0.5], directions, 1).astype(np.float32)
    weights = new[found.probes].reshape(-1) @ found.solver
    assert len(found.probes) <= PROBES
    np.testing.assert_allclose(np.tensordot(weights, found.basis, 1), new, atol=1e-6)


def test_a_take_adds_the_directions_that_the_person_lacks(
    frames: CorrectedFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = frames.correctives
    again = CorrectedFrames(frames.model, frames.rig, frames.z_id, frames.z_ex, frames.weights, known)
    again.learn(np.arange(3))
    assert again.correctives is known  # they were learned from the same frames
    monkeypatch.setattr(correctives, "ENOUGH_MEAN", 1e-5)
    again.learn(np.array([3]))
    assert len(again.correctives.basis) == len(known.basis) + 1
    np.testing.assert_array_equal(again.correctives.basis[: len(known.basis)], known.basis)
    assert not again._weights(np.array([3]))[1].any()


def test_frames_to_learn_from_are_unlike_each_other() -> None:
    codes = np.concatenate([np.zeros((50, 2)), [[1.0, 0], [1.01, 0], [0, 2]]])
    assert set(farthest(codes, 3)) <= {0, 50, 51, 52} and 52 in farthest(codes, 3)
    assert len(farthest(codes[:2], 5)) == 2
