from __future__ import annotations

import math

import pytest
import torch
from kornia.geometry.conversions import axis_angle_to_quaternion, quaternion_to_rotation_matrix
from torch import Tensor

from nphm_track.cameras.pnp import solve_pnp
from nphm_track.errors import InputError

WIDTH, HEIGHT = 640, 360


def face_points(n: int, generator: torch.Generator) -> Tensor:
    """Points [n, 3] on the front of a head-sized ellipsoid with a nose, metres."""
    u = torch.rand(n, generator=generator, dtype=torch.float64) * 2.2 - 1.1
    v = torch.rand(n, generator=generator, dtype=torch.float64) * 2.0 - 1.0
    nose = 0.025 * torch.exp(-((u / 0.25) ** 2) - (v / 0.35) ** 2)
    return torch.stack([0.07 * u.sin(), 0.09 * v, 0.09 * u.cos() * (v * 0.9).cos() + nose], dim=-1)


def head_rotations(count: int, generator: torch.Generator) -> Tensor:
    yaw, pitch, roll = (
        (torch.rand(count, generator=generator, dtype=torch.float64) * 2 - 1) * math.radians(limit)
        for limit in (60, 30, 30)
    )
    zero = torch.zeros_like(yaw)
    axes = [torch.stack(g, dim=-1) for g in ((zero, yaw, zero), (pitch, zero, zero), (zero, zero, roll))]
    turns = [quaternion_to_rotation_matrix(axis_angle_to_quaternion(axis)) for axis in axes]
    frontal = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    return turns[2] @ turns[1] @ turns[0] @ frontal


def scene(count: int, n: int = 100, seed: int = 0) -> tuple[Tensor, ...]:
    """Points [n, 3], pixels [count, n, 2], K [count, 3, 3], R, t of heads anywhere in the picture."""
    g = torch.Generator().manual_seed(seed)
    points = face_points(n, g)
    R = head_rotations(count, g)
    fov = 20 + 80 * torch.rand(count, generator=g, dtype=torch.float64)
    focal = 0.5 * WIDTH / torch.tan(torch.deg2rad(fov) / 2)
    size = 80 + 160 * torch.rand(count, generator=g, dtype=torch.float64)  # px
    z = focal * 0.2 / size
    centre = (torch.rand(count, 2, generator=g, dtype=torch.float64) - 0.5) * torch.tensor([0.7 * WIDTH, 0.5 * HEIGHT])
    t = torch.cat([centre / focal[:, None], torch.ones(count, 1)], dim=-1) * z[:, None]
    K = torch.zeros(count, 3, 3, dtype=torch.float64)
    K[:, 0, 0] = K[:, 1, 1] = focal
    K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = WIDTH / 2, HEIGHT / 2, 1
    camera = points @ R.mT + t[:, None]
    pixels = (camera @ K.mT)[..., :2] / camera[..., 2:]
    return points, pixels, K, R, t


def angle_deg(R1: Tensor, R2: Tensor) -> Tensor:
    return torch.rad2deg(2 * torch.asin(((R1 - R2).double().norm(dim=(-2, -1)) / math.sqrt(8)).clamp_max(1)))


def test_exact_recovery() -> None:
    points, pixels, K, R, t = scene(500)
    pose = solve_pnp(points, pixels, K)
    assert angle_deg(pose.R, R).max() < 1e-5
    assert ((pose.t - t).norm(dim=-1) / t[:, 2]).max() < 1e-7
    assert pose.rms.max() < 1e-4
    assert pose.valid.all()


def test_float32_pixels_and_pose_are_orthonormal() -> None:
    points, pixels, K, R, _ = scene(50)
    pose = solve_pnp(points.float(), pixels.float(), K.float())
    assert pose.R.dtype == torch.float32
    assert angle_deg(pose.R, R).max() < 0.01
    assert torch.allclose(pose.R @ pose.R.mT, torch.eye(3).expand(50, 3, 3), atol=1e-6)
    assert torch.allclose(torch.linalg.det(pose.R), torch.ones(50), atol=1e-5)


def test_noise() -> None:
    points, pixels, K, R, t = scene(300, seed=1)
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    pose = solve_pnp(points, pixels + noise, K)
    assert angle_deg(pose.R, R).median() < 0.5
    assert angle_deg(pose.R, R).max() < 3
    assert ((pose.t - t).norm(dim=-1) / t[:, 2]).median() < 0.01
    assert 1.0 < pose.rms.median() < 1.6


