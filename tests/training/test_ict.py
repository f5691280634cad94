"""ICT-FaceKit as training heads: one closed, symmetric surface whose anchors mean what MonoNPHM's mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nphm_track.errors import InputError
from nphm_track.training import ict as I

PAIRED = ("eyeBlink", "eyeWide", "mouthSmile", "mouthFrown", "browDown", "cheekRaiser")
NAMES = (*(stem + side for stem in PAIRED for side in ("_L", "_R")), "jawOpen", "mouthPucker")


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "ict_facekit"


@pytest.fixture(scope="module")
def heads(folder: Path) -> I.IctHeads:
    return I.load_ict(folder)


def test_a_folder_without_the_model_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ict_facekit_light_full\.npz"):
        I.load_ict(tmp_path)


def test_shapes_and_scale(heads: I.IctHeads) -> None:
    v, e = len(heads.neutral), len(heads.expression_names)
    assert heads.identity.shape == (100, v, 3) and heads.expression.shape == (e, v, 3)
    assert heads.is_eye.shape == heads.is_pocket.shape == heads.mirror.shape == heads.source.shape == (v,)
    assert "jawOpen" in heads.expression_names and not any("Look" in n and "Out" in n for n in heads.expression_names)
    face = heads.neutral[heads.neutral[:, 1] > I.NECK_LEVEL]
    assert 0.13 < np.ptp(face[:, 0]) < 0.25  # metres from ear to ear
    assert heads.neutral[:, 2].argmax() in np.flatnonzero(np.abs(heads.neutral[:, 0]) < 0.01)  # the nose looks along +z


def test_surface_and_closing_form_one_closed_outward_surface(heads: I.IctHeads) -> None:
    """Each directed edge of skin, fans and eyeballs meets its opposite, so winding numbers are whole."""
    faces = np.concatenate([heads.faces, heads.closing])
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64)
    n = len(heads.neutral)
    forward, backward = edges[:, 0] * n + edges[:, 1], edges[:, 1] * n + edges[:, 0]
    assert len(np.unique(forward)) == len(forward)
    assert np.array_equal(np.sort(forward), np.sort(backward))
    a, b, c = (heads.neutral[faces[:, i]].astype(np.float64) for i in range(3))
    assert 0.003 < np.einsum("ij,ij->", a, np.cross(b, c)) / 6 < 0.010  # cubic metres: a head of a few litres, outward


def test_without_eyeballs_the_sockets_close_the_surface_and_lids_are_open(heads: I.IctHeads, folder: Path) -> None:
    hollow = I.load_ict(folder, eyeballs=False)
    test_surface_and_closing_form_one_closed_outward_surface(hollow)
    assert not hollow.is_eye.any() and hollow.is_socket.any() and not heads.is_socket.any()
    lids, lips = I.edge_vertices(hollow, folder)
    for edge in (lids[hollow.neutral[lids, 0] < 0], lips):
        assert np.ptp(hollow.neutral[edge, 0]) > 0.02  # metres
    between = hollow.neutral[lids[hollow.neutral[lids, 0] < 0]].mean(0) - np.array([0, 0, 0.004], np.float32)
    assert I.signed_distance(hollow, hollow.neutral, between[None])[0] > 0.002
    assert I.signed_distance(heads, heads.neutral, between[None])[0] < 0  # the eyeball


def test_mirror_map_is_a_reflection(heads: I.IctHeads) -> None:
    reflected = heads.neutral * np.array([-1, 1, 1], np.float32)
    error = np.linalg.norm(heads.neutral[heads.mirror] - reflected, axis=1)
    outer = ~heads.is_eye
    assert np.quantile(error[outer], 0.99) < 1e-3
    assert (heads.mirror[heads.mirror] == np.arange(len(heads.mirror)))[outer].mean() > 0.99
    swap = [heads.expression_names.index(n) for n in ("eyeBlink_L", "eyeBlink_R")]
    left, right = (heads.expression[i] for i in swap)
    moved = np.linalg.norm(left, axis=1) > 1e-3
    assert (heads.neutral[moved & outer, 0] > 0).all()  # the face's own left is +x
    np.testing.assert_allclose(right[heads.mirror][moved & outer] * [-1, 1, 1], left[moved & outer], atol=2e-3)


def test_signed_distance_of_known_points(heads: I.IctHeads) -> None:
    pytest.importorskip("igl")
    nose = heads.neutral[heads.neutral[:, 2].argmax()]
    ahead = nose + np.array([[0, 0, 0.01], [0, 0, 0.3]])
    points = np.stack([[0, 0, 0], *ahead, [0, 0, 5.0], [0, 0.06, -0.05]]).astype(np.float32)
    distance = I.signed_distance(heads, heads.neutral, points)
    assert distance[0] < 0 and distance[4] < -0.04  # the mouth pocket ends 6 mm from the origin
    assert distance[1] == pytest.approx(0.01, abs=5e-4) and distance[2] == pytest.approx(0.3, abs=5e-4)
    assert distance[3] > 4.5
    on = heads.neutral[np.unique(heads.faces)[::97]]
    assert np.abs(I.signed_distance(heads, heads.neutral, on)).max() < 1e-6


def test_signed_distance_changes_sign_across_the_skin_and_the_eyeballs(heads: I.IctHeads) -> None:
    pytest.importorskip("igl")
    w, e = I.sample_identity(np.random.default_rng(3), 1)[0], np.zeros(len(heads.expression_names), np.float32)
    v = heads.vertices(w, e)
    np.testing.assert_allclose(v, heads.vertices(w))
    corners = v[heads.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    size = np.linalg.norm(normal, axis=1)
    eye, pocket = heads.is_eye[heads.faces].all(1), heads.is_pocket[heads.faces].any(1)
    skin = ~pocket & ~eye & (corners.mean(1)[:, 1] > I.NECK_LEVEL)
    step = 5e-4 * normal / size[:, None].clip(1e-12)
    for name, chosen, share in (("skin", np.flatnonzero(skin)[::41], 0.97), ("eyes", np.flatnonzero(eye)[::11], 0.3)):
        chosen = chosen[size[chosen] > 1e-9]
        centre = corners[chosen].mean(1)
        outside = I.signed_distance(heads, v, (centre + step[chosen]).astype(np.float32)) > 0
        inside = I.signed_distance(heads, v, (centre - step[chosen]).astype(np.float32)) < 0
        assert inside.mean() > 0.97, name
        assert outside.mean() > share, name  # the rims of the eyeballs lie behind the lids


def test_anchors_are_distinct_symmetric_and_at_their_landmarks(heads: I.IctHeads, folder: Path) -> None:
    chosen = I.anchor_vertices(heads, folder)
    assert chosen.shape == (65,) and len(np.unique(chosen)) == 65
    assert not heads.is_eye[chosen].any() and not heads.is_pocket[chosen].any()
    position = heads.neutral[chosen]
    right, left = position[0:60:2], position[1:60:2]
    assert (right[:, 0] < 0).all() and (left[:, 0] > 0).all()
    assert np.linalg.norm(left * [-1, 1, 1] - right, axis=1).max() < 1e-3
    assert np.abs(position[60:, 0]).max() < 2e-3
    landmarks = json.loads((folder / "vertex_indices.json").read_text())["idx_to_landmark_verts"]
    for anchor, point in I.ANCHOR_LANDMARKS.items():
        own = np.flatnonzero(heads.source == landmarks[point])
        assert len(own) == 1, f"landmark {point} is not on the surface"
        assert np.linalg.norm(position[anchor] - heads.neutral[own[0]]) < 3e-3
    nearest = np.linalg.norm(position[:, None] - position, axis=-1) + np.eye(65)
    assert nearest.min() > 2e-3


def test_identity_samples_are_standard_normal_and_bounded() -> None:
    w = I.sample_identity(np.random.default_rng(0), 500)
    assert w.shape == (500, 100) and w.dtype == np.float32
    assert abs(w.mean()) < 0.02 and w.std() == pytest.approx(1, abs=0.03) and np.abs(w).max() <= 3
    assert np.array_equal(w, I.sample_identity(np.random.default_rng(0), 500))


def test_expression_samples_are_weights() -> None:
    e = I.sample_expression(np.random.default_rng(0), 2000, NAMES)
    assert e.shape == (2000, len(NAMES)) and e.dtype == np.float32
    assert e.min() == 0 and e.max() <= 1 and (e.max(0) > 0.8).all(), "an expression is never reached"
    neutral = (e == 0).all(1).mean()
    assert 0.05 < neutral < 0.2
    both = [(NAMES.index(n), NAMES.index(n[:-2] + "_R")) for n in NAMES if n.endswith("_L")]
    active = e[~(e == 0).all(1)]
    balanced = np.mean([[abs(r[a] - r[b]) <= 0.16 * max(r[a], r[b]) + 1e-6 for a, b in both] for r in active])
    assert balanced > 0.75
    for first, second in (("eyeBlink", "eyeWide"), ("mouthFrown", "mouthSmile")):
        pair = e[:, [NAMES.index(first + "_L"), NAMES.index(second + "_L")]]
        assert pair.min(1).max() <= 0.2
