"""Light on balls and planes, where shadows are known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nphm_track.training.lighting import ambient_occlusion, harmonic_light, lamp_light, random_harmonics, visibility
from nphm_track.training.rng import Rng

DIRECTIONS = F.normalize(torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, -1, 0], [0.5, -0.5, 0.7]]), dim=1)


def ball(radius: float, count: int = 10_000) -> tuple[Tensor, Tensor]:
    """Even points [V, 3] on a sphere and their normals."""
    k = torch.arange(count) + 0.5
    z, angle = 1 - 2 * k / count, k * 2.399963
    ring = (1 - z * z).sqrt()
    normals = torch.stack([ring * angle.cos(), ring * angle.sin(), z], 1)
    return radius * normals, normals


def plane(half: float, count: int = 140) -> Tensor:
    x = torch.linspace(-half, half, count)
    y, x = torch.meshgrid(x, x, indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)], -1).view(-1, 3)


def test_a_ball_is_lit_from_the_lamps_side_only() -> None:
    points, normals = ball(0.1)
    seen = visibility(torch.stack([points, points + 0.7]), normals.expand(2, -1, -1), DIRECTIONS.expand(2, -1, -1))
    assert seen.shape == (2, 4, len(points))
    cosine = DIRECTIONS @ normals.T
    for lit in seen:  # wherever the ball lies
        assert lit[cosine > 0.3].min() > 0.95
        assert lit[cosine < -0.6].max() < 0.01 and lit[cosine < -0.4].mean() < 0.1  # nearer: no light by its angle


def test_a_small_ball_casts_its_shadow_on_a_plane() -> None:
    floor = plane(0.12)
    small, small_normals = ball(0.02, 2000)
    small, up = small + torch.tensor([0.0, 0, 0.06]), torch.tensor([0.0, 0, 1]).expand(len(floor), -1)
    direction = F.normalize(torch.tensor([[1.0, 0, 2]]), dim=1)
    points, normals = torch.cat([floor, small])[None], torch.cat([up, small_normals])[None]
    seen = visibility(points, normals, direction[None])[0, 0, : len(floor)]
    centre = torch.tensor([-0.03, 0.0])  # where the ray through the ball's centre meets the plane
    away = (floor[:, :2] - centre).norm(dim=1)
    assert seen[away < 0.016].max() < 0.05
    assert seen[(away > 0.036) & (floor[:, :2].abs().amax(1) < 0.11)].min() > 0.6
    alone = visibility(floor[None], up[None], direction[None])[0, 0]
    assert alone[away < 0.016].min() > 0.6


def test_the_sky_is_even_over_a_ball_and_hidden_in_a_pit() -> None:
    points, normals = ball(0.1)
    open_sky = ambient_occlusion(points, normals)
    assert open_sky.shape == (len(points),)
    assert open_sky.min() > 0.95 and open_sky.max() < 1.001
    pit = points[:, 2] < 0.05  # opens to +z; seen from its bottom, the sky is a disc of 30 degrees radius
    inside = ambient_occlusion(points[pit], -normals[pit])
    assert inside[points[pit, 2] < -0.09].max() < 0.35


def test_harmonic_light_comes_from_the_front() -> None:
    normals = F.normalize(torch.randn(1, 500, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    light = random_harmonics(Rng(0), 200)
    shade = harmonic_light(normals.expand(200, -1, -1), light)
    assert light.shape == (200, 9) and shade.shape == (200, 500)
    assert shade.isfinite().all() and shade.min() > 0
    glaring = harmonic_light(normals, 10 * light[:1])
    assert glaring.min() > 0.1 and glaring.max() < 2.5
    facing = normals[0, :, 2] < -0.5  # the camera looks along +z
    assert (shade[:, facing].mean(1) > shade[:, ~facing].mean(1)).float().mean() > 0.8


def test_lamp_light_is_finite_positive_and_brighter_towards_the_lamps() -> None:
    points, normals = ball(0.1)
    camera = (points + torch.tensor([0.0, 0, 0.6])).expand(8, -1, -1)
    occlusion = torch.ones(len(points))
    light, shine = lamp_light(Rng(0), camera, normals.expand(8, -1, -1), occlusion)
    assert light.shape == shine.shape == (8, len(points), 3)
    assert light.isfinite().all() and shine.isfinite().all()
    assert light.min() > 0 and shine.min() >= 0 and shine.max() > 0.01
    back = normals[:, 2] > 0.9  # lamps stand on the camera's side
    assert (light[:, normals[:, 2] < -0.3].mean((1, 2)) > light[:, back].mean((1, 2))).all()
    assert torch.equal(light, lamp_light(Rng(0), camera, normals.expand(8, -1, -1), occlusion)[0])
    dark = lamp_light(Rng(0), camera, normals.expand(8, -1, -1), 0 * occlusion)[0]
    assert (dark < light).all()
