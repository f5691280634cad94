"""Points of the template, true in every render, and how errors of a network of them are measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from nphm_track.geometry.surface_points import SurfacePoints
from nphm_track.training.ict import IctHeads, load_ict
from nphm_track.training.points_task import (
    depth_likelihood,
    in_pixels,
    place_likelihood,
    similarity_errors,
    unprojected,
)
from nphm_track.training.template_points import mirrored_points, template_points


@pytest.fixture(scope="module")
def heads(shared_data: Path) -> IctHeads:
    return load_ict(shared_data / "ict_facekit")


def test_template_points_are_symmetric_skin_with_both_lips(heads: IctHeads) -> None:
    points = template_points(heads)
    assert 900 < len(points) < 1200
    assert not (heads.is_eye | heads.is_pocket)[points].any()
    mirror = mirrored_points(heads, points)
    assert (mirror[mirror] == np.arange(len(points))).all()
    assert np.abs(heads.neutral[points[mirror]] * [-1, 1, 1] - heads.neutral[points]).max() < 1e-4
    jaw = heads.expression[heads.expression_names.index("jawOpen")][points, 1]
    mouth = np.linalg.norm(heads.neutral[points] - [0, -0.0335, 0.052], axis=1) < 0.006
    assert (jaw[mouth] < -0.025).sum() >= 3 and (jaw[mouth] > -0.01).sum() >= 3
    lids = cKDTree(heads.neutral[heads.is_eye]).query(heads.neutral[points])[0] < 0.002
    assert lids.sum() > 30


def test_no_template_point_lies_where_no_picture_shows_it(heads: IctHeads) -> None:
    points = heads.neutral[template_points(heads)]
    nostrils = (np.abs(points[:, 0]) < 0.01) & (np.abs(points[:, 1] + 0.004) < 0.004) & (points[:, 2] > 0.04)
    assert (points[nostrils, 2] > 0.048).all()  # the cavities lie behind the rims


def scene(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Points [B, 50, 3] in front of a camera, and its intrinsics."""
    g = torch.Generator().manual_seed(0)
    camera = 0.05 * torch.randn(count, 50, 3, generator=g) + torch.tensor([0.02, -0.01, 0.7])
    K = torch.tensor([[900.0, 0, 120], [0, 900, 140], [0, 0, 1]]).expand(count, 3, 3)
    return camera, K


def test_pixels_and_relative_depths_give_the_points_back() -> None:
    camera, K = scene()
    torch.testing.assert_close(
        unprojected(in_pixels(camera, K), K, camera[..., 2].mean(1)), camera, rtol=1e-4, atol=1e-5
    )


def test_a_similarity_is_no_error_and_a_moved_point_is() -> None:
    camera, _ = scene()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    turn = turn * torch.linalg.det(turn)
    moved = 1.3 * camera @ turn.T + 0.2
    assert similarity_errors(moved, camera).max() < 1e-5
    assert similarity_errors(camera * torch.tensor([-1.0, 1, 1]), camera).mean() > 0.01  # mirrored is not similar
    moved[:, 0] += 0.02
    assert (similarity_errors(moved, camera)[:, 0] > 0.012).all()


def test_the_likelihood_is_best_at_the_true_spread() -> None:
    torch.manual_seed(0)
    error = 3 * torch.randn(400, 30, 2)
    depth = 2 * torch.randn(400, 30)

    def value(sigma: float, deep: float) -> tuple[float, float]:
        spread = torch.zeros(400, 30, 3)
        spread[..., [0, 2]] = -float(np.log(sigma))
        out = SurfacePoints(torch.zeros(400, 30, 2), spread, torch.zeros(400, 30), torch.full((400, 30), deep))
        return float(place_likelihood(out, error)) / sigma, float(depth_likelihood(out, depth)) / deep

    place, deep = zip(*(value(3 * k, 2 * k) for k in (0.7, 1.0, 1.4)), strict=True)
    assert min(place) == place[1] and min(deep) == deep[1]
