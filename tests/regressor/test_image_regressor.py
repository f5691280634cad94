from __future__ import annotations

import copy

import pytest
import torch

from nphm_track.errors import ModelError
from nphm_track.geometry.networks import DETAIL, DETAIL_POINTS
from nphm_track.models import write_weights
from nphm_track.regressor.image_regressor import DETAILS, ImageRegressor, ImageRegressorConfig, pooled, seen_from
from nphm_track.regressor.landmark_regressor import RegressorConfig

CODES = RegressorConfig(
    global_dim=4, local_dim=3, n_members=6, expression_dim=5, groups=((0, 1), (2, 3)), width=16, layers=1, heads=2
)


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    landmarks = torch.rand(batch, 478, 3, generator=generator) * 100
    tokens = {e: torch.randn(batch, 256, 8, generator=generator) for e in "np"}
    return landmarks, torch.rand(batch, 52, generator=generator), torch.full((batch, 2), 256.0), tokens


def regressor(**changes: object) -> ImageRegressor:
    torch.manual_seed(0)
    return ImageRegressor(ImageRegressorConfig(CODES, 8, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("encoders", [(), ("n",), ("n", "p")])
@pytest.mark.parametrize("landmarks", [True, False])
def test_shapes_of_every_variant(encoders: tuple[str, ...], landmarks: bool) -> None:
    codes = regressor(encoders=encoders, landmarks=landmarks).predict(*inputs())
    assert codes.z_id.shape == (2, 4 + 6 * 3)
    assert codes.z_ex.shape == (2, 5)
    assert codes.log_variance.shape == (2, 7)


def test_image_tokens_matter_and_landmarks_only_when_they_are_read() -> None:
    landmarks, scores, size, tokens = inputs()
    other = {e: x.flip(1) for e, x in tokens.items()}
    both = regressor()
    assert not torch.allclose(
        both.predict(landmarks, scores, size, tokens).z_id, both.predict(landmarks, scores, size, other).z_id
    )
    images_only = regressor(landmarks=False)
    a = images_only.predict(landmarks, scores, size, tokens).z_id
    assert torch.equal(a, images_only.predict(landmarks, 1 - scores, size, tokens).z_id)


def test_details_are_read_where_the_configuration_says_so() -> None:
    landmarks, scores, size, tokens = inputs()
    assert sum(DETAILS) == len(DETAIL_POINTS)
    open_eyes, shut = (tokens | {"d": torch.full((2, sum(DETAILS), DETAIL), x)} for x in (0.0, 1.0))
    shut["d"][:, 32:] = 0  # the lids come first
    model = regressor(details=True)
    codes = [model.predict(landmarks, scores, size, t) for t in (open_eyes, shut)]
    assert not torch.allclose(codes[0].z_ex, codes[1].z_ex)
    plain = [regressor().predict(landmarks, scores, size, t).z_ex for t in (tokens, shut)]
    assert torch.equal(*plain)


def test_pooling_keeps_neighbouring_cells_together() -> None:
    cells = torch.arange(256.0).view(1, 256, 1)
    assert pooled(cells)[0, 0].tolist() == [0, 1, 16, 17]
    assert pooled(cells)[0, 9].tolist() == [34, 35, 50, 51]


def test_the_field_of_view_is_read_where_it_is_known() -> None:
    model = regressor(field_of_view=True)
    unknown = model.predict(*inputs())
    nothing = model.predict(*inputs(), torch.full((2,), torch.nan))
    assert torch.equal(unknown.z_id, nothing.z_id) and torch.equal(unknown.z_ex, nothing.z_ex)
    known = model.predict(*inputs(), torch.tensor([300.0, torch.nan]))
    assert not torch.allclose(known.z_ex[0], unknown.z_ex[0])
    torch.testing.assert_close(known.z_ex[1], unknown.z_ex[1])
    wider = model.predict(*inputs(), torch.tensor([150.0, torch.nan]))
    assert not torch.allclose(wider.z_ex[0], known.z_ex[0])


def test_a_regressor_without_the_field_of_view_ignores_the_camera() -> None:
    model = regressor()
    assert torch.equal(model.predict(*inputs(), torch.full((2,), 300.0)).z_id, model.predict(*inputs()).z_id)


def test_what_a_camera_sees_does_not_depend_on_the_resolution() -> None:
    landmarks, _, size, _ = inputs(4)
    focal = torch.tensor([200.0, 500.0, torch.nan, -1.0])
    seen = seen_from(landmarks, size, focal)
    torch.testing.assert_close(seen_from(3 * landmarks, 3 * size, 3 * focal), seen)
    assert not seen[2:].any() and seen[:2, 3].tolist() == [1, 1]
    one = landmarks[:1].expand(2, -1, -1)
    near, far = seen_from(one, size[:2], torch.tensor([200.0, 400.0]))
    assert float(near[0] - far[0]) == pytest.approx(0.6931, abs=1e-3)  # twice as large in angle
    torch.testing.assert_close(near[1:3], 2 * far[1:3])
    middle = one - one.mean(1, keepdim=True) + 128
    torch.testing.assert_close(seen_from(middle, size[:2], focal[:2])[:, 1:3], torch.zeros(2, 2), atol=1e-5, rtol=0)


def test_codes_on_the_prior_stay_and_others_are_projected() -> None:
    generator = torch.Generator().manual_seed(2)
    model = regressor(identity_weights=7)
    z = torch.randn(3, 22, generator=generator)
    model.on_prior(z)
    assert model.double().on_prior(z.double()).dtype == torch.float64  # moved as to another device
    model.float()
    for _ in range(2):  # a changed basis must not meet the projection of the one before
        basis = torch.randn(22, 7, generator=generator)
        model.identity_basis.copy_(basis)
        on = model.on_prior(z)
        torch.testing.assert_close(model.on_prior(on), on)
        torch.testing.assert_close(on, (basis @ torch.linalg.lstsq(basis, z.T).solution).T, atol=1e-5, rtol=1e-4)
        inside = torch.randn(3, 7, generator=generator) @ basis.T
        torch.testing.assert_close(model.on_prior(inside), inside, atol=1e-5, rtol=1e-4)
    model.load_state_dict({**model.state_dict(), "identity_basis": torch.eye(22, 7)})
    torch.testing.assert_close(model.on_prior(z)[:, :7], z[:, :7])
    assert not model.on_prior(z)[:, 7:].any()
    copied = copy.deepcopy(model)
    copied.identity_basis.copy_(torch.eye(22, 7).flip(0))
    assert not copied.on_prior(z)[:, :7].any() and not model.on_prior(z)[:, 7:].any()


def test_identities_are_drawn_towards_the_mean_of_people() -> None:
    whole, drawn = regressor(), regressor(identity_trust=0.75)
    for model in (whole, drawn):
        model.identity_basis.copy_(torch.randn(22, 100, generator=torch.Generator().manual_seed(2)))
        model.identity_mean.copy_(torch.linspace(-1, 1, 22))
    z, mean = whole.predict(*inputs()).z_id, whole.identity_mean
    torch.testing.assert_close(drawn.predict(*inputs()).z_id, mean + 0.75 * (z - mean))


def test_the_prior_can_be_trained_through_after_inference() -> None:
    model = regressor()
    with torch.inference_mode():
        model.predict(*inputs())
    model.predict(*inputs()).z_id.sum().backward()


def test_written_weights_are_read_back_and_others_refused(tmp_path) -> None:
    model = regressor().eval()
    path = tmp_path / "model.safetensors"
    write_weights(path, model.state_dict(), {"kind": "image-regressor", "regressor": model.image_config.to_dict()})
    again = ImageRegressor.from_pretrained(str(path))
    assert torch.allclose(again.predict(*inputs()).z_id, model.predict(*inputs()).z_id)
    write_weights(path, {"a": torch.zeros(1)}, {"kind": "nphm"})
    with pytest.raises(ModelError, match="not an image regressor"):
        ImageRegressor.from_pretrained(str(path))
