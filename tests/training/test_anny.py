"""Anny heads: the refined surface, the linear code and the points that mean the same as on ICT-FaceKit."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh

from nphm_track.errors import InputError
from nphm_track.training import anny as A
from nphm_track.training.ict import IctHeads
from nphm_track.training.registration import on_surface, register

TRAINING = Path(__file__).parents[2] / "training"


def ball(radii: tuple[float, float, float] = (0.08, 0.1, 0.09), subdivisions: int = 3) -> IctHeads:
    """An ellipsoid without eyes or mouth as a head model with two components and two expressions."""
    sphere = trimesh.creation.icosphere(subdivisions)
    v = (sphere.vertices * radii).astype(np.float32)
    n = len(v)
    mirror = np.linalg.norm(v[:, None] - v * np.array([-1, 1, 1], np.float32), axis=2).argmin(1)
    modes = np.stack([v * 0.05, np.abs(v) * np.array([0, 0.1, 0], np.float32)])
    return IctHeads(
        neutral=v,
        identity=modes,
        expression=modes[:, :, ::-1].copy(),
        expression_names=("eyeBlink_L", "jawOpen"),
        faces=sphere.faces.astype(np.int32),
        closing=np.empty((0, 3), np.int32),
        is_eye=np.zeros(n, bool),
        is_pocket=np.zeros(n, bool),
        mirror=mirror,
        source=np.arange(n),
    )


def test_rigid_alignment_keeps_size_and_undoes_a_motion() -> None:
    rng = np.random.default_rng(0)
    v = rng.normal(size=(50, 3))
    R = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    R *= np.sign(np.linalg.det(R))
    heads = np.stack([v @ R.T + 0.3, 1.2 * v]).astype(np.float32)
    moved = A.align(heads, v, np.ones(50, bool))
    assert np.allclose(moved[0], v, atol=1e-5)
    assert np.isclose(moved[1].std(0).mean(), 1.2 * v.std(0).mean(), rtol=1e-5)


def test_weights_are_those_a_head_was_made_of(tmp_path: Path) -> None:
    heads = ball()
    basis = A.AnnyBasis(heads, np.ones(len(heads.neutral), np.float32), np.ones(2, np.float32))
    path = tmp_path / "anny_basis.npz"
    basis.save(path)
    w = np.array([[0.7, -1.3], [0, 2]], np.float32)
    read = A.AnnyBasis.load(path)
    assert np.allclose(read.weights(np.stack([heads.vertices(x) for x in w])), w, atol=1e-3)
    assert read.heads.expression_names == heads.expression_names
    with pytest.raises(InputError, match="build_anny_sdf"):
        A.AnnyBasis.load(tmp_path / "none.npz")


def test_gain_is_the_weight_of_the_nearest_motion() -> None:
    motion = np.random.default_rng(1).normal(size=(3, 9, 3))
    assert np.allclose(A.action_gain(motion * np.array([0.4, 2, -1])[:, None, None], motion), [0.4, 1, 0])


def test_an_action_of_both_sides_is_divided_between_them() -> None:
    from scipy import sparse

    neutral = np.array([[-0.05, 0, 0], [0, 0, 0], [0.05, 0, 0]])
    action = np.full((3, 3), 0.01)
    unsafe = A.UNSAFE_ACTIONS[0]
    names = ("browInnerUp_L", "browInnerUp_R", "eyeBlink_L", "cheekRaiser_L", unsafe + "_L")
    actions = {"browInnerUp": action, "eyeBlinkLeft": action, unsafe + "Left": action}
    out = A._named_actions(actions, names, sparse.eye_array(3).tocsr(), neutral)
    assert np.allclose(out[0] + out[1], action) and np.allclose(out[0, :, 0], [0, 0.005, 0.01])
    assert np.allclose(out[2], 0.01) and not out[3:].any()


def test_registration_carries_points_to_the_same_places() -> None:
    source, target = ball(), ball((0.09, 0.1, 0.1), 4)
    stretch = np.array([0.09 / 0.08, 1, 0.1 / 0.09])
    rng = np.random.default_rng(2)
    face = rng.integers(0, len(source.faces), 200)
    bary = rng.dirichlet([1, 1, 1], 200)
    known = (source.neutral[source.faces[face]] * bary[..., None]).sum(1) * stretch
    warped = register(source, target, face, bary, known)
    assert np.linalg.norm(warped - source.neutral * stretch, axis=1).mean() < 3e-4
    pytest.importorskip("igl")
    at, where = on_surface(target, warped, np.zeros(len(warped), bool))
    lifted = (target.neutral[target.faces[at]] * where[..., None]).sum(1)
    assert np.linalg.norm(lifted - warped, axis=1).max() < 2e-3


def test_correspondences_are_the_same_points_of_both_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("igl")
    monkeypatch.syspath_prepend(str(TRAINING))
    builder = pytest.importorskip("build_anny_sdf")
    monkeypatch.delitem(sys.modules, "build_anny_sdf")
    heads = ball()
    shift = np.array([0.01, 0, 0], np.float32)
    a, b = builder.correspondences(
        np.random.default_rng(3), heads, heads.neutral, heads.neutral + shift, np.zeros(2, np.float32)
    )
    assert a.shape == (1024, 3) and np.allclose(b - a, shift, atol=1e-6)
    ratio = np.linalg.norm(a / [0.08, 0.1, 0.09], axis=1)
    assert (np.abs(ratio - 1) < 0.04).all() and np.abs(ratio - 1).max() > 0.005


@pytest.fixture(scope="module")
def source() -> A.AnnySource:
    """Anny itself, where it is installed and its cache (built for minutes by the first use) exists."""
    package = pytest.importorskip("anny")
    pytest.importorskip("igl")
    from anny.paths import get_anny_cache_path

    if not list(Path(get_anny_cache_path()).glob("*/build_compact_model_data_*.safetensors")):
        pytest.skip(f"the cache of anny {package.__version__} is not built")
    return A.load_source(("jawOpen", "eyeBlink_L", "eyeBlink_R", "browInnerUp_L", "cheekRaiser_L"))


def test_annys_surface_is_closed_and_outward(source: A.AnnySource) -> None:
    v = source.refine @ source.template
    faces = np.concatenate([source.faces, source.closing]).astype(np.int64)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    forward, backward = edges[:, 0] * len(v) + edges[:, 1], edges[:, 1] * len(v) + edges[:, 0]
    assert len(np.unique(forward)) == len(forward)
    assert np.array_equal(np.sort(forward), np.sort(backward))
    a, b, c = (v[faces[:, i]] for i in range(3))
    assert np.einsum("ij,ij->", a, np.cross(b, c)) > 0
    assert source.is_eye.any() and source.is_pocket.any()


def test_annys_heads_are_reproducible_and_its_sides_are_the_faces_own(source: A.AnnySource) -> None:
    first, again = (A.draw(source, np.random.default_rng(900_000), 4) for _ in range(2))
    assert np.array_equal(first, again) and np.isfinite(first).all()
    neutral = source.refine @ source.template
    blink = np.linalg.norm(source.expression[1], axis=1)
    assert neutral[blink > 0.003, 0].min() > 0  # the face's left is x > 0
    jaw = source.expression[0]
    assert jaw[np.linalg.norm(jaw, axis=1).argmax(), 1] < -0.01
    assert not source.expression[4].any() and not source.expression[:, source.is_eye].any()


def test_the_named_points_lie_on_annys_skin_and_mirror_each_other(source: A.AnnySource) -> None:
    points = np.load(TRAINING / "assets" / "anny_points.npz")
    v = source.refine @ source.template
    assert len(points["face"]) == 478 and len(points["anchor_face"]) == 65
    corners = source.faces[points["anchor_face"]]
    assert not source.is_eye[corners].any() and not source.is_pocket[corners].any()
    anchors = (v[corners] * points["anchor_bary"][..., None]).sum(1)
    right, left = anchors[:60:2], anchors[1:60:2]
    assert np.linalg.norm(right * [-1, 1, 1] - left, axis=1).max() < 3e-3
