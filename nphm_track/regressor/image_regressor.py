"""Pix2NPHM's regressor: NPHM codes of a frame from the tokens of E_n and E_p and its landmarks (section 3.3).

Besides the codes it says how far each part of them may be off, which the paper leaves to future work: frames that see
the nose in profile may then vote on the nose, and frontal ones on the cheeks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nphm_track.errors import ModelError
from nphm_track.geometry.networks import GRID
from nphm_track.models import read_weights
from nphm_track.regressor.landmark_regressor import LandmarkRegressor, RegressorConfig

SPREAD_RANGE = (-4.0, 2.0)
"""Bounds of the predicted log variances."""


@dataclass(frozen=True)
class ImageRegressorConfig:
    """Sizes; ``encoders`` names the encoders whose tokens are read ("n", "p")."""

    regressor: RegressorConfig
    token_width: int
    encoders: tuple[str, ...] = ("n", "p")
    landmarks: bool = True

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ImageRegressorConfig:
        regressor = RegressorConfig.from_dict(values["regressor"])
        return cls(**{**values, "regressor": regressor, "encoders": tuple(values["encoders"])})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Codes:
    """Codes of B frames and how sure they are.

    Attributes:
        z_id: [B, D_id] identity.
        z_ex: [B, D_ex] expression.
        log_variance: [B, members + 1] of the expression (first), the 65 local parts and the global part (with the
            anchor-less member's), in units of the squared spread of the part over people.
    """

    z_id: Tensor
    z_ex: Tensor
    log_variance: Tensor


class ImageRegressor(LandmarkRegressor):
    """The landmark regressor's transformer with image tokens beside (or in place of) the landmark tokens."""

    def __init__(self, config: ImageRegressorConfig) -> None:
        super().__init__(config.regressor)
        self.image_config = c = config
        width = c.regressor.width
        n = (GRID // 2) ** 2
        self.merge = nn.ModuleDict({e: nn.Linear(4 * c.token_width, width) for e in c.encoders})
        self.place = nn.ParameterDict({e: nn.Parameter(torch.randn(n, width) * 0.02) for e in c.encoders})
        self.to_variance = nn.Linear(width, 1)

    def predict(self, landmarks: Tensor, scores: Tensor, image_size: Tensor, image_tokens: dict[str, Tensor]) -> Codes:
        """landmarks [B, 478, 3] px, scores [B, 52], image_size [B, 2] px, image_tokens {"n": [B, 256, D], "p": ...}."""
        tokens = [self.merge[e](_pool(image_tokens[e])) + self.place[e] for e in self.image_config.encoders]
        known = self.tokens(landmarks, scores, image_size)
        tokens.append(known if self.image_config.landmarks else known[:, -1:])
        x = self.read_out(torch.cat(tokens, 1))
        z_id, z_ex = self.codes(x)
        return Codes(z_id, z_ex, self.to_variance(x)[..., 0].clamp(*SPREAD_RANGE))

    @classmethod
    def from_pretrained(
        cls, name_or_path: str = "image-regressor", *, device: torch.device | str = "cpu"
    ) -> ImageRegressor:
        """The released regressor. Raises ModelError when the file is missing, damaged or of another kind."""
        tensors, config = read_weights(name_or_path)
        if config.get("kind") != "image-regressor":
            raise ModelError(f"{name_or_path} is not an image regressor")
        model = cls(ImageRegressorConfig.from_dict(config["regressor"]))
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise ModelError(f"{name_or_path}: {str(error).splitlines()[-1].strip()}") from None
        return model.to(device).eval().requires_grad_(False)


def _pool(tokens: Tensor) -> Tensor:
    """Tokens [B, 256, D] of the 16 x 16 cells -> [B, 64, 4 D], 2 x 2 cells each."""
    b, _, d = tokens.shape
    half = GRID // 2
    return tokens.view(b, half, 2, half, 2, d).transpose(2, 3).reshape(b, half * half, 4 * d)
