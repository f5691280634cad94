from __future__ import annotations

import numpy as np
import pytest
import torch

from nphm_track.conventions import MODEL_UNIT
from nphm_track.faces.roi import crop_points_to_frame, frame_points_to_crop
from nphm_track.geometry.landmark_mesh import (
    N_MESH,
    landmark_maps,
    landmark_maps_batch,
    landmark_triangles,
    to_head_space,
)
from nphm_track.heads.loading import load_head_model


@pytest.fixture(scope="module")
def mean() -> np.ndarray:
    return load_head_model().mean_landmarks.numpy().astype(np.float64) * MODEL_UNIT


def seen_from_the_front(mean: np.ndarray, turn: np.ndarray | None = None) -> np.ndarray:
    """Orthographic crop landmarks [1, 478, 3] (y down, z away) of the mean head after a rotation."""
    mean = mean if turn is None else mean @ turn.T
    return (mean * [1, -1, -1] * 1000 + [128, 128, 0])[None]


def test_triangles_cover_the_face_and_face_outwards(mean: np.ndarray) -> None:
    triangles = landmark_triangles(mean)
    a, b, c = (mean[triangles[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    assert triangles.max() < N_MESH
    assert len(np.unique(triangles)) > 460
    assert (normals[:, 2] > 0).mean() > 0.95  # a face looks forward


def test_maps_of_the_mean_head_hold_its_own_coordinates(mean: np.ndarray) -> None:
    maps = landmark_maps(seen_from_the_front(mean), mean, landmark_triangles(mean), 128)[0]
    nose = seen_from_the_front(mean)[0, 1, :2] / 2
    column, row = nose.astype(int)
    assert maps[6, row, column] == 1
    assert maps[:3, row, column] / 10 == pytest.approx(mean[1], abs=0.003)
    assert maps[5, row, column] > 0.7
    assert not maps[:, 0, 0].any()


def test_head_rotation_is_removed(mean: np.ndarray) -> None:
    c, s = np.cos(0.4), np.sin(0.4)
    turned = seen_from_the_front(mean, np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]))
    assert to_head_space(turned[:, :N_MESH], mean[:N_MESH])[0] == pytest.approx(mean[:N_MESH], abs=1e-5)


@pytest.mark.parametrize("size", [128, 64])
def test_maps_of_a_batch_are_those_of_the_twin(mean: np.ndarray, size: int) -> None:
    rng = np.random.default_rng(0)
    landmarks = []
    for yaw, roll in ((0.0, 0.0), (0.5, 0.1), (-0.9, -0.3)):
        (c, s), (d, r) = (np.cos(yaw), np.sin(yaw)), (np.cos(roll), np.sin(roll))
        turn = np.array([[d, -r, 0], [r, d, 0], [0, 0, 1]]) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        landmarks.append(seen_from_the_front(mean, turn)[0] + rng.normal(0, 0.8, mean.shape))
    landmarks = np.stack(landmarks)
    landmarks[2] += [70, 0, 500]  # partly out of the crop; depth has no origin
    triangles = landmark_triangles(mean)
    one = landmark_maps(landmarks, mean, triangles, size)
    batch = landmark_maps_batch(
        torch.from_numpy(landmarks).float(), torch.from_numpy(mean), torch.from_numpy(triangles), size
    ).numpy()
    assert batch.shape == one.shape == (3, 7, size, size)
    assert ((batch[:, 6] > 0.5) != (one[:, 6] > 0.5)).mean() < 1e-3
    on = (batch[:, 6] > 0.5) & (one[:, 6] > 0.5)
    assert on.mean() > 0.15
    difference = np.abs(batch - one).max(1)[on]
    assert np.quantile(difference, 0.995) < 2e-3  # pixels on an edge may take either triangle
    assert not batch.transpose(0, 2, 3, 1)[batch[:, 6] == 0].any()


def test_frame_to_crop_inverts_crop_points_to_frame() -> None:
    rng = np.random.default_rng(0)
    crop = rng.uniform(0, 256, (2, 30, 3))
    rois = np.array([[100, 80, 150, 150, 0.3], [300, 200, 90, 90, -1.2]])
    frame = torch.from_numpy(crop_points_to_frame(crop, rois))
    assert frame_points_to_crop(frame, torch.from_numpy(rois)).numpy() == pytest.approx(crop, abs=1e-3)
