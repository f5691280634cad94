"""Training of E_n or E_p at the paper's size: a dense map of crops, L1 in the mask (Pixel3DMM)."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nphm_track.geometry.vit import DenseVit, Target, VitConfig, take_dinov2
from nphm_track.training.geometry_task import NORMAL_SCALE, POINT_SCALE
from nphm_track.training.recipe import Strict
from nphm_track.training.samples import Samples, draw_rows, read_crops
from nphm_track.training.trainer import Share


class DenseData(Strict):
    """The ``[data]`` table of a recipe of E_n or E_p."""

    target: Target = Field(description="normals: E_n; points: E_p")
    samples: str = Field(description="folder of samples (nphm_track.training.samples)")
    heldout: str = Field(description="the same, of other people")
    dinov2: str | None = Field(None, description="local file of DINOv2's weights to start from")
    batch: int = Field(32, gt=0)
    size: int = Field(512, gt=0, description="pixels of the crop's side")
    patch: int = Field(16, gt=0)
    width: int = Field(768, gt=0)
    layers: int = Field(12, gt=0)
    heads: int = Field(12, gt=0)
    decoder_width: int = Field(256, gt=0)
    decoder_layers: int = Field(12, gt=0)
    decoder_heads: int = Field(8, gt=0)
    recompute: bool = Field(False, description="gradient checkpointing: less memory for a third more time")
    heldout_samples: int = Field(192, gt=0, description="that the held-out figure is taken on")
    device: str = Field("cpu", description="the trainer's device")

    def config(self) -> VitConfig:
        return VitConfig(**{k: getattr(self, k) for k in VitConfig.__dataclass_fields__})


class DenseTask:
    """Stored samples; the batch of the next step is read while one trains."""

    share = Share()

    def __init__(self, data: DenseData) -> None:
        self.data, self.device = data, torch.device(data.device)
        self.samples, self.heldout = Samples(data.samples), Samples(data.heldout)
        self.model = DenseVit(data.config())
        if data.dinov2:
            take_dinov2(self.model.encoder, data.dinov2)
        self.pool, self.ahead = ThreadPoolExecutor(2), ThreadPoolExecutor(1)
        self._next: dict[int, Any] = {}

    def config(self) -> dict[str, Any]:
        return {"kind": "vit", "vit": self.model.config.to_dict()}

    def losses(self, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        future = self._next.pop(step, None) or self.ahead.submit(self._batch, step)
        self._next = {step + 1: self.ahead.submit(self._batch, step + 1)}
        crop, target, mask = (x.to(self.device) for x in future.result())
        seen, sure = self._at(self.model(crop), target.shape[-1])
        total = mask.sum().clamp_min(1)
        error = (seen - target).abs().sum(1)
        scale = float(NORMAL_SCALE) if self.data.target == "normals" else POINT_SCALE
        right = mask * torch.exp(-error.detach() / scale)
        return {
            "l1": (mask * error).sum() / total,
            "sure": F.binary_cross_entropy_with_logits(sure, right),
        }

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = self.share.of(draw_rows(self.data.batch, len(self.samples), 0, step)).tolist()
        return self._read(self.samples, rows)

    def _read(self, samples: Samples, rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Crops, targets [B, 3, n, n] and masks [B, n, n]."""
        columns = samples.take(rows, self.pool)
        crop = read_crops(columns["jpeg"], self.data.size, self.pool)
        target = torch.from_numpy(columns[self.data.target]).float().permute(0, 3, 1, 2)
        if self.data.target == "normals":
            target = F.normalize(target, dim=1)
        return crop, target, torch.from_numpy(columns["mask"]).float()

    @staticmethod
    def _at(out: tuple[Tensor, Tensor], size: int) -> tuple[Tensor, Tensor]:
        """Maps at the targets' resolution."""
        seen, sure = out
        if seen.shape[-1] == size:
            return seen, sure
        return (
            F.interpolate(seen, size=(size, size), mode="bilinear", antialias=True),
            F.interpolate(sure[:, None], size=(size, size), mode="bilinear")[:, 0],
        )

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out people: mean angle (degrees) of normals, mean distance (mm) of points."""
        assert isinstance(model, DenseVit)
        total, count = 0.0, 0.0
        for some in torch.arange(min(len(self.heldout), self.data.heldout_samples)).split(16):
            crop, target, mask = (x.to(self.device) for x in self._read(self.heldout, some.tolist()))
            seen, _ = self._at(model(crop), target.shape[-1])
            if self.data.target == "normals":
                cosine = (F.normalize(seen, dim=1) * target).sum(1).clamp(-1, 1)
                error = torch.rad2deg(cosine.acos())
            else:
                error = 1000 * (seen - target).norm(dim=1)
            total, count = total + float((mask * error).sum()), count + float(mask.sum())
        return {"degrees" if self.data.target == "normals" else "mm": total / max(count, 1.0)}
