from __future__ import annotations

import math

import pytest
import torch
from kornia.geometry.conversions import axis_angle_to_quaternion, quaternion_to_rotation_matrix
from torch import Tensor

from nphm_track.cameras.focal import PRIOR_FOCAL, PRIOR_SIGMA, solve_focal
from nphm_track.cameras.intrinsics import focal_from_fov, fov_from_focal
from nphm_track.errors import InputError

SIZE = (640, 360)


def clip(fov: float, frames: int = 60, seed: int = 0, noise: float = 0.0, turns: float = 1.0) -> tuple[Tensor, Tensor]:
    """Points [80, 3] and pixels [frames, 80, 2] of a head that turns (45 degrees for ``turns`` 1) and moves."""
    g = torch.Generator().manual_seed(seed)
    u, v = (torch.rand(2, 80, generator=g, dtype=torch.float64) * 2 - 1).unbind(0)
    nose = 0.025 * torch.exp(-((u / 0.25) ** 2) - (v / 0.35) ** 2)
    points = torch.stack([0.07 * u.sin(), 0.09 * v, 0.09 * u.cos() * (v * 0.9).cos() + nose], dim=-1)
    angles = (torch.rand(frames, 3, generator=g, dtype=torch.float64) * 2 - 1) * torch.tensor([0.4, 0.8, 0.3]) * turns
    R = quaternion_to_rotation_matrix(axis_angle_to_quaternion(angles)) * torch.tensor([1.0, -1, -1])
    focal = focal_from_fov(fov, SIZE[0])
    place = (torch.rand(frames, 3, generator=g, dtype=torch.float64) - 0.5) * turns
    z = focal * 0.2 / 180 * (1 + 0.4 * place[:, 2])  # faces about 180 px high
    t = torch.stack([place[:, 0] * 300 / focal * z, place[:, 1] * 100 / focal * z, z], dim=-1)
    camera = points @ R.mT + t[:, None]
    pixels = camera[..., :2] / camera[..., 2:] * focal + torch.tensor([320.0, 180.0])
    return points, pixels + noise * torch.randn(pixels.shape, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("fov", [30.0, 50.0, 90.0])
def test_clean_points(fov: float) -> None:
    result = solve_focal(*clip(fov), SIZE)
    assert result.focal_px == pytest.approx(focal_from_fov(fov, SIZE[0]), rel=0.05)
    assert result.fov_deg == pytest.approx(fov_from_focal(result.focal_px, SIZE[0]))
    assert result.log_sigma < 0.15
    assert result.rms_px < 0.3


@pytest.mark.parametrize("fov", [30.0, 60.0])
def test_pixel_noise(fov: float) -> None:
    result = solve_focal(*clip(fov, noise=1.0), SIZE)
    truth = focal_from_fov(fov, SIZE[0])
    assert result.focal_px == pytest.approx(truth, rel=0.15)
    assert abs(math.log(result.focal_px / truth)) < 3 * result.log_sigma
    assert 0.8 < result.rms_px < 1.8


def test_bad_frames_are_left_out() -> None:
    points, pixels = clip(60.0, noise=0.5, seed=1)
    bad = torch.arange(0, 60, 10)
    pixels[bad] = torch.rand(6, 80, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 400
    pixels[5] = torch.nan
    result = solve_focal(points, pixels, SIZE)
    assert result.focal_px == pytest.approx(focal_from_fov(60, SIZE[0]), rel=0.1)
    assert not set(result.frames.tolist()) & {*bad.tolist(), 5}


@pytest.mark.parametrize("seed", range(3))
def test_one_frontal_frame_stays_near_the_prior(seed: int) -> None:
    prior = PRIOR_FOCAL * max(SIZE)
    result = solve_focal(*clip(25.0, frames=1, seed=seed, noise=1.0, turns=0.0), SIZE)
    assert 20 <= result.fov_deg <= 100
    assert abs(math.log(result.focal_px / prior)) < PRIOR_SIGMA
    assert result.log_sigma > 0.15


def test_flat_points_give_the_prior() -> None:
    points, _ = clip(40.0, frames=1, turns=0.0)
    flat = points * torch.tensor([1.0, 1, 0])
    frontal = flat[None, :, :2] * torch.tensor([1.0, -1]) * 900 + torch.tensor([320.0, 180])  # any focal length fits
    result = solve_focal(flat, frontal, SIZE)
    assert result.focal_px == pytest.approx(PRIOR_FOCAL * 640, rel=0.02)
    assert result.log_sigma == pytest.approx(PRIOR_SIGMA, rel=0.1)


@pytest.mark.parametrize("depth", [0.95, 1.1])
def test_a_wrong_shape_stays_within_the_stated_error(depth: float) -> None:
    points, pixels = clip(45.0, noise=0.5)
    result = solve_focal(points * torch.tensor([1.0, 1.0, depth]), pixels, SIZE)
    assert abs(math.log(result.focal_px / focal_from_fov(45, SIZE[0]))) < 2.5 * result.log_sigma


def test_bounds_hold_and_the_curve_is_lowest_at_the_answer() -> None:
    points, pixels = clip(95.0, frames=20)
    result = solve_focal(points, pixels, SIZE, bounds_deg=(30, 60))
    assert 30 - 1e-6 <= result.fov_deg <= 60 + 1e-6
    assert result.fov_deg > 59
    assert (result.curve[1:, 0] > result.curve[:-1, 0]).all()
    assert abs(result.curve[result.curve[:, 1].argmin(), 0] / result.focal_px - 1) < 0.05


def test_own_points_and_weights_for_each_frame() -> None:
    points, pixels = clip(50.0, frames=20)
    weights = torch.ones(20, 80)
    weights[:, :10] = 0
    pixels[:, :10] += 80
    result = solve_focal(points.expand(20, 80, 3), pixels.float(), SIZE, weights)
    assert result.focal_px == pytest.approx(focal_from_fov(50, SIZE[0]), rel=0.05)


def test_nonsense_is_refused() -> None:
    points, pixels = clip(50.0, frames=3)
    with pytest.raises(InputError):
        solve_focal(points, pixels * torch.nan, SIZE)
    with pytest.raises(InputError):
        solve_focal(points, pixels[0], SIZE)
    with pytest.raises(InputError):
        solve_focal(points, pixels, SIZE, bounds_deg=(100, 20))
