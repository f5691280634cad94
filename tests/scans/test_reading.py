from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from nphm_track.errors import InputError
from nphm_track.scans.reading import SAMPLES, estimated_normals, read_scan


@pytest.fixture
def sphere() -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions=4, radius=120)


@pytest.mark.parametrize("suffix", ["ply", "obj", "glb", "stl", "off"])
def test_meshes(sphere: trimesh.Trimesh, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scan.{suffix}"
    sphere.export(path)
    scan = read_scan(path)
    assert scan.faces is not None and len(scan.faces) == len(sphere.faces)
    points, normals = scan.surface_points()
    assert points.shape == (SAMPLES, 3) and normals is not None
    assert np.abs(np.linalg.norm(points, axis=1) - 120).max() < 1
    assert ((points / 120 * normals).sum(1) > 0.98).all()


def test_scene_of_several_meshes(sphere: trimesh.Trimesh, tmp_path: Path) -> None:
    other = sphere.copy().apply_translation([300, 0, 0])
    trimesh.Scene([sphere, other]).export(tmp_path / "two.glb")
    assert len(read_scan(tmp_path / "two.glb").vertices) == 2 * len(sphere.vertices)


def test_cloud_with_and_without_normals(sphere: trimesh.Trimesh, tmp_path: Path) -> None:
    vertices = np.asarray(sphere.vertices)
    trimesh.PointCloud(vertices).export(tmp_path / "bare.ply")
    bare = read_scan(tmp_path / "bare.ply")
    assert bare.faces is None and bare.normals is None
    rows = np.hstack([vertices, vertices / 120])
    header = f"ply\nformat ascii 1.0\nelement vertex {len(rows)}\n"
    header += "".join(f"property float {name}\n" for name in ("x", "y", "z", "nx", "ny", "nz")) + "end_header\n"
    (tmp_path / "turned.ply").write_text(header + "\n".join(" ".join(f"{v:.6f}" for v in row) for row in rows) + "\n")
    turned = read_scan(tmp_path / "turned.ply")
    assert turned.normals is not None
    assert np.allclose(turned.normals, vertices / 120, atol=1e-3)


def test_colours_and_broken_vertices(sphere: trimesh.Trimesh, tmp_path: Path) -> None:
    colours = np.tile([[10, 200, 30, 255]], (len(sphere.vertices), 1)).astype(np.uint8)
    vertices = np.array(sphere.vertices)
    vertices[0] = np.nan
    trimesh.Trimesh(vertices, sphere.faces, vertex_colors=colours, process=False).export(tmp_path / "c.ply")
    scan = read_scan(tmp_path / "c.ply")
    assert scan.colours is not None and (scan.colours == [10, 200, 30]).all()
    assert np.isfinite(scan.surface_points()[0]).all()


TETRAHEDRON = """ply
format ascii 1.0
element vertex 4
property float x
property float y
property float z
element face 2
property list uchar int vertex_indices
end_header
0 0 0
1 0 0
0 1 0
0 0 1
3 0 1 2
3 0 1 {}
"""


def test_refuses_what_is_no_scan(tmp_path: Path) -> None:
    for name, data in (
        ("missing.ply", None),
        ("notes.txt", b"hello"),
        ("empty.ply", b""),
        ("broken.ply", b"ply\nformat binary_little_endian 1.0\nelement vertex 900\nproperty float x\nend_header\n"),
        ("empty.obj", b"# nothing\n"),
        ("damaged.glb", b"glTF123"),
        ("beyond.ply", TETRAHEDRON.format(9).encode()),
        ("below.ply", TETRAHEDRON.format(-1).encode()),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name.split(".")[0]):
            read_scan(tmp_path / name)


def test_too_few_points(tmp_path: Path) -> None:
    trimesh.PointCloud(np.random.default_rng(0).normal(size=(50, 3))).export(tmp_path / "few.ply")
    with pytest.raises(InputError, match="50 points"):
        read_scan(tmp_path / "few.ply")


def test_estimated_normals(sphere: trimesh.Trimesh) -> None:
    points = np.asarray(sphere.vertices)
    cosine = np.abs((estimated_normals(points) * points / 120).sum(1))
    assert cosine.min() > 0.98
