"""The network of surface points: starts from the landmarks, a covariance for every point."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nphm_track.errors import ModelError
from nphm_track.geometry.networks import TRUNK
from nphm_track.geometry.surface_points import SurfacePointNet, SurfacePoints, SurfacePointsConfig, mahalanobis
from nphm_track.models import write_weights

SMALL = SurfacePointsConfig(points=20, components=6, fine=8, coarse=8, blocks=(1, 1), width=16, slots=4)


def inputs(batch: int = 2) -> tuple[Tensor, dict[int, Tensor], Tensor]:
    g = torch.Generator().manual_seed(0)
    features = {s: torch.randn(batch, c, s, s, generator=g) for s, c in TRUNK.items()}
    return torch.rand(batch, 3, 256, 256, generator=g), features, 256 * torch.rand(batch, 478, 3, generator=g)


def test_an_untrained_network_leaves_points_where_the_landmarks_put_them() -> None:
    torch.manual_seed(0)
    net = SurfacePointNet(SMALL)
    net.landmark_axes.normal_(std=0.01)
    crop, features, landmarks = inputs()
    starts = net.starts(landmarks)
    for look in net(crop, features, landmarks):
        torch.testing.assert_close(torch.cat([look.xy, look.depth[..., None]], -1), starts)
        assert (look.depth_sigma > 0).all()


def test_every_look_moves_points_by_what_the_pixels_show() -> None:
    torch.manual_seed(0)
    net = SurfacePointNet(SMALL)
    torch.nn.init.normal_(net.move.weight)
    crop, features, landmarks = inputs()
    first, second = net(crop, features, landmarks)
    other = net(crop.flip(-1), features, landmarks)[-1]
    assert (second.xy - first.xy).abs().max() > 0.1
    assert (other.xy - second.xy).abs().max() > 0.01
    second.xy.sum().backward()
    assert net.pyramid.patch.weight.grad is not None
    assert net.pyramid.patch.weight.grad.abs().sum() > 0


def test_errors_are_measured_by_the_covariance_that_is_said() -> None:
    torch.manual_seed(0)
    spread = 0.5 * torch.randn(3, 7, 3)
    out = SurfacePoints(torch.randn(3, 7, 2), spread, torch.zeros(3, 7), torch.ones(3, 7))
    true = torch.randn(3, 7, 2)
    factor = out.factor()
    covariance = torch.linalg.inv(factor.mT @ factor)
    error = (true - out.xy)[..., None]
    expected = (error.mT @ torch.linalg.solve(covariance, error))[..., 0, 0]
    torch.testing.assert_close(mahalanobis(out, true), expected, rtol=1e-3, atol=1e-4)


def test_a_saved_network_is_the_same_and_another_file_is_refused(tmp_path: Path) -> None:
    net = SurfacePointNet(SMALL)
    path = tmp_path / "points.safetensors"
    write_weights(path, net.state_dict(), {"kind": "surface-points", "points": SMALL.to_dict()})
    again = SurfacePointNet.from_pretrained(str(path))
    assert again.config == SMALL
    torch.testing.assert_close(again.start.weight, net.start.weight)
    with pytest.raises(ModelError, match="not a network of surface points"):
        SurfacePointNet.from_pretrained("geometry")
