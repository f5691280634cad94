"""Fitting a clip's codes to landmarks alone: a small model of MonoNPHM's layout with random weights, a known clip."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from kornia.geometry.conversions import axis_angle_to_rotation_matrix
from torch import Tensor

from nphm_track.cameras.pnp import solve_pnp
from nphm_track.conventions import ANCHOR_LANDMARKS, IBUG68_FROM_478, MODEL_UNIT
from nphm_track.errors import InputError, ModelError
from nphm_track.heads.config import MONONPHM
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.inverse import pose_points
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.mononphm import AnchoredDecoder, known_landmarks
from nphm_track.tracking import code_fit
from nphm_track.tracking.code_fit import CodePrior, code_priors, fit_codes
from nphm_track.tracking.fit import fit_points, ibug_rows, point_weights

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


def statistics(dim: int, spread: float) -> dict[str, object]:
    return {"mean": [0.0] * dim, "spread": [spread] * dim, "norm_bound": 8.0, "count": 5}


@pytest.fixture(scope="module")
def model() -> AnchoredDecoder:
    torch.manual_seed(0)
    codes = {"geo": statistics(SMALL.identity_dim, SMALL.identity_dim**-0.5), "exp": statistics(4, 1.0)}
    model = AnchoredDecoder(SMALL, codes).eval().requires_grad_(False)
    model.mean_anchors.copy_(load_head_model().mean_anchors)
    for layer in (*model.anchor_mlp, *model.deformation):
        layer.weight *= 2  # enough to move anchors by millimetres
    return model


@pytest.fixture(scope="module")
def clip(model: AnchoredDecoder) -> tuple[Tensor, Tensor]:
    """Pixels [T, 35, 2] of a turning, moving head at 0.7 m, and its identity code."""
    generator = torch.Generator().manual_seed(1)
    z_id = torch.randn(SMALL.identity_dim, generator=generator) * SMALL.identity_dim**-0.5
    phase = torch.linspace(0, 1.5, FRAMES)[:, None]
    z_ex = torch.sin(phase + 6 * torch.rand(SMALL.expression_dim, generator=generator))
    R = axis_angle_to_rotation_matrix(phase * torch.tensor([0.05, 0.3, 0.02])) @ torch.diag(torch.tensor([1.0, -1, -1]))
    t = torch.tensor([0.01, 0.02, 0.7]) + phase * torch.tensor([0.02, 0.0, 0.03])
    camera = posed(model, z_id, z_ex) @ R.mT + t[:, None]
    return (camera / camera[..., 2:] @ K.T)[..., :2], z_id


def posed(model: NphmDecoder, z_id: Tensor, z_ex: Tensor) -> Tensor:
    """Known landmarks [T, 35, 3], metres."""
    canonical = model.landmarks(z_id)[list(fit_points(model))].expand(len(z_ex), -1, -1)
    return pose_points(model, canonical, z_id.expand(len(z_ex), -1), z_ex, tolerance=1e-6).points * MODEL_UNIT


def error_px(model: NphmDecoder, z_id: Tensor, z_ex: Tensor, pixels: Tensor) -> Tensor:
    """Mean reprojection error [T] under the best poses."""
    points = posed(model, z_id, z_ex)
    pose = solve_pnp(points, pixels, K)
    camera = points @ pose.R.mT + pose.t[:, None]
    return ((camera / camera[..., 2:] @ K.T)[..., :2] - pixels).norm(dim=-1).mean(1)


class TestKnownLandmarks:
    def test_a_known_landmark_is_its_anchor(self, model: AnchoredDecoder) -> None:
        z_id = torch.zeros(SMALL.identity_dim)
        landmarks, anchors = model.landmarks(z_id), model.anchors(z_id)
        assert len(known_landmarks(model)) == 35
        for anchor, point in ANCHOR_LANDMARKS.items():
            assert torch.equal(landmarks[IBUG68_FROM_478[point]], anchors[anchor])

    def test_rows_and_points_go_together(self, model: AnchoredDecoder) -> None:
        points, rows = fit_points(model), ibug_rows(model)
        assert [IBUG68_FROM_478[i] for i in rows] == list(points)
        assert set(rows.tolist()) == set(ANCHOR_LANDMARKS.values())

    def test_released_model_knows_all(self) -> None:
        released = load_head_model()
        assert known_landmarks(released) == tuple(range(478))
        np.testing.assert_array_equal(ibug_rows(released), np.arange(68))

    def test_another_layout_is_refused(self) -> None:
        other = replace(SMALL, name="other", n_pairs=6, n_middle=3, nearest=8)
        with pytest.raises(ModelError, match="15 anchors"):
            AnchoredDecoder(other)
        with pytest.raises(ModelError, match="other has neither"):
            known_landmarks(NphmDecoder(other))

    @pytest.mark.parametrize(
        "damage", [{"mean": [0.0]}, {"spread": ["a"] * 4}, {"norm_bound": 0}, {"mean": [float("nan")] * 4}]
    )
    def test_damaged_statistics_are_refused(self, damage: dict[str, object]) -> None:
        codes = {"geo": statistics(SMALL.identity_dim, 1.0), "exp": statistics(4, 1.0) | damage}
        with pytest.raises(ModelError, match="statistics"):
            AnchoredDecoder(SMALL, codes)


class TestPriors:
    def test_codes_stay_within_the_norm_bound(self) -> None:
        prior = CodePrior(torch.zeros(3), torch.eye(3), norm_bound=1.0)
        torch.testing.assert_close(
            prior(torch.tensor([[3.0, 0, 4], [0.3, 0, 0]])), torch.tensor([[0.6, 0, 0.8], [0.3, 0, 0]])
        )

    def test_statistics_are_used(self, model: AnchoredDecoder) -> None:
        identity, expression = code_priors(model)
        assert expression.norm_bound == 8 and torch.equal(expression.basis, torch.eye(4))
        torch.testing.assert_close(
            identity.basis.diagonal(), torch.full((SMALL.identity_dim,), SMALL.identity_dim**-0.5)
        )

    def test_linear_priors_of_the_model_come_first(self) -> None:
        released = load_head_model()
        identity, expression = code_priors(released)
        assert torch.equal(identity.basis, released.identity_basis)
        assert expression.basis.shape == released.expression_basis.shape


class TestFit:
    @pytest.fixture(autouse=True)
    def trust_landmarks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The made-up model moves by little more than real noise."""
        monkeypatch.setattr(code_fit, "LANDMARKS", replace(code_fit.LANDMARKS, sigma=5e-4))

    def fit(
        self, model: NphmDecoder, pixels: Tensor, steps: int, identity: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return fit_codes(model, fit_points(model), pixels, torch.ones(35), K, identity=identity, steps=steps)

    def test_a_known_clip_is_explained(self, model: AnchoredDecoder, clip: tuple[Tensor, Tensor]) -> None:
        before = error_px(model, *self.fit(model, clip[0], 0), clip[0])
        z_id, z_ex = self.fit(model, clip[0], 120)
        assert z_id.shape == (SMALL.identity_dim,) and z_ex.shape == (FRAMES, 4)
        after = error_px(model, z_id, z_ex, clip[0])
        assert before.mean() > 10
        assert after.max() < 1.8 and after.mean() < before.mean() / 15

    def test_the_prior_holds_codes_of_the_mean_face(self, model: AnchoredDecoder) -> None:
        z_id, z_ex = torch.zeros(SMALL.identity_dim), torch.zeros(2, 4)
        camera = posed(model, z_id, z_ex) * torch.tensor([1.0, -1, -1]) + torch.tensor([0, 0, 0.7])
        found = self.fit(model, (camera / camera[..., 2:] @ K.T)[..., :2], 10)
        assert found[0].abs().max() < 0.05 and found[1].abs().max() < 0.05

    def test_a_given_identity_stays(self, model: AnchoredDecoder, clip: tuple[Tensor, Tensor]) -> None:
        before = error_px(model, *self.fit(model, clip[0], 0, clip[1]), clip[0])
        z_id, z_ex = self.fit(model, clip[0], 120, clip[1])
        assert torch.equal(z_id, clip[1])
        assert error_px(model, z_id, z_ex, clip[0]).mean() < before.mean() / 2

    def test_too_few_landmarks_are_refused(self, model: AnchoredDecoder, clip: tuple[Tensor, Tensor]) -> None:
        with pytest.raises(InputError, match="too few landmarks"):
            self.fit(model, torch.full_like(clip[0], torch.nan), 1)

    def test_weights_follow_the_points(self, model: AnchoredDecoder) -> None:
        every = dict(zip(fit_points(load_head_model()), point_weights().tolist(), strict=True))
        points = fit_points(model)
        assert point_weights(points).tolist() == [every[p] for p in points]
