"""The rig: frames as neutral + weights x shapes, lids that close, rigid teeth and eyeballs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nphm_track.conventions import ARKIT_BLENDSHAPES
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.editing import expression_code, random_identities
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.rig import OVERLAP, Rig, eye_turn, looking_along, split_lids
from nphm_track.heads.template import load_template
from nphm_track.heads.wrap import wrap

AHEAD = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])


@pytest.fixture(scope="module")
def model() -> NphmDecoder:
    return load_head_model()


@pytest.fixture(scope="module")
def rig(model: NphmDecoder) -> Rig:
    template = load_template()
    return Rig.of(template, wrap(template, model, random_identities(model, 1, seed=3)[0]))


def weights(rig: Rig, **named: float) -> np.ndarray:
    w = np.zeros(len(rig.names), np.float32)
    for name, value in named.items():
        w[rig.names.index(name)] = value
    return w


def openings(rig: Rig, vertices: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Height of the eye's opening over the lower lid at each vertex of the upper lid's edge above it."""
    upper, lower = split_lids(rig.neutral, edge)
    lower = lower[np.argsort(vertices[lower, 0])]
    corner = 0.05 * np.ptp(vertices[lower, 0])
    inside = np.clip(vertices[upper, 0], vertices[lower[0], 0] + corner, vertices[lower[-1], 0] - corner)
    upper = upper[inside == vertices[upper, 0]]
    return vertices[upper, 1] - np.interp(vertices[upper, 0], vertices[lower, 0], vertices[lower, 1])


SIDES = ("left", "right")


def test_head_at_rest_is_the_neutral_one(rig: Rig) -> None:
    np.testing.assert_allclose(rig.vertices(weights(rig)), rig.neutral, atol=1e-7)


def test_frame_is_neutral_and_weighted_shapes(rig: Rig) -> None:
    w = weights(rig, jawOpen=0.3, mouthSmile_L=0.7, browDown_R=0.4)
    skin = slice(0, rig.template.skin_size)
    np.testing.assert_allclose(rig.vertices(w)[skin], (rig.neutral + np.tensordot(w, rig.shapes, 1))[skin], atol=1e-6)


def test_weights_of_a_code_are_those_it_was_made_of(rig: Rig, model: NphmDecoder) -> None:
    named = {"jawOpen": 0.4, "mouthSmile_L": 0.6, "browDown_R": 0.3}
    found = rig.weights(model, expression_code(model, named).detach())
    np.testing.assert_allclose(found, weights(rig, **named), atol=1e-4)


@pytest.mark.parametrize("side", [0, 1])
def test_full_blink_closes_the_eye_all_along(rig: Rig, side: int) -> None:
    edge = rig.template.lid_edges[side]
    shut = rig.vertices(weights(rig, **{f"eyeBlink_{'LR'[side]}": 1}))
    assert openings(rig, rig.neutral, edge).max() > 0.006
    assert openings(rig, shut, edge).max() < 0.0003
    assert np.median(openings(rig, shut, edge)) == pytest.approx(-OVERLAP, abs=3e-4)


def test_lids_pass_each_other_no_further_than_when_shut(rig: Rig, model: NphmDecoder) -> None:
    code = expression_code(model, {"eyeBlink_L": 1.0, "eyeSquint_L": 0.7, "eyeLookDown_L": 0.8}).detach()
    edge = rig.template.lid_edges[0]
    w = rig.weights(model, code)
    assert openings(rig, rig.vertices(w), edge).min() > -0.0025
    unlimited = weights(rig, eyeBlink_L=1, eyeSquint_L=0.7, eyeLookDown_L=0.8)
    assert openings(rig, rig.vertices(unlimited), edge).min() < -0.005


