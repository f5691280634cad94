"""Crops, rays and the choice of pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.faces.roi import crop_points_to_frame, frame_to_crop_matrix
from nphm_track.geometry.maps import GeometryMaps
from nphm_track.refine.pixels import dispersed_order, mesh_depth, pixel_rays, sample_targets
from nphm_track.rigid import rotation

ROIS = np.array([[160.0, 150.0, 200.0, 200.0, 0.3], [100.0, 170.0, 120.0, 120.0, -0.1]], np.float32)
SIZE = (320, 320)


def maps(n: int) -> GeometryMaps:
    normals = torch.zeros(2, n, n, 3)
    normals[..., 2] = 1
    points = torch.rand(2, n, n, 3, generator=torch.Generator().manual_seed(0))
    sure = torch.zeros(2, n, n)
    sure[:, n // 4 : -n // 4, n // 4 : -n // 4] = 1
    return GeometryMaps(normals, points, sure, sure, torch.from_numpy(ROIS), torch.zeros(2, 3, 8, 8))


def test_crops_follow_the_rules_of_faces_roi() -> None:
    points = np.random.default_rng(0).uniform(0, 64, (2, 5, 2))
    padded = np.concatenate([points, np.zeros((2, 5, 1))], -1)
    frame = crop_points_to_frame(points, ROIS, 64)
    assert np.allclose(frame, crop_points_to_frame(padded, ROIS, 64)[..., :2], atol=1e-3)
    matrix = frame_to_crop_matrix(ROIS, 64)
    back = frame @ matrix[:, :2, :2].swapaxes(1, 2) + matrix[:, None, :2, 2]
    assert np.allclose(back, points, atol=1e-9)


def test_any_first_part_of_the_order_covers_the_grid() -> None:
    for n in (32, 48):
        order = dispersed_order(n)
        assert sorted(order.tolist()) == list(range(n * n))
        first = order[: n * n // 16]
        blocks = np.bincount(first // n // (n // 4) * 4 + first % n // (n // 4), minlength=16)
        assert blocks.min() >= 0.7 * blocks.mean()


def test_targets_are_confident_pixels_in_the_frame() -> None:
    camera = Intrinsics.from_focal(400, SIZE)
    some = maps(32)
    targets = sample_targets(some, 50, camera)
    assert targets.pixels.shape == (2, 50, 2) and (targets.normal_weight == 1).all()
    row, column = targets.cells // 32, targets.cells % 32
    assert torch.equal(targets.points[1, 3], some.points[1, row[1, 3], column[1, 3]])
    centre = np.stack([column.numpy() + 0.5, row.numpy() + 0.5], -1)
    assert np.allclose(targets.pixels.numpy(), crop_points_to_frame(centre, ROIS, 32))
    nothing = replace(some, normal_confidence=0 * some.normal_confidence, point_confidence=0 * some.point_confidence)
    assert not sample_targets(nothing, 50, camera).normal_weight.any()
    few = sample_targets(some, 400, camera)
    assert (few.normal_weight.sum(1) == 256).all()


def test_rays_go_through_their_pixels() -> None:
    R = rotation(torch.tensor([[0.1, 0.3, 0.0]], dtype=torch.float64))
    t, K = torch.tensor([[0.01, 0.02, 0.6]], dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    K[0, 0] = K[1, 1] = 400
    pixels = torch.tensor([[[10.0, 20.0], [-30.0, 5.0]]], dtype=torch.float64)
    origin, direction = pixel_rays(pixels, R, t, K)
    camera = (origin + 0.55 * direction) @ R.mT + t[:, None]
    assert torch.allclose(camera[..., 2], torch.full((1, 2), 0.55, dtype=torch.float64))
    assert torch.allclose((camera / camera[..., 2:] @ K.mT)[..., :2], pixels)


def test_mesh_depth_of_a_turned_crop() -> None:
    vertices = np.array([[-1.0, -1.0, 0.0], [1.0, -1.0, 0.0], [1.0, 1.0, 0.0], [-1.0, 1.0, 0.0]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    turn = rotation(torch.tensor([0.0, 0.4, 0.0], dtype=torch.float64)).numpy()
    t, K = np.array([0.0, 0.0, 0.7]), np.array([[400.0, 0, 160], [0, 400, 160], [0, 0, 1]])
    depth = mesh_depth(vertices, faces, turn, t, K, ROIS[0], 32).reshape(32, 32)
    cell = np.array([[[20.5, 7.5]]])
    pixel = crop_points_to_frame(cell, ROIS[:1], 32)[0, 0]
    ray = np.linalg.inv(K) @ [*pixel, 1]
    normal = turn[:, 2]
    assert np.isclose(depth[7, 20], normal @ t / (normal @ ray), rtol=1e-5)
