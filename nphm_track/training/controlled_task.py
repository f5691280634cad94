"""Training of the head model's correction on ICT-FaceKit heads.

Codes are linear images of the source's own parameters, z_id = A w and z_ex = B e, with the maps of an earlier model, so
that what was trained on its codes stays valid. Control points follow from them in closed form (``training/controls``)
and do not learn: what they say about the points of a shard is worked out once and kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import InputError
from nphm_track.heads.config import NPHM_SMALL
from nphm_track.heads.controlled import ControlledDecoder
from nphm_track.models import read_weights
from nphm_track.training import losses as L
from nphm_track.training.controls import new_model
from nphm_track.training.ict import load_ict
from nphm_track.training.recipe import Strict
from nphm_track.training.trainer import Share


class ControlledData(Strict):
    """The ``[data]`` table of a recipe of this kind."""

    ict: str = Field(description="folder of ICT-FaceKit light (npz, vertex_indices.json)")
    shards: str = Field(description="folder written by training/build_skin_sdf.py")
    heldout: str = Field(description="the same, with held-out seeds")
    codes: str = Field(description="model.safetensors whose maps from weights to codes are kept")
    heads: int = Field(16, gt=0, description="heads a step")
    skin_points: int = Field(128, gt=0, description="per head; on the skin, with normals")
    points: int = Field(96, gt=0, description="per head; around the skin")
    hidden: int = Field(64, gt=0, description="width of the local MLPs")
    hidden_layers: int = Field(3, gt=0, description="their number of layers")
    nearest: int = Field(6, gt=0, description="members evaluated at a point")
    init: str | None = Field(None, description="model.safetensors to start from")


class Known(NamedTuple):
    """A shard as its control points see it (model units): codes [H, D], and for each head of points on the skin

    template [H, S, 3], rough [H, S], up [H, S, 3] (gradient of rough), jacobian [H, S, 3, 3], normals [H, S, 3];
    of points around it template [H, P, 3], rough [H, P], true distance [H, P].
    """

    z_id: Tensor
    z_ex: Tensor
    template: Tensor
    rough: Tensor
    up: Tensor
    jacobian: Tensor
    normals: Tensor
    template_around: Tensor
    rough_around: Tensor
    distance: Tensor


class ControlledTask:
    """Distance and normal on the skin, distance around it."""

    share = Share()

    def __init__(self, data: ControlledData) -> None:
        self.data = data
        ict = load_ict(data.ict, eyeballs=False)
        codes, _ = read_weights(data.codes)
        codes = {k: v.float() for k, v in codes.items()}
        self.columns = len(ict.identity)
        config = replace(
            NPHM_SMALL,
            expression_names=ict.expression_names,
            identity_basis=codes["identity_basis"].shape[1],
            landmark_rank=codes["landmark_down.weight"].shape[0],
            hidden=data.hidden,
            hidden_layers=data.hidden_layers,
            nearest=data.nearest,
            sdf_scale=0.02,
        )
        self.model = new_model(ict, data.ict, config, codes)
        if data.init:
            self.model.load_state_dict(read_weights(data.init)[0])
        self.shards, self.heldout = _paths(data.shards), _paths(data.heldout)[:1]
        self._known: dict[Path, Known] = {}

    def config(self) -> dict[str, Any]:
        return {"kind": "nphm", "head": self.model.config.to_dict()}

    def losses(self, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        data = self.data
        shard = self.known(self.shards[step // 20 * 7919 % len(self.shards)])
        heads = self.share.of(torch.randperm(len(shard.z_id), generator=generator)[: data.heads])[:, None]
        skin = torch.randint(shard.rough.shape[1], (len(heads), data.skin_points), generator=generator)
        around = torch.randint(shard.distance.shape[1], (len(heads), data.points), generator=generator)
        return self.terms(self.model, shard, heads, skin, around)

    def terms(
        self, model: ControlledDecoder, shard: Known, heads: Tensor, skin: Tensor, around: Tensor
    ) -> dict[str, Tensor]:
        """Errors (model units; lengths of differences) of ``heads`` [H, 1] at their points [H, S] and [H, P]."""
        shares = model.shares(shard.z_id[heads[:, 0]], shard.z_ex[heads[:, 0]])
        with torch.enable_grad():  # also when only evaluated
            template = shard.template[heads, skin].requires_grad_(True)
            rough = shard.rough[heads, skin].requires_grad_(True)
            added = model.correction(template, rough, shares)
            by_template, by_rough = torch.autograd.grad(added.sum(), (template, rough), create_graph=True)
        gradient = (shard.jacobian[heads, skin] * by_template.unsqueeze(-1)).sum(-2)
        gradient = gradient + shard.up[heads, skin] * (1 + by_rough.unsqueeze(-1))
        rough_around = shard.rough_around[heads, around]
        distance = rough_around + model.correction(shard.template_around[heads, around], rough_around, shares)
        return {
            "surface": (rough + added).abs().mean(),
            "normal": L.normal_loss(gradient, shard.normals[heads, skin]),
            "distance": L.sdf_loss(distance, shard.distance[heads, around]),
        }

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out heads: distance at the skin (mm), normals (length of the difference), distance around (mm)."""
        assert isinstance(model, ControlledDecoder)
        shard = self.known(self.heldout[0])
        everything = torch.arange(256)
        found: dict[str, list[float]] = {}
        for heads in torch.arange(len(shard.z_id)).split(10):
            index = everything.expand(len(heads), -1)
            for name, value in self.terms(model, shard, heads[:, None], index, index).items():
                found.setdefault(name, []).append(float(value) * (1 if name == "normal" else MODEL_UNIT * 1000))
        return {name: float(np.mean(values)) for name, values in found.items()}

    def known(self, path: Path) -> Known:
        """The shard at ``path``; worked out at its first use."""
        if path not in self._known:
            self._known[path] = self._work_out(path)
        return self._known[path]

    @torch.no_grad()
    def _work_out(self, path: Path) -> Known:
        data = np.load(path, allow_pickle=False)
        values = {k: torch.from_numpy(data[k]).float() for k in data.files}
        z_id = values["w"] @ self.model.identity_basis[:, : self.columns].T
        z_ex = values["e"] @ self.model.expression_basis.T
        controls = self.model.controls
        rows: list[list[Tensor]] = []
        for k in range(len(z_id)):
            posed = self.model.controls_of(z_id[k : k + 1], z_ex[k : k + 1])
            row: list[Tensor] = []
            skin = values["skin"][k : k + 1] / MODEL_UNIT
            parts = [controls.slopes(x, posed) for x in skin.split(128, 1)]
            row += [torch.cat([p[0].template for p in parts], 1), torch.cat([p[0].rough for p in parts], 1)]
            row += [torch.cat([p[1] for p in parts], 1), torch.cat([p[2] for p in parts], 1)]
            around = [controls.look(x, posed) for x in (values["points"][k : k + 1] / MODEL_UNIT).split(256, 1)]
            row += [torch.cat([p.template for p in around], 1), torch.cat([p.rough for p in around], 1)]
            rows.append(row)
        template, rough, up, jacobian, template_around, rough_around = (torch.cat(c) for c in zip(*rows, strict=True))
        return Known(
            z_id, z_ex, template, rough, up, jacobian, values["normals"],
            template_around, rough_around, values["sdf"] / MODEL_UNIT,
        )  # fmt: skip


def _paths(folder: str | Path) -> list[Path]:
    """The shards of a folder. Raises InputError when there are none."""
    paths = sorted(Path(folder).glob("heads_??????.npz"))
    if not paths:
        raise InputError(f"no shards in {folder}: training/README.md says how to build them")
    return paths
