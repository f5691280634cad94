"""Pix2NPHM's regressor: NPHM codes of a frame from the tokens of E_n and E_p and its landmarks (section 3.3).

Besides the codes it says how far each part of them may be off, which the paper leaves to future work: frames that see
the nose in profile may then vote on the nose, and frontal ones on the cheeks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from nphm_track.geometry.networks import DETAIL, GRID
from nphm_track.models import load_network
from nphm_track.regressor.landmark_regressor import LandmarkRegressor, RegressorConfig, head

DETAILS = (16, 16, 20, 20, 10, 10)
"""Of ``DETAIL_POINTS``, those of each detail token: both eyes, the rims of the lips, both brows."""
SPREAD_RANGE = (-4.0, 2.0)
"""Bounds of the predicted log variances."""


@dataclass(frozen=True)
class ImageRegressorConfig:
    """Sizes; ``encoders`` names the encoders whose tokens are read ("n", "p")."""

    regressor: RegressorConfig
    token_width: int
    encoders: tuple[str, ...] = ("n", "p")
    landmarks: bool = True
    identity_weights: int = 100
    expression_weights: int = 51
    field_of_view: bool = False  # reads how large the face is seen, where the camera is known
    details: bool = False  # reads the trunk's finest maps along lids, lips and brows
    identity_trust: float = 1.0  # share kept of what sets a person off from people's mean; below 1 for real photos
    grid: int = GRID  # tokens of an encoder along each side of the crop
    pool: int = 2  # of these along each side become one token of the regressor
    recompute: bool = False  # gradient checkpointing

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
    """The landmark regressor's transformer with image tokens beside (or in place of) the landmark tokens.

    Where the head model has linear priors, the global and the expression token also give weights of these, which are
    learnt far sooner than codes part by part; what the parts add off the identity prior is dropped (``on_prior``).
    """

    identity_basis: Tensor
    identity_mean: Tensor
    expression_basis: Tensor

    def __init__(self, config: ImageRegressorConfig) -> None:
        super().__init__(config.regressor)
        self.image_config = c = config
        self.recompute = c.recompute
        width = c.regressor.width
        n = (c.grid // c.pool) ** 2
        self.merge = nn.ModuleDict({e: nn.Linear(c.pool**2 * c.token_width, width) for e in c.encoders})
        self.place = nn.ParameterDict({e: nn.Parameter(torch.randn(n, width) * 0.02) for e in c.encoders})
        groups = DETAILS if c.details else ()
        self.detail = nn.ModuleList(nn.Linear(points * DETAIL, width) for points in groups)
        self.field = nn.Linear(4, width) if c.field_of_view else None
        self.to_variance = nn.Linear(width, 1)
        n_id = c.regressor.global_dim + c.regressor.n_members * c.regressor.local_dim
        if c.identity_weights:
            self.to_identity_weights = _zero_last(head(width, c.identity_weights))
        if c.expression_weights:
            self.to_expression_weights = _zero_last(head(width, c.expression_weights))
        self._orthonormal, self._orthonormal_of = torch.empty(0), (0, -1)
        self.register_buffer("identity_basis", torch.zeros(n_id, c.identity_weights))
        self.register_buffer("identity_mean", torch.zeros(n_id))  # what is seen in people's photos, on average
        self.register_buffer("expression_basis", torch.zeros(c.regressor.expression_dim, c.expression_weights))

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Identity codes [B, D_id] and expression codes [B, D_ex] from classifier tokens."""
        z_id, z_ex = super().codes(x)
        if self.image_config.identity_weights:
            z_id = z_id + self.to_identity_weights(x[:, -1]) @ self.identity_basis.T
        if self.image_config.expression_weights:
            z_ex = z_ex + self.to_expression_weights(x[:, 0]) @ self.expression_basis.T
        return z_id, z_ex

    def on_prior(self, z_id: Tensor) -> Tensor:
        """Identity codes [B, D_id] without what the linear prior does not hold: off it, lips stick together."""
        basis = self.identity_basis
        if not basis.shape[1]:
            return z_id
        state = (basis.data_ptr(), basis._version)
        if state != self._orthonormal_of:
            with torch.inference_mode(False), torch.no_grad():
                self._orthonormal, self._orthonormal_of = torch.linalg.qr(basis.clone())[0], state
        return self.mean_id + (z_id - self.mean_id) @ self._orthonormal @ self._orthonormal.T

    def predict(
        self,
        landmarks: Tensor,
        scores: Tensor,
        image_size: Tensor,
        image_tokens: dict[str, Tensor],
        focal: Tensor | None = None,
    ) -> Codes:
        """Codes by the parts that :meth:`look` sees, which takes the same."""
        x = self.look(landmarks, scores, image_size, image_tokens, focal)
        z_id, z_ex = self.codes(x)
        z_id = self.on_prior(z_id)
        z_id = torch.lerp(self.identity_mean.to(z_id), z_id, self.image_config.identity_trust)
        return Codes(z_id, z_ex, self.to_variance(x)[..., 0].clamp(*SPREAD_RANGE))

    def look(
        self,
        landmarks: Tensor,
        scores: Tensor,
        image_size: Tensor,
        image_tokens: dict[str, Tensor],
        focal: Tensor | None = None,
    ) -> Tensor:
        """Classifier tokens [B, members + 1, width] after the transformer.

        landmarks [B, 478, 3] px, scores [B, 52], image_size [B, 2] px, image_tokens {"n": [B, grid^2, D], "p": ...,
        "d": [B, P, DETAIL], for one that reads details}, focal [B] px, not finite where the camera is not known.
        """
        c = self.image_config
        tokens = [self.merge[e](pooled(image_tokens[e], c.grid, c.pool)) + self.place[e] for e in c.encoders]
        if c.details:
            groups = image_tokens["d"].split(DETAILS, 1)
            tokens += [layer(x.flatten(1))[:, None] for layer, x in zip(self.detail, groups, strict=True)]
        known = self.tokens(landmarks, scores, image_size)
        if self.field is not None:
            seen = known.new_zeros(len(known), 4) if focal is None else seen_from(landmarks, image_size, focal)
            known = torch.cat([known[:, :-1], known[:, -1:] + self.field(seen)[:, None]], 1)
        tokens.append(known if c.landmarks else known[:, -1:])
        return self.read_out(torch.cat(tokens, 1))

    @classmethod
    def from_pretrained(
        cls, name_or_path: str = "image-regressor", *, device: torch.device | str = "cpu"
    ) -> ImageRegressor:
        """The released regressor. Raises ModelError when the file is missing, damaged or of another kind."""
        return load_network(
            name_or_path,
            "image-regressor",
            "an image regressor",
            lambda config, _: cls(ImageRegressorConfig.from_dict(config["regressor"])),
            device,
        )


