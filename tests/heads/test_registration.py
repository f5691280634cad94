from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import InputError, ModelError
from nphm_track.heads import registration
from nphm_track.heads.config import NPHM_SMALL
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.mesh import extract_canonical
from nphm_track.heads.registration import _outward, register, robust_similarity
from nphm_track.rendering.rasteriser import vertex_normals
from nphm_track.rigid import Similarity

TURN = Rotation.from_euler("xyz", [70, -40, 110], degrees=True).as_matrix()
POSE = Similarity(1000.0, TURN, np.array([300.0, -80, 900]))
"""Head to scan: millimetres, lying on its side."""


@dataclass(frozen=True)
class Sample:
    points: np.ndarray
    normals: np.ndarray
    landmarks: np.ndarray
    w: np.ndarray


@pytest.fixture(scope="module")
def model() -> NphmDecoder:
    return load_head_model()


@pytest.fixture(autouse=True)
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "POOL", 2500)


@pytest.fixture(scope="module")
def head(model: NphmDecoder) -> Sample:
    """Points of a head of the model's own, in the scan's frame."""
    w = np.random.default_rng(3).standard_normal(model.config.identity_basis).astype(np.float32) * 0.7
    z_id = model.identity_basis @ torch.from_numpy(w)
    mesh = extract_canonical(model, z_id, detail=0.5)
    normals = vertex_normals(mesh.vertices, mesh.faces) @ POSE.R.T
    landmarks = POSE(model.landmarks(z_id).numpy() * MODEL_UNIT)
    return Sample(POSE(mesh.vertices), normals, landmarks, w)


@pytest.fixture(scope="module")
def everything() -> np.ndarray:
    return np.arange(478)


class TestRegister:
    def test_finds_a_head_of_its_own(self, model: NphmDecoder, head: Sample, everything: np.ndarray) -> None:
        noisy = head.landmarks + np.random.default_rng(0).normal(0, 2, head.landmarks.shape)
        steps: list[int] = []
        fit = register(
            model,
            head.points,
            head.normals,
            everything,
            noisy,
            steps=60,
            batch=400,
            advance=lambda: steps.append(1),
        )
        assert len(steps) == 60
        assert fit.residual < 0.3 and fit.trusted > 0.95
        # a head's size and the scan's scale can take each other's place; what they make together is told
        own = fit.pose(model.landmarks(torch.from_numpy(fit.z_id)).detach().numpy() * MODEL_UNIT)
        assert np.linalg.norm(own - head.landmarks, axis=1).mean() < 1  # mm, of landmarks with errors of 2
        assert Rotation.from_matrix(POSE.R.T @ fit.pose.R).magnitude() < np.deg2rad(3)
        assert (fit.expression >= 0).all() and (fit.expression <= 1).all()
        assert fit.z_id.shape == (model.config.identity_dim,) and fit.z_ex.shape == (model.config.expression_dim,)
        face = torch.from_numpy(fit.pose.inverse(head.points) / MODEL_UNIT).float()
        distance = model.sdf(face, torch.from_numpy(fit.z_id), torch.from_numpy(fit.z_ex)).abs() * 1e3 * MODEL_UNIT
        assert float(distance.median()) < 0.4

    def test_is_deterministic_and_independent_of_unit(
        self, model: NphmDecoder, head: Sample, everything: np.ndarray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(registration, "LANDMARK_STEPS", 20)
        first, second = (
            register(model, head.points * k, None, everything, head.landmarks * k, steps=4, batch=100)
            for k in (1, 0.01)
        )
        assert np.allclose(first.z_id, second.z_id, atol=1e-3)
        assert np.isclose(first.pose.scale, 100 * second.pose.scale, rtol=1e-3)

    def test_hair_does_not_pull(self, model: NphmDecoder, head: Sample, everything: np.ndarray) -> None:
        """A sheet 12 mm in front of the forehead, as a fringe of hair, is not explained and moves nothing."""
        z_id = model.identity_basis @ torch.from_numpy(head.w)
        forehead = model.landmarks(z_id)[[10, 109, 338, 151, 9]].numpy() * MODEL_UNIT
        rng = np.random.default_rng(0)
        sheet = forehead[rng.integers(0, 5, 1500)] + rng.normal(0, 0.006, (1500, 3)) * [1, 1, 0] + [0, 0, 0.012]
        points = np.concatenate([head.points, POSE(sheet)])
        normals = np.concatenate([head.normals, np.tile(POSE.R[:, 2], (1500, 1))])
        fit = register(model, points, normals, everything, head.landmarks, steps=60, batch=400)
        own = torch.from_numpy(fit.pose.inverse(POSE(forehead)) / MODEL_UNIT).float()
        distance = model.sdf(own, torch.from_numpy(fit.z_id), torch.from_numpy(fit.z_ex)) * 1e3 * MODEL_UNIT
        assert float(distance.abs().max()) < 4

    def test_refuses_what_cannot_be_fitted(self, model: NphmDecoder, head: Sample, everything: np.ndarray) -> None:
        with pytest.raises(InputError, match="at least 4 landmarks"):
            register(model, head.points, None, np.arange(468, 478), head.landmarks[468:])
        with pytest.raises(InputError, match="at least 500"):
            register(model, head.points[:100], None, everything, head.landmarks)
        with pytest.raises(InputError, match="do not look like a face"):
            inside = np.random.default_rng(0).uniform(-0.02, 0.02, (3000, 3))
            inside += np.array([0, 0.05, -0.05])  # far from skin and mouth
            elsewhere = POSE(inside)
            register(model, elsewhere, None, everything, head.landmarks, steps=30, batch=100)
        with pytest.raises(ModelError, match="neither linear priors nor statistics"):
            register(NphmDecoder(NPHM_SMALL), head.points, None, everything, head.landmarks)


def test_inverse_of_a_pose() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3))
    assert np.allclose(POSE.inverse(POSE(x)), x)


def test_robust_similarity_ignores_wrong_correspondences() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 0.05, (60, 3))
    y = POSE(x) + rng.normal(0, 1.0, x.shape)
    y[:15] += 60
    found = robust_similarity(x, y)
    assert abs(found.scale / POSE.scale - 1) < 0.02
    assert np.abs(found(x[15:]) - POSE(x[15:])).max() < 3


def test_inward_normals_are_turned() -> None:
    points = np.random.default_rng(0).uniform([-0.05, -0.05, 0.05], [0.05, 0.05, 0.08], (50, 3))
    inward = np.tile([0.0, 0.0, -1.0], (50, 1))
    assert (_outward(inward, points)[:, 2] == 1).all() and (_outward(-inward, points)[:, 2] == 1).all()
