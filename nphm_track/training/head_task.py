"""Training of the head model on ICT-FaceKit heads.

Codes are linear images of the source's own parameters, z_id = A w (trained) and z_ex = B e (fixed, orthogonal):
identities are unlimited, every sampled head has a code, and B is the map from ARKit-like weights to expression codes
that the model ships with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import InputError
from nphm_track.heads.config import MONONPHM, NPHM_SMALL, HeadConfig
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.models import read_weights
from nphm_track.training import losses as L
from nphm_track.training.ict import NECK_LEVEL, anchor_vertices, load_ict, sample_expression, sample_identity
from nphm_track.training.recipe import Strict
from nphm_track.training.trainer import Share


class HeadData(Strict):
    """The ``[data]`` table of a head-model recipe."""

    ict: str = Field(description="folder of ICT-FaceKit light (npz, vertex_indices.json)")
    shards: str = Field(description="folder written by training/build_head_sdf.py")
    heldout: str = Field(description="the same, with held-out seeds")
    architecture: Literal["nphm-small", "mononphm"] = Field(
        "nphm-small", description="mononphm: its members, codes and layers, to be exported in the public layout"
    )
    hidden: int | None = Field(None, gt=0, description="width of the local MLPs (default: the architecture's)")
    deform_hidden: int | None = Field(None, gt=0, description="width of the deformation (default: the architecture's)")
    heads: int = Field(32, gt=0, description="heads a step, each with neutral, posed and correspondence points")
    neutral_points: int = Field(160, gt=0, description="per head")
    posed_points: int = Field(96, gt=0, description="per head")
    correspondences: int = Field(128, gt=0, description="per head")
    normal_points: int = Field(0, ge=0, description="per head; points whose SDF gradient is supervised")
    anny: str | None = Field(None, description="folder written by training/build_anny_sdf.py: more heads, full skulls")
    anny_heldout: str | None = Field(None, description="the same, with held-out seeds")
    anny_heads: int = Field(6, gt=0, description="of ``heads`` a step, when ``anny`` is given")
    init: str | None = Field(None, description="model.safetensors to start from")
    freeze_codes_after: int | None = Field(
        None,
        ge=0,
        description="step from which the code maps A and B stay as they are, for a regressor to train on",
    )


class HeadTask:
    """Neutral SDF, posed SDF, correspondences, anchors; their weights are the recipe's."""

    share = Share()

    def __init__(self, data: HeadData) -> None:
        self.data = data
        self.ict = load_ict(data.ict)
        self.shards = ShardReader(data.shards, "heads")
        self.anny = ShardReader(data.anny, "anny") if data.anny else None
        columns = self.anny.load(0)["w"].shape[1] if self.anny else len(self.ict.identity)
        self.model = NphmDecoder(
            replace(architecture(data), expression_names=self.ict.expression_names, identity_basis=columns)
        )
        self.anchor_vertices = torch.from_numpy(anchor_vertices(self.ict, data.ict))
        unit = 1 / MODEL_UNIT
        self.neutral = torch.from_numpy(self.ict.neutral) * unit
        self.identity = torch.from_numpy(self.ict.identity).flatten(1) * unit
        self.expression = torch.from_numpy(self.ict.expression).flatten(1) * unit
        self.faces = torch.from_numpy(self.ict.faces).long()
        self.model.mean_anchors.copy_(self.neutral[self.anchor_vertices])
        with torch.no_grad():
            cast("nn.Linear", self.model.anchor_mlp[2]).weight.mul_(0.1)
            for layer in cast("list[nn.Linear]", self.model.deformation):  # keep the signal's size through SiLU layers
                layer.weight.normal_(0, 1.6 / layer.in_features**0.5)
                layer.bias.zero_()
            if self.model.config.bilinear:
                self.model.expression_field.weight.mul_(0.1)
            # Orthogonal and fixed: trained with a norm penalty, left and right of a pair come to cancel each other.
            nn.init.orthogonal_(self.model.expression_basis, gain=1.6)
        self.model.expression_basis.requires_grad_(False)
        self.face_weight = self._face_weights()
        self.eye_face = torch.from_numpy(self.ict.is_eye[self.ict.faces].any(1))
        names = self.ict.expression_names
        lids = ("eyeBlink", "eyeSquint", "eyeLookDown", "cheekRaiser")
        self.lid = {s: [i for i, n in enumerate(names) if n.endswith(s) and n.startswith(lids)] for s in ("_L", "_R")}
        if data.init:
            self._start_from(data.init)

    def _start_from(self, path: str) -> None:
        """Take the weights of another run; identity columns that it lacks start small."""
        tensors, _ = read_weights(path)
        basis = self.model.identity_basis.detach() * 0.2
        known = tensors["identity_basis"]
        basis[:, : known.shape[1]] = known
        state = {**self.model.state_dict(), **tensors, "identity_basis": basis}
        self.model.load_state_dict(state)

    def config(self) -> dict[str, Any]:
        return {"kind": "nphm", "head": self.model.config.to_dict()}

    def losses(self, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        model, data = self.model, self.data
        n_anny = data.anny_heads if self.anny else 0
        parts = [self._draw(self.shards.at(step), data.heads - n_anny, generator)]
        if self.anny:
            parts.append(self._draw(self.anny.at(step), n_anny, generator))
        w, e, *points = (torch.cat([part[k] for part in parts]) for k in range(6))
        frozen = data.freeze_codes_after is not None and step >= data.freeze_codes_after
        model.identity_basis.requires_grad_(not frozen)
        z_id = w @ model.identity_basis.T
        z_ex = e @ model.expression_basis.T
        neutral = L.sdf_loss(model.canonical_sdf(points[0], z_id), points[1])
        queries = model.canonical_queries(points[2], z_id, z_ex)
        posed = L.sdf_loss(model.canonical_sdf(queries, z_id), points[3])
        w, e = self._random_weights(generator)
        terms: dict[str, Tensor] = {
            "neutral": neutral,
            "posed": posed,
            "hyper": L.hyper_norm(queries[..., 3:]),
            **self._correspondence_terms(w, e, generator),
        }
        if self.anny:
            terms.update(self._anny_terms(self.anny.at(step), generator))
        terms["code"] = L.code_norm(z_id)
        return terms

    def _draw(self, shard: dict[str, Tensor], count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """w, e, neutral points and distances, posed points and distances of ``count`` heads of a shard."""
        chosen = self.share.of(torch.randperm(len(shard["w"]), generator=generator)[:count])
        neutral = _pick(shard, "neutral", chosen, self.data.neutral_points, generator)
        posed = _pick(shard, "posed", chosen, self.data.posed_points, generator)
        return self._padded(shard["w"][chosen]), shard["e"][chosen], *neutral, *posed

    def _padded(self, w: Tensor) -> Tensor:
        """Identity weights for all columns of the basis; those of the other source are zero."""
        return nn.functional.pad(w, (0, self.model.config.identity_basis - w.shape[1]))

    def _anny_terms(self, shard: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Correspondences and anchors of Anny's heads, as stored."""
        model, data = self.model, self.data
        chosen = self.share.of(torch.randperm(len(shard["w"]), generator=generator)[: data.anny_heads])
        z_id = self._padded(shard["w"][chosen]) @ model.identity_basis.T
        z_ex = shard["e"][chosen] @ model.expression_basis.T
        index = torch.randint(shard["posed_corr"].shape[1], (len(chosen), data.correspondences), generator=generator)
        posed, canonical = (shard[k][chosen[:, None], index] for k in ("posed_corr", "canonical_corr"))
        offset, _ = model.deform(posed, z_id, z_ex)
        return {
            "anny_deform": L.motion_loss(posed + offset, canonical, torch.ones_like(posed[..., 0])),
            "anny_anchors": L.point_loss(model.anchors(z_id), shard["anchors"][chosen]),
        }

    def _random_weights(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        count = self.data.heads - (self.data.anny_heads if self.anny else 0)
        w = sample_identity(rng, count)
        e = sample_expression(rng, count, self.ict.expression_names)
        return self.share.of(torch.from_numpy(w)), self.share.of(torch.from_numpy(e))

    def _correspondence_terms(self, w: Tensor, e: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Posed surface points, also a little off the surface, must map to where they are on the neutral head."""
        model, data = self.model, self.data
        z_id, z_ex = self._padded(w) @ model.identity_basis.T, e @ model.expression_basis.T
        neutral = self.neutral + (w @ self.identity).unflatten(-1, (-1, 3))
        posed = neutral + (e @ self.expression).unflatten(-1, (-1, 3))
        n = data.correspondences
        face = torch.multinomial(self.face_weight, len(w) * n, replacement=True, generator=generator).view(len(w), n)
        bary = torch.rand(len(w), n, 2, generator=generator)
        bary = torch.where(bary.sum(-1, keepdim=True) > 1, 1 - bary, bary)
        bary = torch.cat([bary, 1 - bary.sum(-1, keepdim=True)], -1)
        height = torch.randn(len(w), n, 1, generator=generator) * (0.002 / MODEL_UNIT)
        canonical, normal = _on_surface(neutral, self.faces, face, bary)
        x, posed_normal = _on_surface(posed, self.faces, face, bary)
        offset, _ = model.deform(x + height * posed_normal, z_id, z_ex)
        weight = self._visible(face, x, e)
        terms = {
            "deform": L.motion_loss(x + height * posed_normal + offset, canonical + height * normal, weight),
            "anchors": L.point_loss(model.anchors(z_id), neutral[:, self.anchor_vertices]),
        }
        if data.normal_points:
            k = data.normal_points
            with torch.enable_grad():  # also when only evaluated
                p = x[:, :k].detach().requires_grad_(True)
                sdf = model.sdf(p, z_id, z_ex)
                (gradient,) = torch.autograd.grad(sdf.sum(), p, create_graph=True)
            seen = weight[:, :k] > 0
            terms["normal"] = L.normal_loss(gradient[seen], posed_normal[:, :k][seen])
        return terms

    def _visible(self, face: Tensor, x: Tensor, e: Tensor) -> Tensor:
        """1 where the correspondence holds: an eyeball point is dropped while a lid may lie over it."""
        left = e[:, self.lid["_L"]].sum(1, keepdim=True) > 0.1
        right = e[:, self.lid["_R"]].sum(1, keepdim=True) > 0.1
        covered = torch.where(x[..., 0] > 0, left, right)
        return (~(self.eye_face[face] & covered)).float()

    def _face_weights(self) -> Tensor:
        v, f = self.ict.neutral, self.ict.faces
        corners = v[f]
        area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
        centre = corners.mean(1)
        pocket = self.ict.is_pocket[f].all(1)
        in_face = (centre[:, 2] > -0.01) & ~pocket
        fine = in_face & (
            (np.linalg.norm(centre - [0, -0.033, 0.045], axis=1) < 0.035)
            | (np.abs(centre - [0, 0.035, 0.03]) < [0.055, 0.02, 0.04]).all(1)
        )
        to_eye = np.abs(np.abs(centre) - [0.0315, 0.035, 0.03])
        lid = in_face & (to_eye < [0.018, 0.014, 0.02]).all(1)
        weight = area * np.where(lid, 60.0, np.where(fine, 12.0, np.where(in_face, 4.0, np.where(pocket, 0.7, 1.0))))
        return torch.from_numpy((weight * (centre[:, 1] > NECK_LEVEL)).astype(np.float32))

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out heads, linear codes: mean |sdf error| within 5 mm of the surface, deformation error (mm)."""
        assert isinstance(model, NphmDecoder)
        mm = MODEL_UNIT * 1000
        totals = self._distance_errors(model, ShardReader(self.data.heldout, "heads"))
        if self.data.anny_heldout:
            anny = self._distance_errors(model, ShardReader(self.data.anny_heldout, "anny"))
            totals |= {"anny_" + k: v for k, v in anny.items()}
        generator = torch.Generator().manual_seed(900_000)
        w, e = self._random_weights(generator)
        current, self.model = self.model, model
        terms = self._correspondence_terms(w, e, generator)
        self.model = current
        return {
            **totals,
            "deform_mm": float(terms["deform"].detach()) * mm,
            "anchors_mm": float(terms["anchors"].detach()) * mm,
        }

    def _distance_errors(self, model: NphmDecoder, shards: ShardReader) -> dict[str, float]:
        mm = MODEL_UNIT * 1000
        totals: dict[str, list[float]] = {"neutral_mm": [], "posed_mm": []}
        shard = shards.load(0)
        for k in range(0, 32, 8):
            z_id = self._padded(shard["w"][k : k + 8]) @ model.identity_basis.T
            z_ex = shard["e"][k : k + 8] @ model.expression_basis.T
            for name in ("neutral", "posed"):
                x, s = (shard[f"{name}_{what}"][k : k + 8, :2048] for what in ("points", "sdf"))
                f = model.canonical_sdf(x, z_id) if name == "neutral" else model.sdf(x, z_id, z_ex)
                near = s.abs() < 5 / mm
                totals[name + "_mm"].append(float((f - s)[near].abs().mean()) * mm)
        return {k: float(np.mean(v)) for k, v in totals.items()}


def architecture(data: HeadData) -> HeadConfig:
    """The sizes that a recipe asks for.

    MonoNPHM's networks see points and give distances in model units, where training takes ten times longer; factors of
    nphm-small stand before and behind them, which ``mononphm_layout.folded`` puts into the weights.
    """
    config = NPHM_SMALL
    if data.architecture == "mononphm":
        scales = ("local_scale", "deform_scale", "sdf_scale", "offset_scale")
        config = replace(MONONPHM, name="mononphm-standin", **{name: getattr(NPHM_SMALL, name) for name in scales})
    return replace(
        config, hidden=data.hidden or config.hidden, deform_hidden=data.deform_hidden or config.deform_hidden
    )


class ShardReader:
    """The shards of a folder, one in memory at a time, in model units."""

    def __init__(self, folder: str | Path, kind: str) -> None:
        """Raises InputError when there are none. ``kind`` is the file names' first part."""
        self.paths = sorted(Path(folder).glob(f"{kind}_??????.npz"))
        if not self.paths:
            raise InputError(f"no {kind} shards in {folder}: training/README.md says how to build them")
        self._shard: dict[str, Tensor] = {}
        self._index = -1

    def at(self, step: int) -> dict[str, Tensor]:
        """The shard of a training step: it serves 50, and the order is the same in every run."""
        return self.load((step // 50) * 7919 % len(self.paths))

    def load(self, index: int) -> dict[str, Tensor]:
        if index != self._index:
            data = np.load(self.paths[index], allow_pickle=False)
            self._shard = {k: torch.from_numpy(data[k]).float() for k in data.files}
            for k in self._shard.keys() - {"w", "e"}:
                self._shard[k] /= MODEL_UNIT
            self._index = index
        return self._shard


def _pick(
    shard: dict[str, Tensor], name: str, heads: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    points, sdf = shard[name + "_points"], shard[name + "_sdf"]
    index = torch.randint(points.shape[1], (len(heads), count), generator=generator)
    return points[heads[:, None], index], sdf[heads[:, None], index]


def _on_surface(vertices: Tensor, faces: Tensor, face: Tensor, bary: Tensor) -> tuple[Tensor, Tensor]:
    """Points and unit face normals [B, N, 3] at (face [B, N], bary [B, N, 3]) of vertices [B, V, 3]."""
    batch = torch.arange(len(vertices))[:, None, None]
    corners = vertices[batch, faces[face]]  # [B, N, 3, 3]
    normal = torch.linalg.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])
    return (corners * bary[..., None]).sum(2), nn.functional.normalize(normal, dim=-1)
