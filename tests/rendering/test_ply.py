from __future__ import annotations

import numpy as np
import pytest
import trimesh

from nphm_track.errors import InputError, OutputError
from nphm_track.rendering.ply import read_ply, write_ply


@pytest.fixture
def ball():
    return trimesh.creation.icosphere(subdivisions=2)


@pytest.mark.parametrize("with_normals", [False, True])
def test_round_trip_through_an_independent_reader(tmp_path, ball, with_normals):
    path = tmp_path / "mesh.ply"
    write_ply(path, ball.vertices, ball.faces, ball.vertex_normals if with_normals else None)
    read = trimesh.load(path, process=False)
    np.testing.assert_array_equal(read.vertices, ball.vertices.astype(np.float32))
    np.testing.assert_array_equal(read.faces, ball.faces)
    if with_normals:
        np.testing.assert_allclose(read.vertex_normals, ball.vertex_normals, atol=1e-6)
    vertices, faces = read_ply(path)
    assert vertices.dtype == np.float32 and faces.dtype == np.int32
    np.testing.assert_array_equal(vertices, ball.vertices.astype(np.float32))
    np.testing.assert_array_equal(faces, ball.faces)
    assert [p.name for p in tmp_path.iterdir()] == ["mesh.ply"]


def test_point_cloud_and_layout_of_the_arrays(tmp_path):
    points = np.asfortranarray(np.random.default_rng(0).normal(size=(5, 3)))
    write_ply(tmp_path / "points.ply", points, np.zeros((0, 3)))
    vertices, faces = read_ply(tmp_path / "points.ply")
    np.testing.assert_array_equal(vertices, points.astype(np.float32))
    assert faces.shape == (0, 3)


def test_damaged_files_are_refused(tmp_path, ball):
    path = tmp_path / "mesh.ply"
    write_ply(path, ball.vertices, ball.faces)
    data = path.read_bytes()
    faces_at = data.index(b"end_header\n") + 11 + 12 * len(ball.vertices)
    wrong_index = data[: faces_at + 1] + (10**6).to_bytes(4, "little") + data[faces_at + 5 :]
    for content in (data[:-1], data + b"x", data[:40], b"", b"solid ascii stl", wrong_index):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"mesh\.ply"):
            read_ply(path)
    with pytest.raises(InputError):
        read_ply(tmp_path / "none.ply")


def test_failure_to_write_keeps_the_old_file(tmp_path, ball):
    with pytest.raises(OutputError):
        write_ply(tmp_path / "none" / "mesh.ply", ball.vertices, ball.faces)
    path = tmp_path / "mesh.ply"
    write_ply(path, ball.vertices, ball.faces)
    before = path.read_bytes()
    (tmp_path / "mesh.ply.partial").mkdir()
    with pytest.raises(OutputError):
        write_ply(path, ball.vertices * 2, ball.faces)
    assert path.read_bytes() == before
