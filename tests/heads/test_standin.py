"""The stand-in for the public checkpoint: imported, wrapped, its rig solved, registered to a scan of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nphm_track.conventions import FACE_OUTLINE, MODEL_UNIT
from nphm_track.heads.config import MONONPHM
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.mesh import distance_and_gradient, extract_canonical
from nphm_track.heads.mononphm import AnchoredDecoder
from nphm_track.heads.registration import mean_landmarks, register
from nphm_track.rendering.rasteriser import vertex_normals


@pytest.fixture(scope="module")
def model(standin: Path) -> AnchoredDecoder:
    found = load_head_model(standin)
    assert isinstance(found, AnchoredDecoder)
    return found


def test_it_has_mononphms_codes_and_members(model: AnchoredDecoder) -> None:
    c = model.config
    assert (c.identity_dim, c.expression_dim, c.n_members) == (2176, 100, 66)
    assert (c.hidden_layers, c.deform_layers, c.appearance) == (
        MONONPHM.hidden_layers,
        MONONPHM.deform_layers,
        True,
    )


def test_the_wrapped_template_places_the_landmarks_that_anchors_know(model: AnchoredDecoder) -> None:
    """Roughly: anchors are iBUG points as ICT-FaceKit has them, the 478 lie where the landmark network sees them."""
    marks, known = mean_landmarks(model), [p for p in model.known_landmarks if p not in FACE_OUTLINE]
    own = model.landmarks(model.mean_identity).detach().numpy() * MODEL_UNIT
    off = 1000 * np.linalg.norm(marks[known] - own[known], axis=1)
    assert np.median(off) < 4 and np.isfinite(marks).all()


def test_a_scan_of_one_of_its_heads_is_registered(model: AnchoredDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nphm_track.heads.registration.POOL", 1500)
    monkeypatch.setattr("nphm_track.heads.registration.LANDMARK_STEPS", 30)
    generator = torch.Generator().manual_seed(2)
    weights = 0.8 * torch.randn(model.config.identity_basis, generator=generator)
    z_id = (model.mean_identity + model.identity_basis @ weights).detach()
    mesh = extract_canonical(model, z_id, detail=0.3)
    points, normals = mesh.vertices.astype(np.float64), vertex_normals(mesh.vertices, mesh.faces)
    known = np.array(model.known_landmarks)
    marks = model.landmarks(z_id).detach().numpy()[known] * MODEL_UNIT
    found = register(model, points, normals, known, marks, steps=25, batch=200)
    face = points[(points[:, 2] > 0.02) & (points[:, 1] > -0.08) & (points[:, 1] < 0.08)]
    moved = found.pose.inverse(face)
    fitted = np.abs(distance_and_gradient(model, moved, torch.from_numpy(found.z_id), None)[0])
    mean = np.abs(distance_and_gradient(model, face, model.mean_identity, None)[0])
    assert found.z_id.shape == (2176,) and found.z_ex.shape == (100,)
    assert fitted.mean() < 0.6 * mean.mean()
