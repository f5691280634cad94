"""Training of the image regressor on tokens of the frozen encoders: L3D, vertex and landmark terms, R, uncertainty.

The tokens of every training render are computed once and kept in memory (128 kB each as float16): the encoders cost
more than the regressor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from rich.progress import track
from torch import Tensor, nn

from nphm_track.geometry.networks import GeometryNet
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.models import read_weights
from nphm_track.regressor.image_regressor import Codes, ImageRegressor, ImageRegressorConfig
from nphm_track.training.geometry_task import FaceShards, prepare_crops
from nphm_track.training.head_terms import HeadTerms
from nphm_track.training.recipe import Strict
from nphm_track.training.regressor_task import regressor_config, standardise
from nphm_track.training.render_loss import Kind, render_loss
from nphm_track.training.trainer import Share

KNOWN_CAMERA = 0.5
"""Share of the samples whose field of view the regressor is told."""
RAYS_KEPT = 256
"""Pixels of each render that normals may be drawn at."""
Table = dict[str, Tensor]
"""Samples by column, [N, ...] each."""


class ImageRegressorData(Strict):
    """The ``[data]`` table of an image-regressor recipe."""

    ict: str
    head_model: str = Field(description="name or path of the frozen head model")
    geometry: str = Field(description="name or path of the frozen geometry networks")
    shards: str = Field(description="folder written by training/build_face_renders.py")
    heldout: str
    landmarks: str = "training/assets/ict_landmarks478.npz"
    init: str | None = Field(None, description="model.safetensors to start from")
    batch: int = Field(48, gt=0)
    width: int = Field(128, gt=0)
    layers: int = Field(4, gt=0)
    encoders: tuple[str, ...] = Field(("n", "p"), description="whose tokens are read; t: the trunk alone")
    details: bool = Field(True, description="read the trunk's finest maps along lids, lips and brows")
    use_landmarks: bool = Field(True, description="landmark tokens beside the image tokens")
    losses: tuple[Literal["3d", "2d", "surface", "volume"], ...] = Field(
        ("3d", "2d"), description="which supervision counts; 2d: landmarks; surface, volume: normals by that renderer"
    )
    rays: int = Field(32, gt=0, description="of a sample, for normals of a renderer")
    ray_samples: int = Field(12, gt=0, description="samples a batch with rays")
    sdf_points: int = Field(96, ge=0, description="points a sample for L3D")
    sdf_samples: int = Field(16, ge=0, description="samples a batch for L3D")
    jitter: float = Field(0.004, ge=0, description="landmark noise, of the face's RMS radius")
    token_dropout: float = Field(0.15, ge=0, lt=1, description="share of a sample's image tokens that are zeroed")


class ImageRegressorTask:
    """The encoders and the head model are frozen."""

    share = Share()

    def __init__(self, data: ImageRegressorData, tables: tuple[Table, Table] | None = None) -> None:
        """``tables``: training and held-out samples that ``encode_shards`` made before."""
        self.data = data
        self.terms = HeadTerms(data.head_model, data.ict, data.landmarks)
        geometry = GeometryNet.from_pretrained(data.geometry)
        rays = RAYS_KEPT if {"surface", "volume"} & set(data.losses) else 0
        self.train_table, self.heldout_table = tables or (
            encode_shards(FaceShards(Path(folder)), geometry, (*data.encoders, "d"), rays)
            for folder in (data.shards, data.heldout)
        )
        base = regressor_config(self.terms.head)
        config = ImageRegressorConfig(
            type(base)(**{**base.to_dict(), "groups": base.groups, "width": data.width, "layers": data.layers}),
            geometry.config.width,
            data.encoders,
            data.use_landmarks,
            self.terms.basis_id.shape[1],
            self.terms.head.expression_basis.shape[1],
            field_of_view=True,
            details=data.details,
        )
        tensors: dict[str, Tensor] = {}
        if data.init:
            tensors, stored = read_weights(data.init)
            config = replace(ImageRegressorConfig.from_dict(stored["regressor"]), identity_trust=1.0)
        self.model = ImageRegressor(config)
        self.model.identity_basis.copy_(self.terms.basis_id)
        self.model.expression_basis.copy_(self.terms.head.expression_basis)
        standardise(self.model, self.terms.head, self.train_table["landmarks"], self.train_table["size"])
        if tensors:
            self.model.load_state_dict(tensors)

    def config(self) -> dict[str, Any]:
        return {"kind": "image-regressor", "regressor": self.model.image_config.to_dict()}

    def losses(self, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        data = self.data
        rows = self.share.of(torch.randint(len(self.train_table["w"]), (data.batch,), generator=generator))
        batch = {k: v[rows] for k, v in self.train_table.items()}
        landmarks = batch["landmarks"]
        radius = landmarks[..., :2].std(dim=(1, 2), keepdim=True)
        scale = torch.rand(len(rows), 1, 1, generator=generator) * 2 * data.jitter
        batch["landmarks"] = landmarks + torch.randn(landmarks.shape, generator=generator) * radius * scale
        codes = self._predict(self.model, batch, generator)
        terms = self.terms.vertex_terms(codes.z_id, codes.z_ex, batch)
        if "2d" not in data.losses:
            del terms["reprojection"]
        if "3d" not in data.losses:
            for name in ("neutral", "posed", "shape", "weights"):
                del terms[name]
        elif data.sdf_samples:
            near = (batch, generator, data.sdf_samples, data.sdf_points)
            terms["sdf"] = self.terms.sdf_term(codes.z_id, codes.z_ex, *near)
        kinds: tuple[Kind, ...] = ("surface", "volume")
        for kind in kinds:
            if kind in data.losses:
                terms[kind] = self._render(kind, codes, batch, generator)
        sizes = codes.z_id / self.model.spread_id, codes.z_ex / self.model.spread_ex
        terms["code"] = sizes[0].square().mean() + sizes[1].square().mean()
        terms["uncertainty"] = likelihood(self.terms, self.model, codes, batch)
        return terms

    def _render(self, kind: Kind, codes: Codes, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        n = self.data.ray_samples
        chosen = torch.randint(batch["ray_points"].shape[1], (self.data.rays,), generator=generator)
        points, normals = (batch[k][:n, chosen].float() for k in ("ray_points", "ray_normals"))
        centre = -(batch["t"][:n, None] @ batch["R"][:n])[:, 0]
        return render_loss(self.terms.head, kind, codes.z_id[:n], codes.z_ex[:n], points, normals, centre)

    def _predict(self, model: ImageRegressor, batch: dict[str, Tensor], generator: torch.Generator | None) -> Codes:
        tokens = {}
        for e in self.data.encoders:
            x = batch["tokens_" + e].float()
            if generator is not None and self.data.token_dropout:
                keep = torch.rand(*x.shape[:2], 1, generator=generator) > self.data.token_dropout
                x = x * keep
            tokens[e] = x
        if model.image_config.details:
            tokens["d"] = batch["tokens_d"].float()
        focal = batch["K"][:, 0, 0]
        if generator is not None:
            focal = torch.where(torch.rand(len(focal), generator=generator) < KNOWN_CAMERA, focal, torch.nan)
        return model.predict(batch["landmarks"], batch["scores"], batch["size"], tokens, focal)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out people in held-out skin: see :meth:`HeadTerms.metrics`."""
        assert isinstance(model, ImageRegressor)
        h = self.heldout_table
        codes = self._predict(model, h, None)
        return self.terms.metrics(codes.z_id, codes.z_ex, h)


