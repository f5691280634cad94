from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nphm_track import expression_prior, landmark_model
from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.conventions import LIPS
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.rig import RigLandmarks
from nphm_track.tracking.fit import (
    FIT_POINTS,
    _frame_codes,
    head_landmarks,
    landmark_carrier,
    point_weights,
    solve_poses,
)
from nphm_track.tracking.rest import (
    frame_weights,
    landmark_effects,
    landmark_evidence,
    rest_weights,
)


def test_recovers_part_of_where_a_person_rests() -> None:
    """Brows too low in all frames: by as much as frames share in errors, so most of it is left to who the person is."""
    model = load_head_model()
    carry = landmark_carrier(model, np.zeros(model.config.identity_dim, np.float32))
    basis = model.expression_basis.detach().numpy()
    names = model.config.expression_names
    rng = np.random.default_rng(0)
    z_ex = (rng.uniform(0, 0.2, (6, len(names))) @ basis.T).astype(np.float32)
    rest = np.zeros(len(names))
    rest[[names.index("browDown_L"), names.index("browDown_R")]] = 0.3
    camera = Intrinsics.from_focal(900.0, (640, 480))
    R = np.tile(np.diag([1.0, -1.0, -1.0]), (6, 1, 1))
    t = np.tile([0.0, 0.0, 0.6], (6, 1))

    def project(codes: np.ndarray) -> np.ndarray:
        points = head_landmarks(carry, codes.astype(np.float32)).astype(np.float64)
        return camera.project(points @ R.swapaxes(-1, -2) + t[:, None])

    seen = project(z_ex + rest @ basis.T) + rng.normal(0, 0.3, (6, 1, 2))
    points = head_landmarks(carry, z_ex)
    effect = landmark_effects(carry, z_ex.mean(0))

    def solve(share: float = 1, copies: int = 1) -> np.ndarray:
        frames = (np.concatenate([a] * copies) for a in (points, seen, R, t))
        believed = replace(landmark_model.REST, sigma=landmark_model.REST.sigma / share)
        return rest_weights(landmark_evidence(effect, *frames, camera, FIT_POINTS, believed, eye_distance=130.0))

    def missed(weights: np.ndarray) -> float:
        return float(np.linalg.norm(project(z_ex + weights @ basis.T) - seen, axis=-1)[:, 17:27].mean())

    solved = solve()
    assert np.abs(solved).max() <= expression_prior.REST.step
    assert missed(solved) < 0.93 * missed(0 * solved)
    assert missed(solve(landmark_model.REST.shared_sigma / 0.01)) < 0.5 * missed(0 * solved)
    np.testing.assert_allclose(solve(copies=2), solved, atol=1e-9)  # more frames are not more evidence
    torch.testing.assert_close(torch.tensor(points), torch.tensor(head_landmarks(carry, z_ex)))  # nothing was changed


def test_leaves_a_fitting_head_alone() -> None:
    model = load_head_model()
    carry = landmark_carrier(model, np.zeros(model.config.identity_dim, np.float32))
    z_ex = np.zeros((3, model.config.expression_dim), np.float32)
    camera = Intrinsics.from_focal(900.0, (640, 480))
    R, t = np.tile(np.diag([1.0, -1.0, -1.0]), (3, 1, 1)), np.tile([0.0, 0.0, 0.6], (3, 1))
    points = head_landmarks(carry, z_ex)
    pixels = camera.project(points.astype(np.float64) @ R.swapaxes(-1, -2) + t[:, None])
    effect = landmark_effects(carry, z_ex.mean(0))
    evidence = landmark_evidence(effect, points, pixels, R, t, camera, FIT_POINTS, landmark_model.FRAME, 130.0)
    np.testing.assert_allclose(rest_weights(evidence), 0, atol=1e-4)
    rest = np.zeros((3, len(model.config.expression_names)))
    np.testing.assert_allclose(frame_weights(evidence, rest, rest), 0, atol=1e-4)


