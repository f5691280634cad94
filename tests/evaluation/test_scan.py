"""The scan error: against surfaces whose error is known, and against the shared ruler."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from nphm_track.errors import InputError
from nphm_track.evaluation.scan import NAMES7, Scan, scan_error
from nphm_track.rendering.surface import Surface, seen_from_front
from nphm_track.rigid import Similarity, fit_similarity

# The ruler on ICT's mean head without eyes and teeth: scan-to-mesh median and mean after similarity, mean rigid, mm.
RULER = {
    "lps": (1.7238, 2.3212, 2.4591),
    "fran": (1.7981, 2.3749, 2.5952),
    "mmdemo": (1.2097, 1.6125, 2.2048),
}
IBUG7 = (36, 39, 42, 45, 33, 48, 54)


def face_like() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A rippled bowl with a nose: vertices [V, 3], faces [F, 3], seven points [7, 3] and the nose tip [3], metres."""
    x, y = np.meshgrid(np.linspace(-0.09, 0.09, 61), np.linspace(-0.11, 0.11, 71))

    def height(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        nose = 0.02 * np.exp(-((x / 0.012) ** 2) - ((y + 0.005) / 0.02) ** 2)
        return 0.06 - 2.5 * x**2 - 1.7 * y**2 + nose + 0.003 * np.sin(90 * x) * np.cos(70 * y)

    vertices = np.stack([x, y, height(x, y)], -1).reshape(-1, 3)
    i = np.arange(61 * 71).reshape(71, 61)
    a, b, c, d = i[:-1, :-1].ravel(), i[:-1, 1:].ravel(), i[1:, 1:].ravel(), i[1:, :-1].ravel()
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    xy = np.array([(-44, 27), (-18, 26), (18, 26), (44, 27), (0, -21), (-24, -43), (24, -43)]) * 1e-3
    points7 = np.column_stack([xy, height(*xy.T)])
    tip = np.array([0, -0.005, float(height(np.array(0.0), np.array(-0.005)))])
    return vertices, faces, points7, tip


@pytest.fixture(scope="module")
def scan() -> Scan:
    return Scan(*face_like())


def test_a_scan_fits_itself(scan: Scan) -> None:
    vertices, faces, points7, tip = face_like()
    error = scan_error(vertices, faces, points7, vertices, faces, points7, tip)
    assert error.similarity.mean < 1e-3 and error.rigid.mean < 1e-3
    assert error.similarity.completeness > 0.99 and error.similarity.normal_consistency > 0.998
    assert error.similarity.recall_1mm == pytest.approx(1) and error.similarity.mesh_to_scan_mean < 1e-3


def test_place_turn_and_noisy_points_do_not_count(scan: Scan) -> None:
    vertices, faces, points7, _ = face_like()
    rng = np.random.default_rng(0)
    motion = Similarity(1.0, Rotation.random(random_state=1).as_matrix(), rng.normal(size=3))
    noisy = motion(points7 + rng.normal(size=(7, 3)) * 0.002)
    assert scan.error(motion(vertices), faces, noisy).rigid.mean < 0.03


def test_scale_counts_only_in_the_rigid_error(scan: Scan) -> None:
    vertices, faces, points7, _ = face_like()
    error = scan.error(1.05 * vertices, faces, 1.05 * points7)
    assert error.similarity.mean < 0.01 and error.similarity.scale == pytest.approx(1 / 1.05, abs=1e-4)
    assert error.rigid.mean > 0.3 and error.rigid.scale == 1


def test_an_inflated_face_errs_by_what_alignment_cannot_undo(scan: Scan) -> None:
    vertices, faces, points7, _ = face_like()
    ripple = 0.001 * np.sign(np.sin(400 * vertices[:, 0]))  # 1 mm up and down: no alignment explains it
    error = scan.error(vertices + ripple[:, None] * [0, 0, 1], faces, points7)
    assert 0.3 < error.similarity.mean < 1.1
    assert error.similarity.chamfer_l1 > 0.2 and error.similarity.normal_consistency < 0.99


def test_orientation_of_the_faces_does_not_matter(scan: Scan) -> None:
    vertices, faces, points7, tip = face_like()
    turned = Scan(vertices, faces[:, ::-1], points7, tip)
    assert len(turned.points) == len(scan.points)
    assert turned.error(vertices, faces[:, ::-1], points7).similarity.mean < 1e-3


def test_region_is_the_face(scan: Scan) -> None:
    assert (np.linalg.norm(scan.points - scan.nose_tip, axis=1) < 0.095).all()
    assert (scan.normals @ scan.forward > 0.2).all()
    assert 0.2 < len(scan.points) / len(scan.vertices) < 0.9
    assert scan.weight.sum() == pytest.approx(1)


def test_half_a_face_is_incomplete(scan: Scan) -> None:
    vertices, faces, points7, _ = face_like()
    half = faces[(vertices[faces][..., 0] > -0.005).all(1)]
    assert scan.error(vertices, half, points7).similarity.completeness < 0.75


def test_bad_points_are_refused(scan: Scan) -> None:
    vertices, faces, points7, tip = face_like()
    with pytest.raises(InputError, match="seven finite points"):
        scan.error(vertices, faces, points7[:6])
    with pytest.raises(InputError, match="seven finite points"):
        scan.error(vertices, faces, points7 * np.nan)
    with pytest.raises(InputError, match="nose tip"):
        Scan(vertices, faces, points7, tip + 1)


def test_closest_points_agree_with_brute_force() -> None:
    rng = np.random.default_rng(2)
    sphere = trimesh.creation.icosphere(2, 0.05)
    queries = rng.normal(size=(40, 3)) * 0.05
    triangles = np.asarray(sphere.triangles)
    every = trimesh.triangles.closest_point(np.tile(triangles, (40, 1, 1)), np.repeat(queries, len(triangles), 0))
    distance = np.linalg.norm(every - np.repeat(queries, len(triangles), 0), axis=1).reshape(40, -1).min(1)
    hits = Surface(sphere.vertices, sphere.faces).closest(queries)
    np.testing.assert_allclose(hits.distance, distance, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(hits.point - queries, axis=1), distance, atol=1e-12)
    assert not hits.on_border.any()


def test_border_is_found() -> None:
    vertices = np.array([(0, 0, 0), (0.1, 0, 0), (0.1, 0.1, 0), (0, 0.1, 0)], float)
    hits = Surface(vertices, [(0, 1, 2), (0, 2, 3)]).closest(np.array([(0.05, 0.05, 0.01), (0.2, 0.04, 0)]))
    assert hits.on_border.tolist() == [False, True]  # the diagonal is no border
    np.testing.assert_allclose(hits.normal, [(0, 0, 1)] * 2, atol=1e-12)


def test_hidden_layers_are_not_seen() -> None:
    vertices = np.array([(-0.05, -0.05, 0), (0.05, -0.05, 0), (0.05, 0.05, 0), (-0.05, 0.05, 0)], float)
    points = np.array([(0, 0, 0.0), (0.01, 0, -0.003), (0.01, 0, -0.006), (0.09, 0, -0.05)])
    seen = seen_from_front(points, vertices, np.array([(0, 1, 2), (0, 2, 3)]), np.eye(3), np.zeros(3))
    assert seen.tolist() == [True, True, False, True]


def test_fit_points_recovers_a_similarity() -> None:
    rng = np.random.default_rng(3)
    truth = Similarity(1.7, Rotation.random(random_state=4).as_matrix(), rng.normal(size=3))
    points = rng.normal(size=(9, 3))
    fit = fit_similarity(points, truth(points), scaled=True)
    np.testing.assert_allclose(fit(points), truth(points), atol=1e-12)
    np.testing.assert_allclose(fit.inverse(truth(points)), points, atol=1e-12)
    assert fit_similarity(points, truth(points), scaled=False).scale == 1


@pytest.fixture(scope="module")
def ruler(shared_data: Path) -> Path:
    """Folder of the shared scan_error tool."""
    tool = shared_data.parent / "tools" / "scan_error"
    if not (tool / "cases.json").is_file():
        pytest.skip("scan error cases not present")
    return tool


def load_case(ruler: Path, case: str) -> Scan:
    info = json.loads((ruler / "cases.json").read_text())[case]
    mesh = trimesh.load_mesh(ruler / info["gt"], process=False)
    return Scan(mesh.vertices, mesh.faces, [info["points7"][name] for name in NAMES7], info["nose_tip"])


@pytest.mark.parametrize("case", sorted(RULER))
def test_agrees_with_the_ruler(case: str, ruler: Path, shared_data: Path) -> None:
    error = load_case(ruler, case).error(*ict_head(shared_data / "ict_facekit"))
    measured = error.similarity.median, error.similarity.mean, error.rigid.mean
    np.testing.assert_allclose(measured, RULER[case], atol=0.02)


def test_agrees_with_the_ruler_run_now(ruler: Path, shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    vertices, faces, points7 = ict_head(shared_data / "ict_facekit", mode=2)
    trimesh.Trimesh(vertices, faces, process=False).export(tmp_path / "head.ply")
    (tmp_path / "points.json").write_text(json.dumps(points7.tolist()))
    command = [sys.executable, ruler / "scan_error.py", "--pred", "head.ply", "--points7", "points.json"]
    command += ["--case", "mmdemo", "--unit", "m", "--json", "out.json"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    theirs = json.loads((tmp_path / "out.json").read_text())
    ours = load_case(ruler, "mmdemo").error(vertices.astype(np.float32), faces, points7)
    for measures, wanted in ((ours.similarity, theirs["similarity"]), (ours.rigid, theirs["rigid"])):
        for name in ("median", "mean", "chamfer_l1"):
            assert getattr(measures, name) == pytest.approx(wanted[name], abs=0.02), name
        assert measures.normal_consistency == pytest.approx(wanted["normal_consistency"], abs=0.01)
        assert measures.completeness == pytest.approx(wanted["completeness"], abs=0.01)


def ict_head(folder: Path, mode: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ICT-FaceKit's neutral face, head and neck (``mode``: one identity mode added), metres, with its seven points."""
    with np.load(folder / "ict_facekit_light_full.npz") as file:
        vertices, quads = file["neutral"] * 0.01, file["faces"]
        if mode is not None:
            vertices = vertices + file["identity_deltas"][mode] * 0.01
    quads = quads[(quads < 11248).all(1)]
    faces = np.concatenate([quads[:, :3], quads[quads[:, 3] >= 0][:, [0, 2, 3]]])
    landmarks = json.loads((folder / "vertex_indices.json").read_text())["idx_to_landmark_verts"]
    return vertices, faces, vertices[np.array(landmarks)[list(IBUG7)]]
