from __future__ import annotations

import numpy as np
import pytest

from nphm_track.rendering.rasteriser import interpolate, rasterise, vertex_normals

K = np.array([[90.0, 0, 31], [0, 80, 25], [0, 0, 1]])
SIZE = (64, 48)


def slow_rasterise(vertices, faces, K, size, cull=False):
    """Every pixel against every triangle, by intersecting the pixel's ray with the triangle in 3-D."""
    width, height = size
    depth = np.full((height, width), np.inf)
    face_id = np.full((height, width), -1)
    bary = np.zeros((height, width, 3))
    rays = np.stack([*np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), np.ones(size[::-1])], -1)
    rays = rays @ np.linalg.inv(K).T
    for f, corners in enumerate(vertices[faces].astype(float)):
        normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
        if not (corners[:, 2] > 1e-3).all() or (cull and normal @ corners[0] > 0):
            continue
        mixing = np.linalg.inv(corners.T)
        for y in range(height):
            for x in range(width):
                weights = mixing @ rays[y, x]  # ray = sum of weights * corners, up to 1/z
                if (weights < 0).any():
                    continue
                z = 1 / weights.sum()
                if z < depth[y, x]:
                    depth[y, x], face_id[y, x], bary[y, x] = z, f, weights * z
    return np.where(face_id >= 0, depth, 0), face_id, bary


@pytest.mark.parametrize("cull", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_slow_twin(seed, cull):
    rng = np.random.default_rng(seed)
    vertices = rng.uniform((-0.4, -0.4, 0.3), (0.4, 0.4, 1.5), (24, 3)).astype(np.float32)
    vertices[0, 2] = -0.2  # behind the camera: its triangle is left out
    faces = rng.permutation(24).reshape(8, 3).astype(np.int32)
    fast = rasterise(vertices, faces, K, SIZE, cull=cull)
    depth, face_id, bary = slow_rasterise(vertices, faces, K, SIZE, cull)
    assert (face_id >= 0).sum() > 300
    assert (fast.face_id != face_id).mean() < 1e-3
    same = fast.face_id == face_id
    np.testing.assert_allclose(fast.depth[same], depth[same], rtol=1e-4)
    np.testing.assert_allclose(fast.bary[same], bary[same], atol=1e-3)


def test_interpolation_is_perspective_correct():
    rng = np.random.default_rng(3)
    vertices = rng.uniform((-0.3, -0.3, 0.4), (0.3, 0.3, 1.2), (9, 3)).astype(np.float32)
    faces = np.arange(9, dtype=np.int32).reshape(3, 3)
    fragments = rasterise(vertices, faces, K, SIZE)
    points = interpolate(fragments, faces, vertices)
    y, x = np.nonzero(fragments.face_id >= 0)
    assert len(y) > 50
    seen = points[y, x]
    np.testing.assert_allclose(seen[:, 2], fragments.depth[y, x], rtol=1e-5)
    np.testing.assert_allclose(seen[:, 0] / seen[:, 2] * K[0, 0] + K[0, 2], x + 0.5, atol=1e-3)
    np.testing.assert_allclose(seen[:, 1] / seen[:, 2] * K[1, 1] + K[1, 2], y + 0.5, atol=1e-3)
    assert (points[fragments.face_id < 0] == 0).all()


def test_neighbouring_triangles_leave_no_hole():
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 40)), -1).reshape(-1, 2)
    vertices = np.column_stack([grid, np.full(len(grid), 1.0)]).astype(np.float32)
    corner = (np.arange(39)[:, None] * 40 + np.arange(39)).ravel()
    faces = np.vstack(
        [np.stack([corner, corner + 40, corner + 1], 1), np.stack([corner + 1, corner + 40, corner + 41], 1)]
    )
    assert (rasterise(vertices, faces, K, SIZE).face_id >= 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_unusable_vertices_do_not_crash(bad):
    good = np.array([[-0.1, -0.1, 1], [0.1, -0.1, 1], [0, 0.1, 1]], np.float32)
    for axis in range(3):
        broken = good.copy()
        broken[1, axis] = bad
        faces = np.array([[3, 4, 5], [0, 1, 2]], np.int32)
        fragments = rasterise(np.vstack([good, broken]), faces, K, SIZE)
        assert (fragments.face_id == 1).sum() > 20
        assert np.isfinite(fragments.bary).all() and np.isfinite(fragments.depth).all()


def test_empty_mesh_draws_nothing():
    fragments = rasterise(np.zeros((0, 3)), np.zeros((0, 3)), K, SIZE)
    assert (fragments.face_id == -1).all() and fragments.depth.shape == (48, 64)


def test_vertex_normals_of_a_sphere_point_outwards():
    trimesh = pytest.importorskip("trimesh")
    ball = trimesh.creation.icosphere(subdivisions=3)
    normals = vertex_normals(ball.vertices, ball.faces)
    assert normals.dtype == np.float32
    assert (normals * ball.vertices).sum(1).min() > 0.999
    in_front = ball.vertices + np.array([0, 0, 3])
    front = rasterise(in_front, ball.faces, K, SIZE, cull=True)
    assert np.array_equal(front.face_id, rasterise(in_front, ball.faces, K, SIZE).face_id)
