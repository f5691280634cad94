"""The batched rasteriser against its CPU twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nphm_track.rendering.batched import Drawer, interpolate_batch, rasterise_batch, vertex_normals_batch
from nphm_track.rendering.rasteriser import interpolate, rasterise, vertex_normals

trimesh = pytest.importorskip("trimesh")
SIZE = (96, 72)
CAMERAS = torch.tensor(
    [
        [[120.0, 0, 48], [0, 110, 36], [0, 0, 1]],
        [[60.0, 0, 40], [0, 60, 30], [0, 0, 1]],
        [[400.0, 0, 10], [0, 380, 70], [0, 0, 1]],
    ]
)


def twin_agrees(vertices, faces, K, size, *, cull=False):
    """Draws [B, V, 3] both ways, compares, and returns the batch; pixels on an edge may go to either neighbour."""
    batch = rasterise_batch(vertices, torch.as_tensor(faces).long(), K, size, cull=cull)
    for k in range(len(vertices)):
        single = rasterise(vertices[k].numpy(), np.asarray(faces), K[k].numpy(), size, cull=cull)
        face_id = batch.face_id[k].numpy()
        assert (face_id != single.face_id).mean() < 1e-3
        same = face_id == single.face_id
        np.testing.assert_allclose(batch.depth[k].numpy()[same], single.depth[same], rtol=1e-5)
        np.testing.assert_allclose(batch.bary[k].numpy()[same], single.bary[same], atol=1e-3)
    return batch


def balls(seed: int):
    """Three bumpy spheres of one topology, the last one larger than its picture."""
    rng = np.random.default_rng(seed)
    ball = trimesh.creation.icosphere(subdivisions=3)
    radius = 0.3 * (1 + 0.2 * rng.random((3, len(ball.vertices), 1)))
    vertices = ball.vertices * radius + rng.uniform((-0.2, -0.2, 1), (0.2, 0.2, 1.4), (3, 1, 3))
    return torch.from_numpy(vertices).float(), np.asarray(ball.faces)


@pytest.mark.parametrize("cull", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_spheres_before_several_cameras(seed, cull):
    vertices, faces = balls(seed)
    batch = twin_agrees(vertices, faces, CAMERAS, SIZE, cull=cull)
    share = (batch.face_id >= 0).float().mean((1, 2))
    assert share.min() > 0.1
    assert not batch.depth[batch.face_id < 0].any() and not batch.bary[batch.face_id < 0].any()


@pytest.mark.parametrize("cull", [False, True])
def test_loose_triangles_off_screen_and_behind_the_camera(cull):
    rng = np.random.default_rng(0)
    vertices = rng.uniform((-1.5, -1.5, -0.2), (1.5, 1.5, 1.5), (3, 240, 3))
    vertices[:, :9, 2] = 5e-4  # nearer than anything is drawn
    faces = rng.permutation(240).reshape(80, 3)
    batch = twin_agrees(torch.from_numpy(vertices).float(), faces, CAMERAS, SIZE, cull=cull)
    assert (batch.face_id >= 0).float().mean() > 0.3


@pytest.mark.parametrize("side", [20, 100, 500])
def test_triangles_of_any_window(side):
    """A wall that fills the picture and a small triangle before it, in either order."""
    wall, small = [[-9.0, -9, 1], [9, -9, 1], [0, 18, 1]], [[-0.1, -0.1, 0.5], [0.1, -0.1, 0.5], [0, 0.1, 0.5]]
    vertices = torch.tensor([wall + small, small + wall])
    K = torch.tensor([[side, 0, side / 2], [0, side, side / 2], [0, 0, 1]]).expand(2, 3, 3)
    batch = twin_agrees(vertices, [[0, 1, 2], [3, 4, 5]], K, (side, side))
    assert (batch.face_id >= 0).all()
    assert torch.equal(batch.face_id[0], 1 - batch.face_id[1])
    assert 0.02 < batch.face_id[0].float().mean() < 0.2


def test_a_triangle_larger_than_the_largest_window():
    side = 520
    K = torch.tensor([[[side, 0, side / 2], [0, side, side / 2], [0, 0, 1]]])
    twin_agrees(torch.tensor([[[-9.0, -9, 1], [9, -9, 1], [0, 18, 1]]]), [[0, 1, 2]], K, (side, side))


def test_neighbouring_triangles_leave_no_hole():
    m = 60
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, m), np.linspace(-1, 1, m)), -1).reshape(-1, 2)
    rng = np.random.default_rng(1)
    vertices = np.column_stack([grid + rng.uniform(-0.012, 0.012, grid.shape), 1 + 0.2 * rng.random(m * m)])
    corner = (np.arange(m - 1)[:, None] * m + np.arange(m - 1)).ravel()
    faces = np.vstack(
        [np.stack([corner, corner + m, corner + 1], 1), np.stack([corner + 1, corner + m, corner + m + 1], 1)]
    )
    K = torch.tensor([[[300.0, 0, 128], [0, 300, 128], [0, 0, 1]]])
    batch = twin_agrees(torch.from_numpy(vertices[None]).float(), faces, K, (256, 256), cull=True)
    assert (batch.face_id >= 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_unusable_vertices_spoil_only_their_triangle(bad):
    good = torch.tensor([[-0.1, -0.1, 1], [0.1, -0.1, 1], [0, 0.1, 1]])
    broken = torch.stack([good] * 3)
    broken[range(3), 1, range(3)] = bad  # one coordinate in each image
    batch = twin_agrees(torch.cat([good.expand(3, 3, 3), broken], 1), [[3, 4, 5], [0, 1, 2]], CAMERAS, SIZE)
    assert not (batch.face_id == 0).any() and (batch.face_id[0] == 1).sum() > 20
    assert batch.bary.isfinite().all() and batch.depth.isfinite().all()


@pytest.mark.parametrize("shift", [(0, 0, -5), (50, 0, 0)])
def test_a_mesh_out_of_sight_leaves_the_image_empty(shift):
    vertices, faces = balls(0)
    batch = rasterise_batch(vertices + torch.tensor(shift), torch.from_numpy(faces), CAMERAS, SIZE)
    assert batch.face_id.shape == (3, 72, 96) and (batch.face_id == -1).all() and not batch.depth.any()
    assert not interpolate_batch(batch, torch.from_numpy(faces), vertices).any()


def test_no_faces_draw_nothing():
    batch = rasterise_batch(torch.zeros(3, 0, 3), torch.zeros(0, 3, dtype=torch.int64), CAMERAS, SIZE)
    assert (batch.face_id == -1).all() and batch.bary.shape == (3, 72, 96, 3)


def test_attributes_agree_with_the_twin():
    vertices, faces = balls(2)
    batch = rasterise_batch(vertices, torch.from_numpy(faces), CAMERAS, SIZE)
    attributes = torch.cat([vertices, vertices.sin() * torch.tensor([1.0, 5, 9])], -1)
    attributes[1] += 10  # of its own image only
    drawn = interpolate_batch(batch, torch.from_numpy(faces), attributes)
    for k in range(3):
        single = rasterise(vertices[k].numpy(), faces, CAMERAS[k].numpy(), SIZE)
        same = batch.face_id[k].numpy() == single.face_id
        expected = interpolate(single, faces, attributes[k].numpy())
        np.testing.assert_allclose(drawn[k].numpy()[same], expected[same], atol=1e-3)
        assert np.ptp(expected[..., 0]) > 0.2


def test_interpolated_points_lie_on_their_pixels():
    vertices, faces = balls(3)
    batch = rasterise_batch(vertices, torch.from_numpy(faces), CAMERAS, SIZE)
    k, y, x = (batch.face_id >= 0).nonzero(as_tuple=True)
    points = interpolate_batch(batch, torch.from_numpy(faces), vertices)[k, y, x]
    torch.testing.assert_close(points[:, 2], batch.depth[k, y, x])
    pixels = (CAMERAS[k] @ (points / points[:, 2:])[..., None])[:, :2, 0]
    torch.testing.assert_close(pixels, torch.stack([x, y], 1) + 0.5, atol=2e-3, rtol=0)


def test_vertex_normals_agree_with_the_twin():
    vertices, faces = balls(4)
    normals = vertex_normals_batch(vertices, torch.from_numpy(faces))
    for mine, v in zip(normals, vertices, strict=True):
        np.testing.assert_allclose(mine.numpy(), vertex_normals(v.numpy(), faces), atol=1e-5)
    assert ((normals * (vertices - vertices.mean(1, keepdim=True))).sum(-1) > 0).all()
    lonely = vertex_normals_batch(torch.cat([vertices, vertices[:, :1]], 1), torch.from_numpy(faces))
    assert not lonely[:, -1].any()


def test_a_drawer_gives_what_the_batch_gives():
    vertices, faces = balls(0)
    faces = torch.from_numpy(faces).long()
    drawer = Drawer(faces)
    drawn, batch = drawer.rasterise(vertices, CAMERAS, SIZE), rasterise_batch(vertices, faces, CAMERAS, SIZE)
    same = drawn.face_id == batch.face_id
    assert same.float().mean() > 0.999
    assert all(a.dtype == b.dtype and a.shape == b.shape for a, b in zip(drawn, batch, strict=True))
    torch.testing.assert_close(drawn.depth[same], batch.depth[same], rtol=1e-5, atol=0)
    normals = drawer.normals(vertices)
    torch.testing.assert_close(normals, vertex_normals_batch(vertices, faces), rtol=1e-4, atol=1e-5)
    shown = drawer.interpolate(batch, normals)
    torch.testing.assert_close(shown, interpolate_batch(batch, faces, normals), rtol=1e-4, atol=1e-5)
