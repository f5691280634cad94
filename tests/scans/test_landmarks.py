from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nphm_track.conventions import IBUG68_FROM_478, MODEL_UNIT, POINTS7_478
from nphm_track.errors import InputError, NoFaceError
from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.mesh import CanonicalMesh, extract_canonical
from nphm_track.rendering.rasteriser import vertex_normals
from nphm_track.rigid import Similarity
from nphm_track.scans.landmarks import OVAL, detect_landmarks, read_landmarks
from nphm_track.scans.reading import ScanGeometry


@pytest.fixture(scope="module")
def landmarker() -> FaceLandmarker:
    return FaceLandmarker.from_pretrained()


@pytest.fixture(scope="module")
def mean_head() -> tuple[CanonicalMesh, np.ndarray]:
    model = load_head_model()
    z_id = model.identity_basis[:, 0] * 0
    return extract_canonical(model, z_id, detail=0.6), model.mean_landmarks.double().numpy() * MODEL_UNIT


@pytest.mark.parametrize("angles", [(0, 0, 0), (90, 0, 0), (35, 140, -20), (180, 20, 75)])
def test_any_orientation_and_unit(
    landmarker: FaceLandmarker, mean_head: tuple[CanonicalMesh, np.ndarray], angles: tuple[float, float, float]
) -> None:
    mesh, marks = mean_head
    pose = Similarity(37.0, Rotation.from_euler("xyz", angles, degrees=True).as_matrix(), np.array([5.0, -3, 11]))
    vertices = pose(mesh.vertices)
    scan = ScanGeometry(vertices, mesh.faces.astype(np.int64), vertex_normals(vertices, mesh.faces).astype(np.float64))
    found = detect_landmarks(scan, marks, landmarker)
    assert len(found.index) > 350 and not set(found.index) & set(OVAL)
    error = np.linalg.norm(pose.inverse(found.points) - marks[found.index], axis=1) * 1e3
    assert np.median(error) < 4.5 and np.quantile(error, 0.95) < 12


def test_cloud_without_normals(landmarker: FaceLandmarker, mean_head: tuple[CanonicalMesh, np.ndarray]) -> None:
    mesh, marks = mean_head
    found = detect_landmarks(ScanGeometry(mesh.vertices.astype(np.float64), None), marks, landmarker)
    error = np.linalg.norm(found.points - marks[found.index], axis=1) * 1e3
    assert len(found.index) > 250 and np.median(error) < 6


def test_no_face(landmarker: FaceLandmarker, mean_head: tuple[CanonicalMesh, np.ndarray]) -> None:
    x, y = np.meshgrid(np.linspace(-1, 1, 30), np.linspace(-1, 1, 30))
    points = np.stack([x, y, 0.1 * x**2], -1).reshape(-1, 3)
    cells = np.arange(900).reshape(30, 30)
    a, b, c = cells[:-1, :-1].ravel(), cells[:-1, 1:].ravel(), cells[1:, :-1].ravel()
    faces = np.stack([a, b, c], 1)
    sheet = ScanGeometry(points, faces, vertex_normals(points, faces).astype(np.float64))
    with pytest.raises(NoFaceError, match="--landmarks"):
        detect_landmarks(sheet, mean_head[1], landmarker)


class TestReadLandmarks:
    def test_named(self, tmp_path: Path) -> None:
        points = {name: [float(i), 1.0, 2.0] for i, name in enumerate(POINTS7_478)}
        (tmp_path / "p.json").write_text(json.dumps(points))
        read = read_landmarks(tmp_path / "p.json")
        assert read.index.tolist() == list(POINTS7_478.values()) and read.points[3].tolist() == [3, 1, 2]

    @pytest.mark.parametrize(("suffix", "count"), [("npy", 68), ("txt", 68), ("json", 478), ("npy", 478)])
    def test_tables(self, tmp_path: Path, suffix: str, count: int) -> None:
        points = np.random.default_rng(0).normal(size=(count, 3))
        points[0] = np.nan
        path = tmp_path / f"p.{suffix}"
        if suffix == "npy":
            np.save(path, points)
        elif suffix == "txt":
            np.savetxt(path, points)
        else:
            path.write_text(json.dumps(points.tolist()))
        read = read_landmarks(path)
        expected = np.array(IBUG68_FROM_478) if count == 68 else np.arange(478)
        assert (read.index == expected[1:]).all() and np.allclose(read.points, points[1:])

    @pytest.mark.parametrize(
        "text", ["", "{", '{"nose": [0, 0, 0]}', "[[0, 0, 0], [1, 1, 1]]", '{"mouth_r": [0, 0]}', '"x"', "3"]
    )
    def test_refuses_others(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(InputError):
            read_landmarks(tmp_path / "p.json")

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot be read"):
            read_landmarks(tmp_path / "p.npy")
