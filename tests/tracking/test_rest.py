from __future__ import annotations

import numpy as np
import torch

from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.heads.loading import load_head_model
from nphm_track.tracking.fit import head_landmarks, landmark_carrier, point_weights
from nphm_track.tracking.rest import LIMIT, landmark_effects, rest_weights


def test_recovers_where_a_person_rests() -> None:
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
    weights = point_weights().double().numpy()
    solved = rest_weights(
        landmark_effects(carry, z_ex.mean(0)), points, seen, R, t, camera, weights, eye_distance=130.0
    )
    assert np.abs(solved).max() <= LIMIT
    brows = slice(17, 27)
    before = np.linalg.norm(project(z_ex) - seen, axis=-1)[:, brows].mean()
    after = np.linalg.norm(project(z_ex + solved @ basis.T) - seen, axis=-1)[:, brows].mean()
    assert after < 0.5 * before
    torch.testing.assert_close(torch.tensor(points), torch.tensor(head_landmarks(carry, z_ex)))  # nothing was changed


def test_leaves_a_fitting_head_alone() -> None:
    model = load_head_model()
    carry = landmark_carrier(model, np.zeros(model.config.identity_dim, np.float32))
    z_ex = np.zeros((3, model.config.expression_dim), np.float32)
    camera = Intrinsics.from_focal(900.0, (640, 480))
    R, t = np.tile(np.diag([1.0, -1.0, -1.0]), (3, 1, 1)), np.tile([0.0, 0.0, 0.6], (3, 1))
    points = head_landmarks(carry, z_ex)
    pixels = camera.project(points.astype(np.float64) @ R.swapaxes(-1, -2) + t[:, None])
    solved = rest_weights(
        landmark_effects(carry, z_ex.mean(0)), points, pixels, R, t, camera, point_weights().double().numpy(), 130.0
    )
    np.testing.assert_allclose(solved, 0, atol=1e-4)
