from __future__ import annotations

import pytest
import torch

from nphm_track.errors import ModelError
from nphm_track.models import write_weights
from nphm_track.regressor.image_regressor import ImageRegressor, ImageRegressorConfig, _pool
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


def test_pooling_keeps_neighbouring_cells_together() -> None:
    cells = torch.arange(256.0).view(1, 256, 1)
    assert _pool(cells)[0, 0].tolist() == [0, 1, 16, 17]
    assert _pool(cells)[0, 9].tolist() == [34, 35, 50, 51]


def test_written_weights_are_read_back_and_others_refused(tmp_path) -> None:
    model = regressor().eval()
    path = tmp_path / "model.safetensors"
    write_weights(path, model.state_dict(), {"kind": "image-regressor", "regressor": model.image_config.to_dict()})
    again = ImageRegressor.from_pretrained(str(path))
    assert torch.allclose(again.predict(*inputs()).z_id, model.predict(*inputs()).z_id)
    write_weights(path, {"a": torch.zeros(1)}, {"kind": "nphm"})
    with pytest.raises(ModelError, match="not an image regressor"):
        ImageRegressor.from_pretrained(str(path))