def test_each_frame_gets_its_own_expression_in_any_pose() -> None:
    """One frame with raised brows, one with a blink, seen in poses that are a little off."""
    model = load_head_model()
    carry = landmark_carrier(model, np.zeros(model.config.identity_dim, np.float32))
    basis, names = model.expression_basis.detach().numpy(), model.config.expression_names
    truth = np.zeros((2, len(names)))
    truth[0, [names.index("browOuterUp_L"), names.index("browOuterUp_R")]] = 0.4
    truth[1, [names.index("eyeBlink_L"), names.index("eyeBlink_R")]] = 0.6
    camera = Intrinsics.from_focal(900.0, (640, 480))
    R, t = np.tile(np.diag([1.0, -1.0, -1.0]), (2, 1, 1)), np.tile([0.0, 0.0, 0.6], (2, 1))
    points = head_landmarks(carry, (truth @ basis.T).astype(np.float32)).astype(np.float64)
    pixels = camera.project(points @ R.swapaxes(-1, -2) + t[:, None])
    neutral = head_landmarks(carry, np.zeros((2, model.config.expression_dim), np.float32))
    believed = landmark_model.LandmarkModel(0.02, "eyes")
    off = t + np.array([0.002, -0.003, 0.01])
    effect = landmark_effects(carry, np.zeros(model.config.expression_dim, np.float32))
    evidence = landmark_evidence(effect, neutral, pixels, R, off, camera, FIT_POINTS, believed, np.full(2, 130.0))
    found = frame_weights(evidence, 0 * truth, 0 * truth)
    after = head_landmarks(carry, (found @ basis.T).astype(np.float32)).astype(np.float64)
    brows, lids = slice(17, 27), slice(36, 48)
    for frame, part in ((0, brows), (1, lids)):
        missed = np.linalg.norm(points[frame] - neutral[frame], axis=-1)[part].mean()
        left = np.linalg.norm(points[frame] - after[frame], axis=-1)[part].mean()
        assert left < 0.6 * missed
    assert np.abs(found[0, names.index("eyeBlink_L")]) < 0.2 < found[1, names.index("eyeBlink_L")]


def test_a_gap_between_the_lips_says_more_than_either_lip() -> None:
    """Points that are not known well put both rims 4 % of the eye distance too low: the gap stays the picture's."""
    model = load_head_model()
    carry = landmark_carrier(model, np.zeros(model.config.identity_dim, np.float32))
    basis, names = model.expression_basis.detach().numpy(), model.config.expression_names
    camera = Intrinsics.from_focal(900.0, (640, 480))
    z_ex = np.zeros((1, model.config.expression_dim), np.float32)
    opened = head_landmarks(carry, (0.3 * basis[:, names.index("jawOpen")])[None])[0]
    pixels = _project(opened, camera)[None]
    lips = [FIT_POINTS.index(p) for p in LIPS if p in FIT_POINTS]
    pixels[:, lips, 1] += 5
    points, effect = head_landmarks(carry, z_ex), landmark_effects(carry, z_ex[0])
    pairs = landmark_model.openings(FIT_POINTS)[:3]

    def gap_of(believed: landmark_model.LandmarkModel) -> float:
        evidence = landmark_evidence(effect, points, pixels, R[None], T[None], camera, FIT_POINTS, believed, 130.0)
        rest = np.zeros((1, len(names)))
        moved = head_landmarks(carry, (frame_weights(evidence, rest, rest) @ basis.T).astype(np.float32))[0]
        return float(np.diff(moved[pairs, 1], axis=1).mean() / np.diff(opened[pairs, 1], axis=1).mean())

    with_gaps, without = (gap_of(replace(landmark_model.FRAME, sigma=0.05, opening=o)) for o in (0.006, np.inf))
    assert abs(with_gaps - 1) < 0.5 * abs(without - 1)


def test_landmarks_do_not_lead_beyond_what_the_head_has_seen() -> None:
    """A mouth once wider open than the head's: jawOpen stops at the end of its range instead of tearing the lips."""
    model = load_head_model()
    carry = landmark_carrier(model, np.zeros(model.config.identity_dim, np.float32))
    basis, names = model.expression_basis.detach().numpy(), model.config.expression_names
    jaw = names.index("jawOpen")
    camera = Intrinsics.from_focal(900.0, (640, 480))
    log, z_ex = _frames_of(carry, (basis[:, jaw] * 0.9).astype(np.float32), camera, 6)
    wider = 0.7 * landmark_effects(carry, z_ex[0])[jaw]
    log["landmarks"][2, list(FIT_POINTS), :2] = _project(head_landmarks(carry, z_ex[:1])[0] + wider, camera)
    added = _frame_codes(carry, log, np.ones(6, bool), z_ex, camera)
    weights = (z_ex + added) @ np.linalg.pinv(basis).T
    assert weights[:, jaw].argmax() == 2 and weights[2, jaw] > 1.0
    assert weights.max() < expression_prior.FRAME.high + 1e-3
    assert weights.min() > expression_prior.FRAME.low - 1e-3


