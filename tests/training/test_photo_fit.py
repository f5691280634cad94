from __future__ import annotations

import numpy as np
import pytest
import torch

from nphm_track.training.head_terms import of_usual_size
from nphm_track.training.photo_fit import LandmarkBasis, fit_photos, landmark_weights

ALL, EXACT = landmark_weights(), 0.011


@pytest.fixture(scope="module")
def basis() -> LandmarkBasis:
    """A made-up head of 478 points on a half ellipsoid with a few smooth modes."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(478, 3))
    points[:, 2] = np.abs(points[:, 2])
    points *= [0.07, 0.09, 0.08] / np.linalg.norm(points, axis=1, keepdims=True)
    mean = torch.from_numpy(points)

    def modes(count: int) -> torch.Tensor:
        waves = [
            np.sin(points @ rng.normal(size=3) * 30 + k)[:, None] * rng.normal(size=3) * 0.002 for k in range(count)
        ]
        return torch.from_numpy(np.stack(waves))

    return LandmarkBasis(mean, modes(4), modes(3))


def test_known_head_and_pose_are_found(basis: LandmarkBasis) -> None:
    w = torch.tensor([[1.0, -0.5, 0.3, 0.8], [-1.2, 0.1, 0.0, 0.4]], dtype=torch.float64)
    e = torch.tensor([[0.5, 0.0, 0.2], [0.0, 0.9, 0.3]], dtype=torch.float64)
    camera = basis.points(w, e) * torch.tensor([1.0, -1, -1]) + torch.tensor([0.02, 0.01, 1.1])
    pixels = camera[..., :2] / camera[..., 2:] * 900 + 160
    fit = fit_photos(basis, pixels.numpy().astype(np.float32), np.full((2, 2), 320, np.float32), ALL, noise=EXACT)
    assert fit.error.max() < 0.005
    assert fit.w == pytest.approx(w.numpy(), abs=0.15)
    assert fit.e == pytest.approx(e.numpy(), abs=0.1)


def test_expression_weights_stay_in_range(basis: LandmarkBasis) -> None:
    e = torch.full((1, 3), 2.0, dtype=torch.float64)  # beyond what the weights may be
    camera = basis.points(torch.zeros(1, 4, dtype=torch.float64), e) * torch.tensor([1.0, -1, -1])
    camera = camera + torch.tensor([0, 0, 1.0])
    pixels = camera[..., :2] / camera[..., 2:] * 900 + 160
    fit = fit_photos(basis, pixels.numpy().astype(np.float32), np.full((1, 2), 320, np.float32), ALL, noise=EXACT)
    assert fit.e.min() >= -0.051
    assert fit.e.max() <= 1.101


def test_what_networks_see_outweighs_landmarks(basis: LandmarkBasis) -> None:
    """A depth that the landmarks of one image cannot tell comes from the weights that were seen."""
    w = torch.tensor([[1.0, -0.5, 0.3, 0.8]], dtype=torch.float64)
    e = torch.tensor([[0.5, 0.0, 0.2]], dtype=torch.float64)
    camera = basis.points(w, e) * torch.tensor([1.0, -1, -1]) + torch.tensor([0.0, 0.0, 1.1])
    pixels = camera[..., :2] / camera[..., 2:] * 900 + 160
    pixels = (pixels + torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))).numpy().astype(np.float32)
    size = np.full((1, 2), 320, np.float32)
    free = fit_photos(basis, pixels, size, ALL, noise=EXACT)
    seen = fit_photos(basis, pixels, size, ALL, (w, e))
    assert np.abs(seen.w - w.numpy()).max() < 0.1
    assert np.abs(seen.w - w.numpy()).max() < np.abs(free.w - w.numpy()).max()
    assert seen.error.max() < 0.06  # the pose is found all the same


def test_unseen_landmarks_hardly_move_the_head(basis: LandmarkBasis) -> None:
    zero = torch.zeros(1, 4, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    camera = basis.points(*zero) * torch.tensor([1.0, -1, -1]) + torch.tensor([0.0, 0.0, 1.1])
    pixels = (camera[..., :2] / camera[..., 2:] * 900 + 160).numpy().astype(np.float32)
    wrong = np.arange(40)
    pixels[:, wrong] += 8
    size = np.full((1, 2), 320, np.float32)
    seen, unseen = (
        fit_photos(basis, pixels, size, landmark_weights(left), noise=EXACT) for left in ((), wrong.tolist())
    )
    assert np.abs(unseen.w).max() < 0.02 < np.abs(seen.w).max()


def test_people_are_of_usual_size_on_average() -> None:
    """Who is larger than whom stays, and so does what is no growth."""
    generator = torch.Generator().manual_seed(0)
    vertices = torch.randn(50, 3, generator=generator)
    centred = vertices - vertices.mean(0)
    growth = centred / centred.norm()
    basis = torch.linalg.qr(torch.stack([growth.flatten(), *torch.randn(3, 150, generator=generator)], 1))[0].T
    w = torch.randn(20, 4, generator=generator) + torch.tensor([2.0, 1.0, 0.0, 0.0])
    moved = of_usual_size(w, basis, growth.flatten()[:, None])
    assert torch.allclose((moved @ basis @ growth.flatten()).mean(), torch.zeros(()), atol=1e-5)
    assert torch.allclose(moved - moved.mean(0), w - w.mean(0), atol=1e-5)
    assert torch.allclose(moved[:, 1:], w[:, 1:], atol=1e-5)