def test_half_closed_lids_stay_in_front_of_the_eye(rig: Rig) -> None:
    half = rig.vertices(weights(rig, eyeBlink_L=0.5, eyeBlink_R=0.5))
    for eye, edge in zip(rig.eyes, rig.template.lid_edges, strict=True):
        assert (np.linalg.norm(half[edge] - eye.centre, axis=1) - eye.radius).min() > -0.0015


def test_lower_teeth_move_rigidly_with_the_jaw_and_upper_ones_rest(rig: Rig) -> None:
    opened = rig.vertices(weights(rig, jawOpen=0.8, jawLeft=0.5, mouthSmile_L=1))
    upper, lower = (rig.template.part(f"teeth_{name}") for name in ("upper", "lower"))
    np.testing.assert_allclose(opened[upper], rig.neutral[upper], atol=1e-7)
    x, y = rig.neutral[lower][::40], opened[lower][::40]
    np.testing.assert_allclose(
        np.linalg.norm(x[:, None] - x, axis=-1), np.linalg.norm(y[:, None] - y, axis=-1), atol=2e-6
    )
    linear = np.tensordot(weights(rig, jawOpen=0.8, jawLeft=0.5), rig.shapes, 1)[lower]
    assert np.linalg.norm(opened[lower] - rig.neutral[lower] - linear, axis=1).mean() < 0.0025


def test_eyes_turn_about_their_centres_to_where_they_look(rig: Rig) -> None:
    gaze = np.stack([_towards(20, 10), _towards(-15, -5)])
    posed = rig.vertices(weights(rig), gaze)
    for eye, side, direction in zip(rig.eyes, ("left", "right"), gaze, strict=True):
        own = rig.template.part(f"eye_{side}")
        rest, turned = rig.neutral[own] - eye.centre, posed[own] - eye.centre
        np.testing.assert_allclose(np.linalg.norm(rest, axis=1), np.linalg.norm(turned, axis=1), atol=1e-6)
        towards = eye_turn(direction) @ eye.axis
        assert (rest @ eye.axis).argmax() == (turned @ towards).argmax()
    np.testing.assert_array_equal(rig.vertices(weights(rig), np.full((2, 3), np.nan)), rig.vertices(weights(rig)))


def test_lids_follow_the_eyes_and_stay_as_open(rig: Rig, model: NphmDecoder) -> None:
    code = torch.zeros(model.config.expression_dim)
    w = rig.weights(model, code, np.stack([_towards(15, -15), _towards(15, -15)]))
    assert w[rig.names.index("eyeLookOut_L")] == pytest.approx(0.5, abs=1e-3)
    assert w[rig.names.index("eyeLookIn_R")] == pytest.approx(0.5, abs=1e-3)
    assert w[rig.names.index("eyeLookDown_L")] == pytest.approx(0.5, abs=1e-3)
    assert w[rig.names.index("eyeLookIn_L")] == w[rig.names.index("eyeLookUp_R")] == 0
    assert w.min() >= 0 and not rig.weights(model, code, AHEAD).any()
    for edge in rig.template.lid_edges:
        rest, looking = (openings(rig, rig.vertices(k), edge) for k in (0 * w, w))
        assert np.median(looking) == pytest.approx(np.median(rest), abs=0.001)


def test_arkits_shapes_and_weights_make_the_same_frame(rig: Rig) -> None:
    w = weights(rig, browInnerUp_L=0.7, browInnerUp_R=0.2, cheekPuff_R=0.5, cheekRaiser_L=0.3, mouthSmile_L=0.6)
    shapes = rig.arkit_shapes()
    assert list(shapes)[:52] == [*ARKIT_BLENDSHAPES, "tongueOut"]
    named = dict(zip(shapes, rig.arkit_weights(w), strict=True))
    assert named["browInnerUp"] == pytest.approx(0.2) and named["browInnerUpLeft"] == pytest.approx(0.5)
    made = rig.neutral + sum(weight * shapes[name] for name, weight in named.items())
    np.testing.assert_allclose(made, rig.vertices(w), atol=2e-6)


