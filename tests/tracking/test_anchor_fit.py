"""Fitting a clip through anchors alone: a small model of MonoNPHM's layout with random weights, a known clip."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kornia.geometry.conversions import axis_angle_to_rotation_matrix
from torch import Tensor

from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import InputError, ModelError
from nphm_track.heads.config import MONONPHM
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.inverse import pose_points
from nphm_track.heads.loading import load_head_model
from nphm_track.tracking.anchor_fit import CodePrior, fit_anchors
from nphm_track.training.ict import ANCHOR_LANDMARKS

FRAMES = 6
K = torch.tensor([[900.0, 0, 320], [0, 900, 240], [0, 0, 1]])
SMALL = replace(
    MONONPHM,
    name="small",
    global_dim=8,
    local_dim=2,
    expression_dim=4,
    hidden=8,
    deform_hidden=24,
    deform_layers=4,
    deform_skip=2,
    compressed_dim=4,
    anchor_hidden=8,
    activation="silu",
    appearance=False,
)


@pytest.fixture(scope="module")
def model() -> NphmDecoder:
    torch.manual_seed(0)
    model = NphmDecoder(SMALL).eval().requires_grad_(False)
    model.mean_anchors.copy_(load_head_model().mean_anchors)
    for layer in (*model.anchor_mlp, *model.deformation):
        layer.weight *= 2  # enough to move anchors by millimetres
    return model


@pytest.fixture(scope="module")
def clip(model: NphmDecoder) -> tuple[Tensor, Tensor, Tensor]:
    """Landmarks [T, 68, 2] of a turning, moving head at .7 m, with its rotations and translations."""
    generator = torch.Generator().manual_seed(1)
    z_id = torch.randn(SMALL.identity_dim, generator=generator) * SMALL.identity_dim**-0.5
    phase = torch.linspace(0, 1.5, FRAMES)[:, None]
    z_ex = torch.sin(phase + 6 * torch.rand(SMALL.expression_dim, generator=generator))
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    R = axis_angle_to_rotation_matrix(phase * torch.tensor([0.05, 0.3, 0.02])) @ flip
    t = torch.tensor([0.01, 0.02, 0.7]) + phase * torch.tensor([0.02, 0.0, 0.03])
    canonical = model.anchors(z_id)[list(ANCHOR_LANDMARKS)].expand(FRAMES, -1, -1)
    posed = pose_points(model, canonical, z_id.expand(FRAMES, -1), z_ex, tolerance=1e-6).points * MODEL_UNIT
    camera = posed @ R.mT + t[:, None]
    pixels = torch.full((FRAMES, 68, 2), -1.0)
    pixels[:, list(ANCHOR_LANDMARKS.values())] = (camera / camera[..., 2:] @ K.T)[..., :2]
    return pixels, R, t


def test_a_known_clip_is_explained(model: NphmDecoder, clip: tuple[Tensor, Tensor, Tensor]) -> None:
    pixels, R, t = clip
    prior = CodePrior(torch.zeros(4), torch.ones(4))
    start = fit_anchors(model, pixels, torch.ones(FRAMES, 68), K, expression=prior, steps=0)
    fit = fit_anchors(model, pixels, torch.ones(FRAMES, 68), K, expression=prior, steps=80)
    assert fit.z_id.shape == (SMALL.identity_dim,) and fit.z_ex.shape == (FRAMES, 4)
    assert fit.R.shape == (FRAMES, 3, 3) and fit.t.shape == (FRAMES, 3)
    assert start.error_px.mean() > 3
    assert fit.error_px.max() < 1.5 and fit.error_px.mean() < start.error_px.mean() / 4
    torch.testing.assert_close(fit.R @ fit.R.mT, torch.eye(3).expand(FRAMES, 3, 3), rtol=0, atol=1e-5)
    angle = ((fit.R.mT @ R).diagonal(dim1=1, dim2=2).sum(1) - 1).div(2).clamp(-1, 1).acos()
    assert (
        angle.max() < 0.15 and (fit.t - t).norm(dim=1).max() < 0.1
    )  # scale and depth are told apart by the prior only


def test_frames_without_landmarks_follow_their_neighbours(
    model: NphmDecoder, clip: tuple[Tensor, Tensor, Tensor]
) -> None:
    weights = torch.ones(FRAMES, 68)
    weights[2] = 0
    fit = fit_anchors(model, clip[0], weights, K, steps=3)
    assert fit.error_px[2].isnan() and fit.error_px[[0, 1, 3, 4, 5]].isfinite().all()
    assert fit.z_ex.isfinite().all() and fit.R.isfinite().all() and fit.t.isfinite().all()


def test_unusable_input_is_refused(model: NphmDecoder, clip: tuple[Tensor, Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match="landmarks"):
        fit_anchors(model, clip[0], torch.zeros(FRAMES, 68), K)
    other = NphmDecoder(replace(SMALL, name="other", n_pairs=6, n_middle=3, nearest=8))
    with pytest.raises(ModelError, match="15 anchors"):
        fit_anchors(other, clip[0], torch.ones(FRAMES, 68), K)
