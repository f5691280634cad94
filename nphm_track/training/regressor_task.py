"""Training of the landmark regressor on heads with known codes: L3D in SDF space, vertex and landmark terms, R."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from nphm_track.errors import InputError
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.regressor.landmark_regressor import (
    LandmarkRegressor,
    RegressorConfig,
    group_landmarks,
    normalise_landmarks,
)
from nphm_track.training.head_terms import HeadTerms
from nphm_track.training.recipe import Strict
from nphm_track.training.trainer import Share


class RegressorData(Strict):
    """The ``[data]`` table of a landmark-regressor recipe."""

    ict: str
    head_model: str = Field(description="name or path of the frozen head model")
    shards: str = Field(description="folder written by training/build_landmark_renders.py")
    heldout: str
    projected: str | None = Field(
        None, description="folder written by training/build_landmark_projections.py; none: renders only"
    )
    landmarks: str = Field(
        "training/assets/ict_landmarks478.npz", description="where the 478 points lie, from calibrate_landmarks.py"
    )
    batch: int = Field(48, gt=0)
    rendered_fraction: float = Field(0.5, ge=0, le=1, description="share of a batch that is detected on renders")
    sdf_points: int = Field(96, ge=0, description="points a sample for L3D")
    sdf_samples: int = Field(16, ge=0, description="samples a batch for L3D")
    jitter: float = Field(0.004, ge=0, description="landmark noise added to every sample, of the face's RMS radius")


def regressor_config(head: NphmDecoder) -> RegressorConfig:
    """Sizes that fit a head model."""
    c = head.config
    return RegressorConfig(
        c.global_dim, c.local_dim, c.n_members, c.expression_dim, group_landmarks(head.mean_landmarks)
    )


def standardise(model: LandmarkRegressor, head: NphmDecoder, landmarks: Tensor, size: Tensor) -> None:
    """Set the spreads of inputs (from landmarks [N, 478, 3] px, sizes [N, 2]) and of codes (from the head model)."""
    points = normalise_landmarks(landmarks, size)[0]
    model.mean_points.copy_(points.mean(0))
    model.spread_points.copy_(points.std(0).clamp_min(0.01))
    model.spread_id.copy_(head.identity_basis[:, :100].norm(dim=1).clamp_min(1e-4))
    model.spread_ex.copy_((head.expression_basis.norm(dim=1) * 0.3).clamp_min(1e-4))


class RegressorTask:
    """Landmarks of renders and of projections, mixed."""

    share = Share()

    def __init__(self, data: RegressorData) -> None:
        self.data = data
        self.terms = HeadTerms(data.head_model, data.ict, data.landmarks)
        self.heldout = read_samples(Path(data.heldout), "landmarks")
        self.rendered = read_samples(Path(data.shards), "landmarks")
        self.projected = read_samples(Path(data.projected), "projected") if data.projected else self.rendered
        self.model = LandmarkRegressor(regressor_config(self.terms.head))
        standardise(self.model, self.terms.head, self.rendered["landmarks"], self.rendered["size"])

    def config(self) -> dict[str, Any]:
        return {"kind": "landmark-regressor", "regressor": self.model.config.to_dict()}

    def losses(self, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        data = self.data
        n_rendered = int(data.batch * data.rendered_fraction)
        parts = ((self.rendered, n_rendered), (self.projected, data.batch - n_rendered))
        batch = {
            k: torch.cat([_draw(table, k, count, step, self.share) for table, count in parts]) for k in self.rendered
        }
        landmarks = batch["landmarks"]
        radius = landmarks[..., :2].std(dim=(1, 2), keepdim=True)
        scale = torch.rand(len(landmarks), 1, 1, generator=generator) * 2 * data.jitter
        landmarks = landmarks + torch.randn(landmarks.shape, generator=generator) * radius * scale
        z_id, z_ex = self.model(landmarks, batch["scores"], batch["size"])
        terms = self.terms.vertex_terms(z_id, z_ex, batch)
        if data.sdf_samples:
            terms["sdf"] = self.terms.sdf_term(z_id, z_ex, batch, generator, data.sdf_samples, data.sdf_points)
        sizes = z_id / self.model.spread_id, z_ex / self.model.spread_ex
        terms["code"] = sizes[0].square().mean() + sizes[1].square().mean()
        return terms

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out renders: mean vertex errors (mm, head frame, no alignment) and expression correlations."""
        h = self.heldout
        z_id, z_ex = model(h["landmarks"], h["scores"], h["size"])
        return self.terms.metrics(z_id, z_ex, h)


def read_samples(folder: Path, kind: str) -> dict[str, Tensor]:
    """All shards of a folder as one table; samples in which the network saw no face are left out."""
    paths = sorted(folder.glob(f"{kind}_??????.npz"))
    if not paths:
        raise InputError(f"no {kind} shards in {folder}")
    parts = [np.load(p, allow_pickle=False) for p in paths]
    names = ("w", "e", "K", "R", "t", "landmarks", "blendshapes", "presence")
    table = {k: torch.from_numpy(np.concatenate([p[k] for p in parts])) for k in names}
    seen = table.pop("presence") > 0.8
    table = {k: v[seen] for k, v in table.items()}
    table["scores"] = table.pop("blendshapes")
    table["size"] = 2 * table["K"][:, :2, 2]  # principal point in the middle
    return table


def _draw(table: dict[str, Tensor], key: str, count: int, step: int, share: Share) -> Tensor:
    """``count`` rows of a column; the same rows for every column of a step."""
    rows = torch.Generator().manual_seed(step * 2 + count)
    return table[key][share.of(torch.randint(len(table["w"]), (count,), generator=rows))]