@pytest.mark.parametrize("n", [68, 200])
def test_outliers(n: int) -> None:
    points, pixels, K, R, _ = scene(300, n=n, seed=3)
    g = torch.Generator().manual_seed(4)
    bad = torch.rand(pixels.shape[:2], generator=g) < 0.2
    wild = torch.rand(pixels.shape, generator=g, dtype=torch.float64) * torch.tensor([WIDTH, HEIGHT])
    noisy = pixels + 0.3 * torch.randn(pixels.shape, generator=g, dtype=torch.float64)
    pose = solve_pnp(points, torch.where(bad[..., None], wild, noisy), K)
    assert angle_deg(pose.R, R).max() < 1.5
    assert pose.weights[bad].mean() < 0.02
    assert pose.weights[~bad].mean() > 0.7


def test_plane_faces_the_camera_and_fits() -> None:
    points, _, K, R, t = scene(200, seed=5)
    points = points * torch.tensor([1, 1, 0.0])
    camera = points @ R.mT + t[:, None]
    pixels = (camera @ K.mT)[..., :2] / camera[..., 2:]
    pose = solve_pnp(points, pixels, K)
    assert (pose.R[:, 2, 2] < 0).all()
    assert (pose.t[:, 2] > 0).all()
    assert pose.rms.max() < 1e-3


def test_nearly_flat_noisy_points_stay_sane() -> None:
    points, _, K, R, t = scene(300, n=12, seed=6)
    points = points * torch.tensor([1, 1, 0.05])
    camera = points @ R.mT + t[:, None]
    pixels = (camera @ K.mT)[..., :2] / camera[..., 2:]
    pixels = pixels + 0.5 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    pose = solve_pnp(points, pixels, K)
    assert pose.R.isfinite().all() and pose.t.isfinite().all()
    assert (pose.R[:, 2, 2] < 0).float().mean() > 0.99
    assert pose.rms.max() < 3


@pytest.mark.parametrize("collapse", ["points", "pixels", "line", "both"])
def test_degenerate_input_gives_finite_output(collapse: str) -> None:
    points, pixels, K, _, _ = scene(5)
    if collapse in ("points", "both"):
        points = points * 0
    if collapse in ("pixels", "both"):
        pixels = pixels * 0
    if collapse == "line":
        points = points * torch.tensor([1.0, 0, 0])
    pose = solve_pnp(points, pixels, K)
    for value in (pose.R, pose.t, pose.rms, pose.weights):
        assert value.isfinite().all()
    assert (pose.t[:, 2] > 0).all()
    assert torch.allclose(pose.R @ pose.R.mT, torch.eye(3).double().expand(5, 3, 3), atol=1e-9)


def test_random_pixels_give_finite_output() -> None:
    points, pixels, K, _, _ = scene(50)
    wild = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64) * 1000
    pose = solve_pnp(points, wild, K)
    assert pose.R.isfinite().all() and pose.t.isfinite().all() and pose.rms.isfinite().all()


def test_weights_and_missing_points() -> None:
    points, pixels, K, R, _ = scene(20)
    hidden = torch.rand(20, 100, generator=torch.Generator().manual_seed(9)) < 0.5
    pixels = torch.where(hidden[..., None], torch.nan, pixels)
    pose = solve_pnp(points, pixels, K, weights=torch.ones(100))
    assert angle_deg(pose.R, R).max() < 1e-4
    assert (pose.weights[hidden] == 0).all()
    lost = solve_pnp(points, pixels * torch.nan, K)
    assert not lost.valid.any()
    assert lost.R.isfinite().all() and lost.t.isfinite().all()


def test_warm_start_agrees() -> None:
    points, pixels, K, R, t = scene(50, seed=10)
    near = torch.linalg.matrix_exp(torch.tensor([[0, -0.1, 0.05], [0.1, 0, 0], [-0.05, 0, 0]]).double())
    pose = solve_pnp(points, pixels, K, init=(near @ R, t * 1.1))
    assert angle_deg(pose.R, R).max() < 1e-4


@pytest.mark.parametrize("batch", [(), (2,), (1, 2)])
def test_batch_dimensions(batch: tuple[int, ...]) -> None:
    points, pixels, K, R, t = scene(2)
    count = math.prod(batch)
    pose = solve_pnp(points, pixels[:count].reshape(*batch, 100, 2), K[:count].reshape(*batch, 3, 3))
    assert pose.R.shape == (*batch, 3, 3) and pose.t.shape == (*batch, 3)
    assert pose.rms.shape == batch and pose.valid.shape == batch and pose.weights.shape == (*batch, 100)
    assert angle_deg(pose.R.reshape(-1, 3, 3), R[:count]).max() < 1e-5
    shared = solve_pnp(points.expand(*batch, 100, 3), pixels[0].expand(*batch, 100, 2), K[0])
    assert torch.allclose(shared.t.reshape(-1, 3), t[:1].expand(count, 3))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(InputError):
        solve_pnp(torch.zeros(5, 3), torch.zeros(2, 4, 2), torch.eye(3))
    with pytest.raises(InputError):
        solve_pnp(torch.zeros(3, 3), torch.zeros(2, 3, 2), torch.eye(3))
