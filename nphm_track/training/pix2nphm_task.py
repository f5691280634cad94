"""Training of the regressor of any NPHM as the paper does it: losses in SDF space and on rendered normals, no others.

L3D (Eq. 6): |F(x; z) - F(x; z_true)| at points near registered surfaces. L2D (Eq. 7): cosine between normals drawn from
the predicted head and normals seen in the image. R (Eq. 9): lengths of the codes. All are known of any head model that
has codes; cameras come with the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import InputError
from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.geometry.loading import load_geometry
from nphm_track.geometry.networks import GRID, GeometryNet
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.mononphm import AnchoredDecoder
from nphm_track.models import read_weights, resolve, sha256
from nphm_track.regressor.image_regressor import Codes, ImageRegressor, ImageRegressorConfig
from nphm_track.regressor.landmark_regressor import RegressorConfig, group_landmarks, normalise_landmarks
from nphm_track.training.geometry_task import prepare_crops
from nphm_track.training.image_regressor_task import part_likelihood
from nphm_track.training.recipe import Strict
from nphm_track.training.render_loss import Kind, render_loss
from nphm_track.training.samples import Samples, draw_rows, read_crops
from nphm_track.training.trainer import Share

MM = 1000 * MODEL_UNIT
Rows = dict[str, Any]
T = TypeVar("T")


class Pix2NphmData(Strict):
    """The ``[data]`` table of a Pix2NPHM recipe."""

    head_model: str = Field(description="name or path of the frozen head model")
    geometry: str = Field("geometry", description="name or path of the frozen geometry networks")
    registered: str = Field(description="folder of samples with codes: 3-D data")
    images: str | None = Field(None, description="folder of samples without codes: 2-D data")
    heldout: str = Field(description="folder of samples of other people, with codes")
    image_share: float = Field(0.5, ge=0, lt=1, description="of a batch, where there are images")
    losses: tuple[Literal["3d", "2d"], ...] = Field(("3d", "2d"), min_length=1, description="which supervision counts")
    renderer: Kind = Field("surface", description="what draws the normals of L2D")
    batch: int = Field(32, gt=0)
    width: int = Field(1024, gt=0)
    layers: int = Field(8, gt=0)
    heads: int = Field(8, gt=0)
    encoders: tuple[Literal["n", "p"], ...] = ("n", "p")
    landmarks: bool = Field(False, description="landmark tokens beside the image tokens, which are not the paper's")
    details: bool = Field(False, description="tokens of lids, lips and brows from the landmark network's finest maps")
    prior: bool = Field(False, description="also read weights of the head model's identity prior: sooner learnt")
    init: str | None = Field(None, description="regressor to start from; tensors of other shapes start anew")
    solved: int = Field(0, ge=0, description="samples by which the read-outs are fitted to the codes to begin with")
    near_points: int = Field(96, gt=0, description="points a sample for L3D")
    near: float = Field(0.003, gt=0, description="metres that they scatter about the surface")
    rays: int = Field(32, gt=0, description="of a sample, for L2D")
    ray_samples: int = Field(12, gt=0, description="samples a batch and process with rays")
    pool: int = Field(2, gt=0, description="tokens of an encoder along each side that become one of the regressor's")
    recompute: bool = Field(False, description="gradient checkpointing: less memory for a third more time")
    token_dropout: float = Field(0.0, ge=0, lt=1, description="share of a sample's image tokens that are zeroed")
    keep_tokens: bool = Field(False, description="encode each sample once and keep its tokens in memory")
    device: str = Field("cpu", description="the trainer's device")


class Pix2NphmTask:
    """Geometry networks and head model are frozen."""

    share = Share()

    def __init__(self, data: Pix2NphmData) -> None:
        self.data, self.device = data, torch.device(data.device)
        self.head = load_head_model(data.head_model, device=self.device).requires_grad_(False)
        self.geometry = load_geometry(data.geometry, device=self.device)
        if data.details and not isinstance(self.geometry, GeometryNet):
            raise InputError(f"data.details: {data.geometry} does not read the landmark network")
        self.landmarker = FaceLandmarker.from_pretrained(device=self.device)
        self.registered, self.heldout = Samples(data.registered), Samples(data.heldout)
        self.images = Samples(data.images) if data.images and "2d" in data.losses else None
        self.pool, self._kept = ThreadPoolExecutor(2), dict[tuple[int, int], dict[str, Tensor]]()
        first = self.registered.take(range(min(64, len(self.registered))), self.pool)
        known = first["z_id"].shape[1:], first["z_ex"].shape[1:]
        if known != ((self.head.config.identity_dim,), (self.head.config.expression_dim,)):
            raise InputError(f"{data.registered} holds codes of another head model than {data.head_model}")
        self.model = self._regressor(first)
        if data.solved:
            self._solve(self.model.to(self.device), min(data.solved, len(self.registered)))

    def _regressor(self, first: Rows) -> ImageRegressor:
        data, c = self.data, self.head.config
        tensors, stored = read_weights(data.init) if data.init else ({}, {})
        groups = group_landmarks(self.geometry.mean_landmarks.cpu())
        if stored:
            groups = RegressorConfig.from_dict(stored["regressor"]["regressor"]).groups
        sizes = RegressorConfig(
            c.global_dim, c.local_dim, c.n_members, c.expression_dim, groups, data.width, data.layers, data.heads
        )
        width = self.geometry.config.width
        grid = GRID if isinstance(self.geometry, GeometryNet) else self.geometry.config.grid
        priors = (c.identity_basis, len(c.expression_names)) if data.prior else (0, 0)
        model = ImageRegressor(
            ImageRegressorConfig(
                sizes, width, data.encoders, data.landmarks, *priors, field_of_view=True, details=data.details,
                grid=grid, pool=data.pool, recompute=data.recompute,
            )
        )  # fmt: skip
        points = normalise_landmarks(*(torch.from_numpy(first[k]).float() for k in ("landmarks", "size")))[0]
        model.mean_points.copy_(points.mean(0))
        model.spread_points.copy_(points.std(0).clamp_min(0.01))
        inherit(model, tensors)
        start_at_mean(model, self.head.cpu() if self.device.type != "cpu" else self.head)
        self.head.to(self.device)
        return model

    @torch.no_grad()
    def _solve(self, model: ImageRegressor, count: int) -> None:
        """Fit the last layers of the read-outs to the codes of ``count`` samples, by least squares.

        A head start: codes are no aim of the training, whose losses are in SDF space.
        """
        seen, codes = [], []
        for some in torch.arange(count).split(25):
            rows, tokens = self._read(0, self.registered, some.tolist())
            seen.append(self._ask(model.look, rows, tokens))
            codes.append((rows["z_id"], rows["z_ex"]))
        x, z_id, z_ex = torch.cat(seen), *(torch.cat(column) for column in zip(*codes, strict=True))
        fit_last(model.to_expression, x[:, 0], z_ex / model.spread_ex)
        off = z_id - model.mean_id
        if model.image_config.identity_weights:
            fit_last(model.to_identity_weights, x[:, -1], off @ torch.linalg.pinv(model.identity_basis).T)
        else:
            glob, local = self.head.split_identity(off / model.spread_id)
            fit_last(model.to_global, x[:, -1], torch.cat([glob, local[:, -1]], -1))
            fit_last(model.to_local, x[:, 1:-1].flatten(0, 1), local[:, :-1].flatten(0, 1))

    def config(self) -> dict[str, Any]:
        models = {"head": self.data.head_model, "geometry": self.data.geometry}
        trained_on = {what: sha256(resolve(name)) for what, name in models.items()}
        return {
            "kind": "image-regressor",
            "regressor": self.model.image_config.to_dict(),
            "trained_on": trained_on,
        }

    def losses(self, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        data = self.data
        drawn = round(data.batch * data.image_share) if self.images else 0
        parts = [self._part(0, self.registered, data.batch - drawn, step)] if "3d" in data.losses or not drawn else []
        parts += [self._part(1, self.images, drawn, step)] if self.images and drawn else []
        tokens = {k: torch.cat([t[k] for _, t in parts]) for k in parts[0][1]}
        common = parts[-1][0].keys() & parts[0][0].keys()
        rows = {k: torch.cat([r[k] for r, _ in parts]) for k in common}
        codes = self._predict(self.model, rows, tokens, generator)
        known, seen = len(parts[0][0]["K"]), len(parts[-1][0]["K"])
        terms: dict[str, Tensor] = {}
        with torch.autocast(self.device.type, enabled=False):
            codes = Codes(codes.z_id.float(), codes.z_ex.float(), codes.log_variance.float())
            if "3d" in data.losses:
                terms["sdf"] = self._near(codes, parts[0][0], slice(known), generator)
            if "2d" in data.losses:
                first = len(codes.z_id) - seen
                some = slice(first, first + data.ray_samples)
                terms["normals"] = self._drawn(codes, parts[-1][0], some, generator)
            terms["code"] = codes.z_id.norm(dim=-1).mean() + codes.z_ex.norm(dim=-1).mean()
            if "z_id" in parts[0][0]:
                own = Codes(codes.z_id[:known], codes.z_ex[:known], codes.log_variance[:known])
                true = parts[0][0]["z_id"], parts[0][0]["z_ex"]
                terms["uncertainty"] = part_likelihood(self.head, self.model, own, *true)
        return terms

    def _part(self, which: int, samples: Samples, count: int, step: int) -> tuple[Rows, dict[str, Tensor]]:
        """This process's samples of a step and their image tokens."""
        rows = self.share.of(draw_rows(count, len(samples), which, step)).tolist()
        return self._read(which, samples, rows)

    def _read(self, which: int, samples: Samples, rows: list[int]) -> tuple[Rows, dict[str, Tensor]]:
        columns = samples.take(rows, self.pool)
        missing = [row for row in rows if (which, row) not in self._kept]
        if missing or not self.data.keep_tokens:
            found = self._encode(columns)
            if not self.data.keep_tokens:
                return self._tensors(columns), found
            for i, row in enumerate(rows):
                self._kept[which, row] = {k: v[i].half() for k, v in found.items()}
        kept = [self._kept[which, row] for row in rows]
        return self._tensors(columns), {k: torch.stack([x[k] for x in kept]).float() for k in kept[0]}

    def _tensors(self, columns: Rows) -> Rows:
        out = {k: torch.from_numpy(v) for k, v in columns.items() if k != "jpeg"}
        return {k: (v.float() if v.is_floating_point() else v).to(self.device) for k, v in out.items()}

    @torch.no_grad()
    def _encode(self, columns: Rows) -> dict[str, Tensor]:
        """Tokens of E_n and E_p (and details) of crops."""
        if not isinstance(self.geometry, GeometryNet):
            tokens = dict(zip("np", self.geometry.encode(*self._crops(columns)), strict=True))
            return {e: tokens[e] for e in self.data.encoders}
        crop, features, maps, landmarks = prepare_crops(columns, self.landmarker, self.geometry)
        tokens = dict(zip("np", self.geometry.encode(crop, features, maps), strict=True))
        out: dict[str, Tensor] = {e: tokens[e] for e in self.data.encoders}
        return out | ({"d": self.geometry.details(features, landmarks)} if self.data.details else {})

    def _crops(self, columns: Rows) -> tuple[Tensor, dict[int, Tensor], Tensor]:
        crop = read_crops(columns["jpeg"], self.geometry.crop_size, self.pool).to(self.device)
        return crop, {}, crop[:, :0]

    def _predict(
        self, model: ImageRegressor, rows: Rows, tokens: dict[str, Tensor], generator: torch.Generator | None
    ) -> Codes:
        if generator is not None and self.data.token_dropout:
            tokens = dict(tokens)
            for e in self.data.encoders:
                x = tokens[e]
                keep = torch.rand(*x.shape[:2], 1, generator=generator) > self.data.token_dropout
                tokens[e] = x * keep.to(x.device)
        return self._ask(model.predict, rows, tokens)

    @staticmethod
    def _ask(what: Callable[..., T], rows: Rows, tokens: dict[str, Tensor]) -> T:
        """A function of the regressor, on what it reads of samples."""
        return what(rows["landmarks"], rows["blendshapes"], rows["size"].float(), tokens, rows["K"][:, 0, 0])

    def _near(self, codes: Codes, rows: Rows, some: slice, generator: torch.Generator) -> Tensor:
        """L3D of registered samples (model units)."""
        surface = rows["surface"]
        chosen = torch.randint(surface.shape[1], (len(surface), self.data.near_points, 1), generator=generator)
        noise = torch.randn(*chosen.shape[:2], 3, generator=generator) * self.data.near
        x = surface.gather(1, chosen.to(self.device).expand(-1, -1, 3)) + noise.to(self.device)
        x = x / MODEL_UNIT
        with torch.no_grad():
            target = self.head.sdf(x, rows["z_id"], rows["z_ex"])
        return (self.head.sdf(x, codes.z_id[some], codes.z_ex[some]) - target).abs().mean()

    def _drawn(self, codes: Codes, rows: Rows, some: slice, generator: torch.Generator) -> Tensor:
        """L2D at random pixels of the face."""
        n = min(self.data.ray_samples, len(rows["mask"]))
        mask = rows["mask"][:n].flatten(1).float().cpu()
        cells = torch.multinomial(mask + 1e-9, self.data.rays, replacement=True, generator=generator)[..., None]
        seen = mask.gather(1, cells[..., 0])[..., None].to(self.device)
        cells = cells.expand(-1, -1, 3).to(self.device)
        points, normals = (rows[k][:n].flatten(1, 2).float().gather(1, cells) * seen for k in ("points", "normals"))
        centre = -(rows["t"][:n, None] @ rows["R"][:n])[:, 0]
        normals = F.normalize(normals, dim=-1)
        return render_loss(self.head, self.data.renderer, codes.z_id[some], codes.z_ex[some], points, normals, centre)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out people: L3D of the predicted and of the mean code (mm), and their ratio."""
        assert isinstance(model, ImageRegressor)
        generator, found = torch.Generator().manual_seed(0), []
        for some in torch.arange(len(self.heldout)).split(25):
            rows, tokens = self._read(2, self.heldout, some.tolist())
            codes = self._predict(model, rows, tokens, None)
            b = len(some)
            mean = Codes(
                self.head.mean_identity.expand(b, -1), self.head.mean_expression.expand(b, -1), codes.log_variance
            )
            state = generator.get_state()
            own = float(self._near(codes, rows, slice(None), generator))
            generator.set_state(state)
            found.append((b, own, float(self._near(mean, rows, slice(None), generator))))
        weight, own_mm, mean_mm = np.array(found).T
        sdf, mean_code = (float(np.average(x, weights=weight)) * MM for x in (own_mm, mean_mm))
        return {"sdf_mm": sdf, "mean_code_mm": mean_code, "share_left": sdf / mean_code}


def fit_last(mlp: nn.Sequential, x: Tensor, target: Tensor, ridge: float = 0.02) -> None:
    """The last layer of a read-out such that tokens x [N, width] give targets [N, D]; ``ridge``: of their variance."""
    features = mlp[:-1](x)
    middle, mean = features.mean(0), target.mean(0)
    off = features - middle
    square = off.T @ off
    least = (ridge * square.diagonal().mean()).clamp_min(1e-6)  # where all samples are alike
    square += least * torch.eye(len(square), device=x.device)
    last = cast("nn.Linear", mlp[-1])
    last.weight.copy_(torch.linalg.solve(square, off.T @ (target - mean)).T)
    last.bias.copy_(mean - last.weight @ middle)


def inherit(model: ImageRegressor, tensors: dict[str, Tensor]) -> None:
    """Take over what an earlier regressor shares with ``model``: parameters of equal shape, and how landmarks vary."""
    own = model.state_dict()
    names = {name for name, _ in model.named_parameters()} | {"mean_points", "spread_points"}
    model.load_state_dict(own | {k: tensors[k] for k in names & tensors.keys() if tensors[k].shape == own[k].shape})


def start_at_mean(model: ImageRegressor, head: NphmDecoder) -> None:
    """Set the units of the codes, and let every prediction be the mean code until something is learnt."""
    c = head.config
    known = (head.identity_codes, head.expression_codes) if isinstance(head, AnchoredDecoder) else (None, None)
    spreads = []
    for codes, dim, basis in (
        (known[0], c.identity_dim, head.identity_basis if c.identity_basis else None),
        (known[1], c.expression_dim, head.expression_basis if c.expression_names else None),
    ):
        if codes is not None:
            spreads.append(codes.spread)
        else:
            spreads.append(torch.full((dim,), dim**-0.5) if basis is None else basis.detach().norm(dim=1))
    with torch.no_grad():
        model.mean_id.copy_(head.mean_identity)
        for buffer, spread in ((model.spread_id, spreads[0]), (model.spread_ex, spreads[1])):
            buffer.copy_(spread.clamp_min(1e-3 * float(spread.max())))
        for mlp in (model.to_expression, model.to_local, model.to_global):
            last = cast("nn.Linear", mlp[-1])
            last.weight.zero_()
            last.bias.zero_()
        cast("nn.Linear", model.to_expression[-1]).bias.copy_(head.mean_expression / model.spread_ex)
        if model.image_config.identity_weights:
            model.identity_basis.copy_(head.identity_basis)
        if model.image_config.expression_weights:
            model.expression_basis.copy_(head.expression_basis)