def seen_from(landmarks: Tensor, image_size: Tensor, focal: Tensor) -> Tensor:
    """How a camera with its principal point in the middle sees faces, [B, 4]: log size, place and 1; 0 where ``focal``
    [B] is not finite. A face seen large is near, and perspective widens its nose."""
    xy = landmarks[..., :2]
    centre = xy.mean(1)
    radius = (xy - centre[:, None]).square().sum(-1).mean(1).sqrt().clamp_min(1e-6)
    known = torch.isfinite(focal) & (focal > 0)
    f = torch.where(known, focal, torch.ones_like(focal))
    place = (centre - image_size / 2) / f[:, None]
    seen = torch.cat([(radius / f).log()[:, None] + 2.5, 2 * place, torch.ones_like(place[:, :1])], 1)
    return torch.where(known[:, None], seen, torch.zeros_like(seen))


def _zero_last(mlp: nn.Sequential) -> nn.Sequential:
    """The MLP, giving zeros until it is trained."""
    last = cast("nn.Linear", mlp[-1])
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return mlp


def pooled(tokens: Tensor, grid: int = GRID, pool: int = 2) -> Tensor:
    """Tokens [B, grid^2, D] of the crop's cells -> [B, (grid / pool)^2, pool^2 D], ``pool`` x ``pool`` cells each."""
    b, _, d = tokens.shape
    side = grid // pool
    return tokens.view(b, side, pool, side, pool, d).transpose(2, 3).reshape(b, side * side, pool * pool * d)