def likelihood(terms: HeadTerms, model: ImageRegressor, codes: Codes, batch: dict[str, Tensor]) -> Tensor:
    """:func:`part_likelihood` against the codes of true ICT weights."""
    return part_likelihood(terms.head, model, codes, *terms.codes(batch["w"], batch["e"]))


def part_likelihood(head: NphmDecoder, model: ImageRegressor, codes: Codes, z_id: Tensor, z_ex: Tensor) -> Tensor:
    """Gaussian likelihood of the parts' errors under the predicted variances; the codes stay free of it."""
    with torch.no_grad():
        error = ((codes.z_id - z_id) / model.spread_id).square()
        glob, local = head.split_identity(error)
        whole = torch.cat([glob, local[:, -1]], -1).mean(-1, keepdim=True)
        ex = ((codes.z_ex - z_ex) / model.spread_ex).square().mean(-1, keepdim=True)
        parts = torch.cat([ex, local[:, :-1].mean(-1), whole], -1)
    s = codes.log_variance
    return (0.5 * (parts * torch.exp(-s) + s)).mean()


@torch.no_grad()
def encode_shards(shards: FaceShards, geometry: GeometryNet, encoders: tuple[str, ...], rays: int = 0) -> Table:
    """One table of all samples: codes, cameras, observations and tokens [N, 256, D] (float16) of each encoder (t: the
    trunk, d: details [N, P, DETAIL]); places and normals [N, rays, 3] of the surface at random pixels, 0 where the face
    is not seen.
    """
    from nphm_track.faces.landmarker import FaceLandmarker

    landmarker = FaceLandmarker.from_pretrained()
    names = {"w": "w", "e": "e", "K": "K", "R": "R", "t": "t", "size": "size", "landmarks": "landmarks"}
    names["scores"] = "blendshapes"
    table: Table = {}
    for start in track(range(0, len(shards), 50), description="tokens"):
        rows = shards.take(np.arange(start, min(start + 50, len(shards))))
        part = {k: torch.from_numpy(rows[source]) for k, source in names.items()}
        if rays:
            part |= _ray_targets(rows, rays, torch.Generator().manual_seed(start))
        if encoders:
            crop, features, maps, landmarks = prepare_crops(rows, landmarker, geometry)
            tokens = dict(zip("np", geometry.encode(crop, features, maps), strict=True))
            tokens["d"] = geometry.details(features, landmarks)
            tokens["t"] = geometry.trunk_tokens(features)
            part |= {f"tokens_{e}": tokens[e].half() for e in encoders}
        for k, v in part.items():  # filled in place: gigabytes of small pieces would be joined at twice the memory
            if k not in table:
                table[k] = torch.empty(len(shards), *v.shape[1:], dtype=v.dtype)
            table[k][start : start + len(v)] = v
    return table


def _ray_targets(rows: dict[str, Any], count: int, generator: torch.Generator) -> Table:
    """``ray_points``, ``ray_normals`` [B, count, 3] at random pixels of the faces."""
    mask = torch.from_numpy(rows["mask"]).flatten(1).float()
    cells = torch.multinomial(mask + 1e-9, count, replacement=True, generator=generator)[..., None]
    seen = mask.gather(1, cells[..., 0])[..., None]

    def at(name: str) -> Tensor:
        return torch.from_numpy(rows[name]).flatten(1, 2).float().gather(1, cells.expand(-1, -1, 3)) * seen

    return {"ray_points": at("points"), "ray_normals": torch.nn.functional.normalize(at("normals"), dim=-1)}
