from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from nphm_track.training.degrade import degrade_batch, gaussian_blur, jpeg
from nphm_track.training.rng import Rng


def pictures(count: int, height: int = 128, width: int = 96) -> torch.Tensor:
    """Smooth coloured noise with fine grain, [count, 3, height, width] in 0..1."""
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=(count, 3, height, width)), (0, 0, 6, 6))
    x = 0.5 + smooth * 0.18 / smooth.std() + 0.03 * rng.normal(size=(count, 1, height, width))
    return torch.from_numpy(x).float().clamp(0, 1)


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_jpeg_loses_what_pillow_loses(quality: int) -> None:
    image = (pictures(1) * 255).round() / 255
    ours = 255 * jpeg(image, torch.tensor([float(quality)]))[0].permute(1, 2, 0).numpy()
    original = (255 * image[0].permute(1, 2, 0).numpy()).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(original).save(file, "JPEG", quality=quality)
    theirs = np.asarray(Image.open(file), np.float32)
    loss = np.abs(theirs - original).mean()
    assert np.abs(ours - theirs).mean() < min(1.6, 0.45 * loss)  # another quality differs by more than 2.8
    assert np.abs(ours - original).mean() == pytest.approx(loss, rel=0.1)


def test_every_picture_has_its_own_jpeg_quality() -> None:
    image = pictures(1).expand(2, -1, -1, -1)
    both = jpeg(image, torch.tensor([25.0, 92.0]))
    error = (both - image).abs().mean((1, 2, 3))
    assert error[0] > 2 * error[1]
    torch.testing.assert_close(both[1:], jpeg(image[1:], torch.tensor([92.0])))


@pytest.mark.parametrize("sigma", [0.5, 1.2, 1.8])
def test_blur_is_a_gaussian(sigma: float) -> None:
    image = pictures(2)
    blurred = gaussian_blur(image, torch.tensor([sigma, 0.05]))
    expected = gaussian_filter(image[0].numpy(), (0, sigma, sigma), mode="nearest", radius=(0, 6, 6))
    np.testing.assert_allclose(blurred[0].numpy(), expected, atol=1e-5)
    torch.testing.assert_close(blurred[1], image[1])


def test_degraded_pictures_are_pictures_and_follow_the_seed() -> None:
    image = pictures(24, 64, 64)
    before = image.clone()
    out = degrade_batch(Rng(1), image)
    assert out.shape == image.shape and out.dtype == torch.float32
    assert out.min() >= 0 and out.max() <= 1
    assert torch.equal(out, degrade_batch(Rng(1), image))
    assert torch.equal(image, before)
    change = (out - degrade_batch(Rng(2), image)).abs().mean((1, 2, 3))
    assert change.min() > 1e-3  # each picture meets another fate
    grey = ((out - out.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-3).float().mean()
    assert 0 < grey < 0.5
    damage = (out - image).abs().mean((1, 2, 3))
    assert damage.min() > 0.005 and damage.max() < 0.35