def test_lips_close_without_a_jaw_that_closes_further_than_its_teeth() -> None:
    """A frame whose lower lip and chin are higher than the head's at rest: other shapes do what the jaw may not."""
    model = load_head_model()
    carry = landmark_carrier(model, np.zeros(model.config.identity_dim, np.float32))
    basis, names = model.expression_basis.detach().numpy(), model.config.expression_names
    jaw = names.index("jawOpen")
    camera = Intrinsics.from_focal(900.0, (640, 480))
    log, z_ex = _frames_of(carry, np.zeros(model.config.expression_dim, np.float32), camera, 12)
    higher = -0.2 * landmark_effects(carry, z_ex[0])[jaw]
    log["landmarks"][2, list(FIT_POINTS), :2] = _project(head_landmarks(carry, z_ex[:1])[0] + higher, camera)
    added = _frame_codes(carry, log, np.ones(12, bool), z_ex, camera)
    weights = (z_ex + added) @ np.linalg.pinv(basis).T
    assert weights[:, jaw].min() > -1e-4
    lips = landmark_model.openings(FIT_POINTS)[:3]
    gap, wanted = (
        np.diff(points[lips, 1], axis=1).mean()
        for points in (head_landmarks(carry, (z_ex + added)[2:3])[0], head_landmarks(carry, z_ex[:1])[0] + higher)
    )
    at_rest = np.diff(head_landmarks(carry, z_ex[:1])[0][lips, 1], axis=1).mean()
    assert abs(gap - wanted) < 0.2 * abs(at_rest - wanted)


def test_corners_that_a_squeezed_eye_draws_out_bring_no_head_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network puts them up to a sixth of the eyes' distance further apart, which no expression of the head does."""
    model = load_head_model()
    carry = landmark_carrier(model, np.zeros(model.config.identity_dim, np.float32))
    basis, names = model.expression_basis.detach().numpy(), model.config.expression_names
    camera = Intrinsics.from_focal(900.0, (640, 480))
    blinks = basis[:, [names.index(f"eyeBlink_{side}") for side in "LR"]].sum(1)
    log, z_ex = _frames_of(carry, (0.8 * blinks).astype(np.float32), camera, 12)
    drawn = log["landmarks"][2]
    width = drawn[263, 0] - drawn[33, 0]
    for corner, share in ((33, -1), (263, 1)):
        drawn[corner, 0] += share * width / 12
    pixels = log["landmarks"][:, list(FIT_POINTS), :2].astype(np.float64)

    def nearer() -> float:
        """Metres by which the head of the frame is nearer than those of the others."""
        added = _frame_codes(carry, log, np.ones(12, bool), z_ex, camera)
        _, t = solve_poses(head_landmarks(carry, z_ex + added), pixels, camera, point_weights())
        return float(t[0, 2] - t[2, 2])

    held = nearer()
    monkeypatch.setattr(landmark_model, "FRAME", replace(landmark_model.FRAME, distance=np.inf))
    assert abs(held) < 0.5 * nearer()


def test_what_all_frames_share_is_not_added_to_each() -> None:
    """It may be the person or the landmark network: the rest expression says how much of it is an expression."""
    model = load_head_model()
    carry = landmark_carrier(model, np.zeros(model.config.identity_dim, np.float32))
    camera = Intrinsics.from_focal(900.0, (640, 480))
    log, z_ex = _frames_of(carry, np.zeros(model.config.expression_dim, np.float32), camera, 3)
    jaw = 0.4 * landmark_effects(carry, z_ex[0])[model.config.expression_names.index("jawOpen")]
    log["landmarks"][:, list(FIT_POINTS), :2] = _project(head_landmarks(carry, z_ex[:1])[0] + jaw, camera)
    np.testing.assert_allclose(_frame_codes(carry, log, np.ones(3, bool), z_ex, camera), 0, atol=1e-5)


R, T = np.diag([1.0, -1.0, -1.0]), np.array([0.0, 0.0, 0.6])


def _project(points: NDArray[np.floating], camera: Intrinsics) -> NDArray[np.float64]:
    return camera.project(points @ R.T + T)


def _frames_of(
    carry: RigLandmarks, code: NDArray[np.float32], camera: Intrinsics, count: int
) -> tuple[NDArray, NDArray[np.float32]]:
    """``count`` equal frames whose landmarks are those of ``code``, and their codes."""
    z_ex = np.repeat(code[None], count, 0)
    points = np.zeros((478, 3))
    points[list(FIT_POINTS)] = head_landmarks(carry, z_ex[:1])[0]
    points[[33, 263]] = points[list(FIT_POINTS)][[36, 45]]
    log = np.zeros(count, np.dtype([("landmarks", "f4", (478, 3))]))
    log["landmarks"][..., :2] = _project(points, camera)
    return log, z_ex
