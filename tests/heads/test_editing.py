"""Codes can be drawn, mirrored, mixed, named by ARKit and handed from one face to another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track.conventions import BLENDSHAPE_NAMES, MODEL_UNIT
from nphm_track.errors import InputError, ModelError
from nphm_track.heads import editing
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.loading import load_head_model

MM = 1000 * MODEL_UNIT
FLIP = torch.tensor([-1.0, 1.0, 1.0])
NO_GAZE = [i for i, n in enumerate(BLENDSHAPE_NAMES) if n != "_neutral" and "LookIn" not in n and "LookOut" not in n]


@pytest.fixture(scope="module")
def model() -> NphmDecoder:
    return load_head_model()


@pytest.fixture(scope="module")
def mirror(model: NphmDecoder) -> editing.IdentityMirror:
    return editing.IdentityMirror(model)


@dataclass
class Clip:
    z_ex: NDArray[np.float32]


def surface(model: NphmDecoder, z_id: Tensor, z_ex: Tensor) -> Tensor:
    """Points [N, 3] on the posed surface: the anchors of the mean head, brought onto the zero level."""
    generator = torch.Generator().manual_seed(3)
    x = model.mean_anchors.repeat(4, 1) + 0.06 * torch.randn(4 * len(model.mean_anchors), 3, generator=generator)
    for _ in range(8):
        sdf, gradient = model.gradient(x, z_id, z_ex)
        x = x - (gradient * (sdf / gradient.square().sum(-1).clamp_min(0.1))[:, None]).clamp(-0.1, 0.1)
    return x[model.gradient(x, z_id, z_ex)[0].abs() * MM < 0.05]


def test_random_identities_are_of_the_prior_and_reproducible(model: NphmDecoder) -> None:
    z_id = editing.random_identities(model, 64, seed=5)
    w, rest = editing.identity_weights(model, z_id)
    assert torch.equal(z_id, editing.random_identities(model, 64, seed=5))
    assert not torch.allclose(z_id, editing.random_identities(model, 64, seed=6))
    assert w.abs().max() < editing.CUT + 1e-2 and 0.9 < w[:, : editing.ICT_COLUMNS].std() < 1.05
    assert w[:, editing.ICT_COLUMNS :].abs().sum() < 1e-1 and rest.abs().max() < 1e-3


def test_annys_heads_need_a_model_that_knows_them(model: NphmDecoder) -> None:
    if model.config.identity_basis <= editing.ICT_COLUMNS:
        with pytest.raises(ModelError, match="Anny"):
            editing.random_identities(model, 1, source="anny")
        return
    w, _ = editing.identity_weights(model, editing.random_identities(model, 8, source="anny"))
    assert w[:, : editing.ICT_COLUMNS].abs().max() < 1e-2
    assert torch.allclose(w[:, editing.ICT_COLUMNS], torch.ones(8), atol=1e-2)


def test_swapping_local_codes_is_the_mirror_where_the_shared_parts_are_symmetric(build: Callable[..., Any]) -> None:
    model = build("silu", seed=2)
    c = model.config
    model.anchor_mlp[2].weight.zero_()
    model.anchor_mlp[2].bias.zero_()
    model.ensemble.weights[0][c.n_pairs :, :, c.global_dim + c.local_dim] = 0  # the members off the pairs: even in x
    z_id, x = torch.randn(2, c.identity_dim, dtype=torch.float64), torch.randn(2, 50, 3, dtype=torch.float64) * 0.4
    mirrored = editing.IdentityMirror(model)(z_id)
    assert torch.allclose(model.canonical_sdf(x * FLIP, mirrored), model.canonical_sdf(x, z_id), atol=1e-10)
    assert not torch.allclose(model.canonical_sdf(x * FLIP, z_id), model.canonical_sdf(x, z_id), atol=1e-3)


def test_the_head_of_a_mirrored_code_is_the_mirrored_head(model: NphmDecoder, mirror: editing.IdentityMirror) -> None:
    neutral = torch.zeros(model.config.expression_dim)
    for z_id in editing.random_identities(model, 3, seed=1):
        twin = mirror(z_id)
        points = surface(model, z_id, neutral)
        off = model.sdf(points * FLIP, twin, neutral).abs().mean() * MM
        asymmetry = model.sdf(points * FLIP, z_id, neutral).abs().mean() * MM
        assert len(points) > 150 and off < 0.35 and off < 0.6 * asymmetry
        assert (mirror(twin) - z_id).norm() < 0.15 * z_id.norm()


def test_a_winking_head_and_its_mirror(model: NphmDecoder, mirror: editing.IdentityMirror) -> None:
    wink = editing.expression_code(model, {"eyeBlink_L": 1, "mouthSmile_L": 0.8, "jawLeft": 0.6})
    twin_ex = editing.mirror_expression(model, wink)
    weights = dict(zip(model.config.expression_names, editing.expression_weights(model, twin_ex), strict=True))
    assert weights["eyeBlink_R"] == pytest.approx(1, abs=1e-3) and weights["jawRight"] == pytest.approx(0.6, abs=1e-3)
    assert weights["eyeBlink_L"] < 1e-3 and torch.allclose(editing.mirror_expression(model, twin_ex), wink, atol=1e-4)
    z_id = editing.random_identities(model, 1, seed=4)[0]
    points = surface(model, z_id, wink)
    off = model.sdf(points * FLIP, mirror(z_id), twin_ex).abs().mean() * MM
    assert off < 0.45 and off < 0.5 * model.sdf(points * FLIP, z_id, wink).abs().mean() * MM


def test_what_no_weight_explains_survives_mirroring(model: NphmDecoder) -> None:
    z_ex = torch.randn(3, model.config.expression_dim, generator=torch.Generator().manual_seed(0))
    twice = editing.mirror_expression(model, editing.mirror_expression(model, z_ex))
    assert torch.allclose(twice, z_ex, atol=1e-4)


def test_interpolation_keeps_its_ends() -> None:
    a, b = torch.randn(2, 7)
    steps = editing.interpolate(a, b, 5)
    assert torch.allclose(steps[0], a) and torch.allclose(steps[-1], b) and torch.allclose(steps[2], (a + b) / 2)


def test_arkit_weights_round_trip(model: NphmDecoder) -> None:
    arkit = torch.rand(4, len(BLENDSHAPE_NAMES), generator=torch.Generator().manual_seed(1))
    back = editing.arkit_from_code(model, editing.code_from_arkit(model, arkit))
    assert torch.allclose(back[:, NO_GAZE], arkit[:, NO_GAZE], atol=1e-3)
    assert back[:, [i for i in range(52) if i not in NO_GAZE]].abs().max() == 0


def test_arkit_names_keep_their_side_and_meaning(model: NphmDecoder) -> None:
    names = model.config.expression_names
    to_model, to_arkit = editing.arkit_maps(names)
    targets = {n: {names[i] for i in np.flatnonzero(to_model[:, k])} for k, n in enumerate(BLENDSHAPE_NAMES)}
    assert targets["eyeBlinkLeft"] == {"eyeBlink_L"} and targets["mouthLeft"] == {"mouthLeft"}
    assert targets["browInnerUp"] == {"browInnerUp_L", "browInnerUp_R"}
    assert targets["cheekPuff"] == {"cheekPuff_L", "cheekPuff_R"} and targets["_neutral"] == set()
    one_sided = np.zeros(len(names))
    one_sided[[names.index("browInnerUp_L"), names.index("cheekRaiser_R")]] = 1
    found = dict(zip(BLENDSHAPE_NAMES, to_arkit @ one_sided, strict=True))
    assert {n: v for n, v in found.items() if v} == {"browInnerUp": 0.5, "cheekSquintRight": 1.0}


def test_expressions_by_name(model: NphmDecoder) -> None:
    own = editing.expression_code(model, {"mouthSmile_L": 0.7, "browInnerUp_L": 1, "browInnerUp_R": 1})
    arkit = editing.expression_code(model, {"mouthSmileLeft": 0.7, "browInnerUp": 1})
    assert torch.allclose(own, arkit, atol=1e-6)
    both, one = (editing.expression_code(model, {n: 1.0}) for n in ("mouthSmile", "mouthSmile_L"))
    assert torch.allclose(both, one + editing.mirror_expression(model, one), atol=1e-3)
    with pytest.raises(InputError, match="grin"):
        editing.expression_code(model, {"grin": 1.0})


def test_transfer_moves_what_is_above_rest(model: NphmDecoder) -> None:
    basis = model.expression_basis.detach().numpy()
    rng = np.random.default_rng(0)
    speech = np.zeros((40, basis.shape[1]), np.float32)
    speech[20:, rng.permutation(basis.shape[1])[:6]] = rng.uniform(0.2, 1, (20, 6))
    source_rest, target_rest = 0.02 * rng.standard_normal((2, len(basis))).astype(np.float32)
    source = Clip(speech @ basis.T + source_rest)
    source.z_ex[3] = np.nan
    target = Clip(np.tile(target_rest, (9, 1)))
    moved = editing.transfer_expressions(source, target)
    assert np.isnan(moved[3]).all() and moved.dtype == np.float32
    known = np.arange(40) != 3
    assert np.allclose(moved[known], (speech @ basis.T + target_rest)[known], atol=1e-5)


def test_transfer_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="different head models"):
        editing.transfer_expressions(Clip(np.zeros((2, 64), np.float32)), Clip(np.zeros((2, 100), np.float32)))
    with pytest.raises(InputError, match="no frame"):
        editing.rest_expression(np.full((3, 64), np.nan))


def test_reports_tell_training_codes_from_others_and_clamping_mends_them(model: NphmDecoder) -> None:
    z_id = editing.random_identities(model, 1, seed=9)[0]
    z_ex = editing.expression_code(model, {"jawOpen": 1.0})
    fine = editing.code_report(model, z_id, z_ex)
    assert fine.plausible and 0.8 < fine.identity_rms < 1.2 and fine.identity_rest < 1e-3
    assert fine.expression_highest == pytest.approx(1, abs=1e-2) and fine.expression_rest < 1e-2
    noise = torch.randn(len(z_id), generator=torch.Generator().manual_seed(2)) * z_id.std()
    wild_id, wild_ex = 4 * z_id + noise, 3 * z_ex - editing.expression_code(model, {"mouthPucker": 1.0})
    assert not editing.code_report(model, wild_id, z_ex).plausible
    assert not editing.code_report(model, z_id, wild_ex).plausible
    kept_id, kept_ex = editing.clamp_codes(model, wild_id, wild_ex)
    assert editing.code_report(model, kept_id, kept_ex).plausible
    same_id, same_ex = editing.clamp_codes(model, z_id, z_ex)
    assert torch.allclose(same_id, z_id, atol=1e-2) and torch.allclose(same_ex, z_ex, atol=1e-2)


def test_models_without_priors_say_so(build: Callable[..., Any]) -> None:
    bare = build("silu")
    for call in (
        lambda: editing.random_identities(bare, 1),
        lambda: editing.expression_weights(bare, torch.zeros(bare.config.expression_dim)),
    ):
        with pytest.raises(ModelError, match="silu"):
            call()