def test_arkits_jaw_moves_the_teeth_and_no_shape_the_eyeballs(rig: Rig) -> None:
    shapes = rig.arkit_shapes()
    assert np.linalg.norm(shapes["jawOpen"][rig.template.part("teeth_lower")], axis=1).min() > 0.005
    assert not any(shape[rig.template.part(f"eye_{side}")].any() for shape in shapes.values() for side in SIDES)


def test_tongue_out_moves_the_tongue_alone_and_past_the_lips(rig: Rig) -> None:
    template, moved = rig.template, rig.arkit_shapes()["tongueOut"]
    assert set(np.flatnonzero(moved.any(1))) <= set(template.tongue) <= set(range(*template.parts["gums"]))
    posed = rig.neutral + moved
    lips = template.landmarks(rig.neutral)[13, 2]
    tip = posed[template.tongue][posed[template.tongue, 2].argmax()]
    assert lips + 0.01 < tip[2] < lips + 0.03 and abs(tip[0]) < 0.002
    root = template.neutral[template.tongue, 2] < 0
    assert not moved[template.tongue][root].any()


def test_weights_of_many_frames_are_those_of_each(rig: Rig, model: NphmDecoder) -> None:
    codes = 0.3 * torch.randn(3, model.config.expression_dim, generator=torch.Generator().manual_seed(0))
    gaze = np.stack([np.stack([_towards(5 * k, 0), _towards(-5 * k, 3)]) for k in range(3)])
    together = rig.weights(model, codes, gaze)
    for k in range(3):
        np.testing.assert_allclose(together[k], rig.weights(model, codes[k], gaze[k]), atol=1e-5)


def test_turn_towards_a_direction_leads_there_without_a_roll() -> None:
    direction = _towards(25, -12)
    turn = looking_along(direction)
    np.testing.assert_allclose(turn @ [0, 0, 1], direction, atol=1e-6)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-6)
    assert abs(turn[1, 0]) < 1e-7  # the eye's own horizon stays level


def _towards(yaw: float, pitch: float) -> np.ndarray:
    """Unit vector [3] turned by degrees to +x and to +y from +z."""
    a, b = np.deg2rad([yaw, pitch])
    return np.array([np.sin(a) * np.cos(b), np.sin(b), np.cos(a) * np.cos(b)])


def test_weights_by_arkits_names_are_the_rigs_own_where_these_are_weights(rig: Rig) -> None:
    w = weights(rig, jawOpen=0.4, mouthSmile_L=0.6, browDown_R=0.3, browInnerUp_L=0.5, browInnerUp_R=0.5)
    (found,) = rig.bounded_arkit_weights(w[None])
    want = {"jawOpen": 0.4, "mouthSmileLeft": 0.6, "browDownRight": 0.3, "browInnerUp": 0.5}
    np.testing.assert_allclose(found, [want.get(name, 0) for name in ARKIT_BLENDSHAPES], atol=0.01)


def test_what_no_weight_may_do_others_do_as_far_as_they_can(rig: Rig) -> None:
    w = weights(rig, mouthSmile_L=-0.3, mouthSmile_R=-0.3, jawOpen=1.3, eyeSquint_L=0.5)
    (found,) = rig.bounded_arkit_weights(w[None])
    assert found.min() >= 0 and found.max() <= 1
    shapes = np.stack(list(rig.arkit_shapes().values())[: len(ARKIT_BLENDSHAPES)])
    skin = slice(0, rig.template.skin_size)
    wanted = np.tensordot(w, rig.shapes, 1)[skin]
    clipped = np.clip(rig.arkit_weights(w)[: len(shapes)], 0, 1)
    missed, without = (np.linalg.norm(np.tensordot(x, shapes, 1)[skin] - wanted) for x in (found, clipped))
    assert missed < 0.8 * without
    assert found[ARKIT_BLENDSHAPES.index("mouthFrownLeft")] > 0.05
