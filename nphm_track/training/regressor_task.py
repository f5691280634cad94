"""Training of the landmark regressor on heads with known codes: L3D in SDF space, vertex and landmark terms, R."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import InputError
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.loading import load_head_model
from nphm_track.regressor.landmark_regressor import (
    LandmarkRegressor,
    RegressorConfig,
    group_landmarks,
    normalise_landmarks,
)
from nphm_track.training import losses as L
from nphm_track.training.ict import load_ict
from nphm_track.training.recipe import Strict
from nphm_track.training.trainer import Share

FACING = 15
"""Degrees that a head may be turned from the camera for both its eyes to be seen well."""


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


class HeadTerms:
    """Losses that compare predicted codes with the ICT weights of the true head; the head model is frozen.

    Its linear code maps turn predicted codes into vertices for the auxiliary terms.
    """

    def __init__(self, head_model: str, ict: str, landmarks: str) -> None:
        self.head = load_head_model(head_model).requires_grad_(False)
        heads = load_ict(ict)
        rng = np.random.default_rng(0)
        in_face = (heads.neutral[:, 2] > -0.02) & (heads.neutral[:, 1] > -0.1) & ~heads.is_pocket
        chosen = rng.choice(np.flatnonzero(in_face), 800, replace=False)
        unit = 1 / MODEL_UNIT
        self.vertices = torch.from_numpy(heads.neutral[chosen]) * unit
        self.identity = torch.from_numpy(heads.identity[:, chosen]).flatten(1) * unit
        self.expression = torch.from_numpy(heads.expression[:, chosen]).flatten(1) * unit
        self.reach = self.expression.unflatten(-1, (-1, 3)).norm(dim=-1).amax(-1)  # [E] of each weight
        self.placement = _placements(self.vertices)
        if not Path(landmarks).is_file():
            raise InputError(f"no {landmarks}: it is written by training/calibrate_landmarks.py")
        landmark = np.load(landmarks)
        corner, bary = heads.faces[landmark["face"]], landmark["bary"][None, ..., None]

        def at(basis: NDArray[np.float32]) -> Tensor:
            """Values [K, 478, 3] of vertex fields [K, V, 3] at the landmarks."""
            return torch.from_numpy((basis[:, corner] * bary).sum(2)).float()

        self.lm_neutral = at(heads.neutral[None])[0] * unit
        self.lm_identity = at(heads.identity).flatten(1) * unit
        self.lm_expression = at(heads.expression).flatten(1) * unit
        # The first columns are ICT's; the others belong to heads from elsewhere and are not predicted from ICT renders.
        self.basis_id = self.head.identity_basis[:, : len(heads.identity)]
        self.from_id = torch.linalg.pinv(self.basis_id)
        self.from_ex = torch.linalg.pinv(self.head.expression_basis)

    def to(self, device: torch.device | str) -> HeadTerms:
        """The same on another device."""
        import copy

        out = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(out, name, value.to(device))
        out.head = copy.deepcopy(self.head).to(device)
        return out

    def weights(self, z_id: Tensor, z_ex: Tensor) -> tuple[Tensor, Tensor]:
        """ICT weights nearest to codes: w [B, 100], e [B, E]."""
        return z_id @ self.from_id.T, z_ex @ self.from_ex.T

    def codes(self, w: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of ICT weights."""
        return w @ self.basis_id.T, e @ self.head.expression_basis.T

    def vertex_terms(self, z_id: Tensor, z_ex: Tensor, batch: dict[str, Tensor]) -> dict[str, tuple[float, Tensor]]:
        w, e = self.weights(z_id, z_ex)
        dw, de = w - batch["w"], e - batch["e"]
        neutral = (dw @ self.identity).unflatten(-1, (-1, 3))
        posed = neutral + (de @ self.expression).unflatten(-1, (-1, 3))
        zero = z_id.new_zeros(())
        reprojection = self._reproject(w, e, batch)
        off_id = z_id - w @ self.basis_id.T
        off_ex = z_ex - e @ self.head.expression_basis.T
        return {
            "neutral": (20.0, L.point_loss(neutral, zero)),
            "posed": (25.0, L.point_loss(posed, zero)),
            "shape": (35.0, L.point_loss(self.placed(neutral), zero)),
            "weights": (10.0, (de.square() * self.reach).sum(-1).mean()),  # lids and brows are few of the vertices
            "reprojection": (20.0, reprojection),
            "offmanifold": (0.05, L.code_norm(off_id) + L.code_norm(off_ex)),
            "range": (0.2, (e.clamp(-0.05, 1.1) - e).square().sum(-1).mean()),
        }

    def placed(self, difference: Tensor) -> Tensor:
        """Vertex differences [B, V, 3] without what moving, turning or scaling the head explains.

        A single image does not tell the size of a head; its shape is what can be learnt.
        """
        d = difference.flatten(1)
        return (d - (d @ self.placement) @ self.placement.T).unflatten(-1, (-1, 3))

    def _reproject(self, w: Tensor, e: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Landmarks of the predicted head, in the true camera up to a best shift and scale, against the detected ones.

        In units of the face's RMS radius times .25, so that it compares with the vertex terms.
        """
        points = self.lm_neutral + (w @ self.lm_identity + e @ self.lm_expression).unflatten(-1, (-1, 3))
        camera = points * MODEL_UNIT @ batch["R"].mT + batch["t"][:, None]
        pixels = camera[..., :2] / camera[..., 2:] * batch["K"][:, None, :1, 0]
        seen = batch["landmarks"][..., :2]
        use = slice(0, 468)  # the irises move with the gaze, which the codes do not carry
        p, s = pixels[:, use] - pixels[:, use].mean(1, keepdim=True), seen[:, use] - seen[:, use].mean(1, keepdim=True)
        p = p * ((p * s).sum((1, 2)) / p.square().sum((1, 2)))[:, None, None]
        radius = s.square().sum(-1).mean(1).sqrt()[:, None]
        return ((p - s).norm(dim=-1) / radius).mean() * 0.25

    def sdf_term(
        self,
        z_id: Tensor,
        z_ex: Tensor,
        batch: dict[str, Tensor],
        generator: torch.Generator,
        n: int,
        k: int,
        *,
        placed: bool = False,
    ) -> Tensor:
        """L3D: mean |F(x; z_pred) - F(x; z_gt)| at k points near the true posed surface of n samples.

        ``placed``: the predicted heads are moved, turned and scaled towards the true ones before.
        """
        w, e = batch["w"][:n], batch["e"][:n]
        posed = self.vertices + (w @ self.identity + e @ self.expression).unflatten(-1, (-1, 3))
        device = generator.device
        chosen = torch.randint(posed.shape[1], (len(w), k), generator=generator, device=device)
        rows = torch.arange(len(w), device=device)[:, None], chosen
        x = posed[rows]
        x = x + torch.randn(x.shape, generator=generator, device=device) * (0.003 / MODEL_UNIT)
        with torch.no_grad():
            target = self.head.sdf(x, *self.codes(w, e))
        if placed:
            difference = ((self.weights(z_id[:n], z_ex[:n])[0] - w) @ self.identity).unflatten(-1, (-1, 3))
            x = x + (difference - self.placed(difference))[rows]
        return (self.head.sdf(x, z_id[:n], z_ex[:n]) - target).abs().mean()

    def metrics(self, z_id: Tensor, z_ex: Tensor, batch: dict[str, Tensor]) -> dict[str, float]:
        """Mean vertex errors and SDF L1 near the surface (mm, head frame; no alignment but for ``shape`` and
        ``sdf_placed``), landmark error and expression correlations (``_facing``: heads within ``FACING``).
        """
        _, e = self.weights(z_id, z_ex)
        terms = self.vertex_terms(z_id, z_ex, batch)
        mm = MODEL_UNIT * 1000
        mean_head = (batch["w"] @ self.identity).unflatten(-1, (-1, 3))
        zero = torch.zeros(())
        out = {k + "_mm": float(terms[k][1]) * mm for k in ("neutral", "posed", "shape")}
        for name, placed in (("sdf", False), ("sdf_placed", True)):
            generator = torch.Generator().manual_seed(0)
            found = []
            for part in torch.arange(len(z_id)).split(25):
                some = {k: batch[k][part] for k in "we"}
                codes = z_id[part], z_ex[part]
                found.append(self.sdf_term(*codes, some, generator, len(part), 96, placed=placed))
            out[f"{name}_mm"] = float(torch.stack(found).mean()) * mm
        out["reprojection_percent"] = float(terms["reprojection"][1]) * 400
        names = self.head.config.expression_names
        everyone = torch.ones(len(e), dtype=torch.bool)
        facing = -batch["R"][:, 2, 2] > math.cos(math.radians(FACING))
        shown = [(n, "", everyone) for n in ("jawOpen", "mouthSmile_L", "eyeBlink_L", "mouthPucker", "browOuterUp_L")]
        for name, suffix, rows in (*shown, ("eyeBlink_L", "_facing", facing)):
            i = names.index(name)
            pair = np.stack([e[rows, i].numpy(), batch["e"][rows, i].numpy()])
            out[f"corr_{name}{suffix}"] = float(np.corrcoef(pair)[0, 1])
        out["mean_head_mm"] = float(L.point_loss(mean_head, zero)) * mm
        out["mean_head_shape_mm"] = float(L.point_loss(self.placed(mean_head), zero)) * mm
        return out


def of_usual_size(w: Tensor, identity: Tensor, placement: Tensor) -> Tensor:
    """Identity weights [N, K] of people, all moved alike, so that on average they are as large as the mean head.

    How large people are a photo does not tell; what networks make of it would grow from one round of self-training to
    the next. ``identity`` [K, 3 V] is the basis, ``placement`` [3 V, 7] what moves the mean head, its growth last.
    """
    growth = identity @ placement[:, -1]
    return w - (w.mean(0) @ growth) / growth.square().sum() * growth


def _placements(vertices: Tensor) -> Tensor:
    """Orthonormal motions [3 V, 7] of points [V, 3]: three shifts, three small turns, growth."""
    x = vertices - vertices.mean(0)
    motions = [axis.expand_as(x) for axis in torch.eye(3)]
    motions += [torch.linalg.cross(axis.expand_as(x), x, dim=-1) for axis in torch.eye(3)]
    return torch.linalg.qr(torch.stack([m.flatten() for m in (*motions, x)], 1))[0]


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

    def losses(self, step: int, generator: torch.Generator) -> Mapping[str, tuple[float, Tensor]]:
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
            terms["sdf"] = (40.0, self.terms.sdf_term(z_id, z_ex, batch, generator, data.sdf_samples, data.sdf_points))
        size = (z_id / self.model.spread_id).square().mean() + (z_ex / self.model.spread_ex).square().mean()
        terms["code"] = (1e-3, size)
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
