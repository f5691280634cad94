"""Training of the geometry networks and the image regressor together, on renders drawn as they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from nphm_track.conventions import MODEL_UNIT
from nphm_track.geometry.landmark_mesh import MAP_CHANNELS, landmark_maps_batch, landmark_triangles
from nphm_track.geometry.networks import DENSE, TRUNK, GeometryConfig, GeometryNet
from nphm_track.models import read_weights, resolve
from nphm_track.regressor.image_regressor import Codes, ImageRegressor, ImageRegressorConfig
from nphm_track.regressor.landmark_regressor import RegressorConfig
from nphm_track.training.face_batch import FaceBatch
from nphm_track.training.face_stream import FaceStream
from nphm_track.training.geometry_task import geometry_errors, geometry_terms, summarise_errors
from nphm_track.training.head_terms import HeadTerms
from nphm_track.training.image_regressor_task import KNOWN_CAMERA, likelihood
from nphm_track.training.photo_fit import LANDMARKS
from nphm_track.training.recipe import Strict
from nphm_track.training.regressor_task import regressor_config, standardise
from nphm_track.training.renders import Renders
from nphm_track.training.rng import Rng
from nphm_track.training.texture_bank import TextureBank
from nphm_track.training.trainer import Share

HELDOUT_SEED = 900_000_000
CALIBRATED = frozenset({"geometry.mean_landmarks", "geometry.triangles", "regressor.identity_mean"})
"""Tensors that come from the head model and from ``training/release.py``, not from training."""


class FacesData(Strict):
    """The ``[data]`` table of a faces recipe."""

    ict: str
    photos: str = Field(description="folder with the face photos")
    fits: str = Field(description="file written by training/build_photo_fits.py")
    head_model: str = Field("nphm-small", description="name or path of the frozen head model")
    landmarks: str = LANDMARKS
    renders: Renders = Field(Renders(), description="what renders are drawn from")
    device: str = Field("cpu", description="where renders are drawn; the trainer's device")
    init: str | None = Field(None, description="model.safetensors to start from; released: the released two")
    photo_limit: int | None = Field(None, gt=0, description="photos of each split to use; all without")
    batch: int = Field(128, gt=0)
    reuse: int = Field(
        1, gt=0, description="times that a render is trained on; drawing one costs a CPU more than a step"
    )
    kept: int = Field(1024, gt=0, description="renders of a process in memory for that, 1 MB each")
    heldout_batches: int = Field(6, gt=0, description="batches of 64 that the held-out figures are taken on")
    width: int = Field(256, gt=0)
    layers: int = Field(4, gt=0)
    heads: int = Field(8, gt=0)
    decoder: tuple[int, int] = (96, 48)
    stem: tuple[int, ...] = (64, 128)
    regressor_width: int = Field(256, gt=0)
    regressor_layers: int = Field(4, gt=0)
    sdf_points: int = Field(0, ge=0, description="points a sample for L3D; none: distances of vertices stand for it")
    sdf_every: int = Field(1, gt=0, description="steps from one with L3D to the next: it doubles a GPU's step")
    details: bool = Field(True, description="the regressor reads the trunk's finest maps along lids, lips and brows")
    frozen: bool = Field(False, description="train the regressor alone, on the geometry networks of data.init")
    landmark_noise: float = Field(0.012, ge=0, description="largest noise on landmarks of the mesh, of the crop's side")
    jitter: float = Field(0.004, ge=0, description="landmark noise for the regressor, of the face's RMS radius")


class Faces(nn.Module):
    """Both networks; they are released one by one."""

    def __init__(self, geometry: GeometryNet, regressor: ImageRegressor) -> None:
        super().__init__()
        self.geometry, self.regressor = geometry, regressor


class Drawn(Protocol):
    """Renders as they are kept: a dataclass of tensors with ``features`` among them."""

    def __init__(self, **columns: Any) -> None: ...

    @property
    def crop(self) -> Tensor: ...

    @property
    def features(self) -> dict[int, Tensor]: ...

    def columns(self) -> dict[str, Tensor]: ...


B = TypeVar("B", bound=Drawn)


class Replay:
    """The newest renders, to be trained on again; half precision. What is in it is not part of a checkpoint."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.columns: dict[Any, Tensor] = {}
        self.drawn = 0

    def mix(self, fresh: B, count: int, rng: Rng) -> B:
        """``fresh`` and as many of the kept renders as make ``count``; fresh ones take the places of the oldest."""
        new: dict[Any, Tensor] = {**fresh.columns(), **fresh.features}
        n = len(fresh.crop)
        if not self.columns:
            large = {"crop", "points", "normals", "mask", *fresh.features}
            self.columns = {
                k: v.new_empty(self.capacity, *v.shape[1:], dtype=torch.half if k in large else v.dtype)
                for k, v in new.items()
            }
        kept = min(self.drawn, self.capacity)
        if kept:
            again = rng.below(kept, count - n)
            out = {k: torch.cat([v, self.columns[k][again].to(v.dtype)]) for k, v in new.items()}
        else:
            out = new
        place = torch.arange(self.drawn, self.drawn + n, device=fresh.crop.device) % self.capacity
        for k, v in new.items():
            self.columns[k][place] = v.to(self.columns[k].dtype)
        self.drawn += n
        features = {k: out.pop(k) for k in fresh.features}
        return type(fresh)(**out, features=features)


class FacesTask:
    """Dense losses on normals and points; vertex losses on the codes, through the tokens into the encoders."""

    share = Share()
    _ahead: dict[int, Future[tuple[tuple[FaceBatch, Tensor, Rng], torch.cuda.Event | None]]]

    def __init__(self, data: FacesData) -> None:
        self.data = data
        device = torch.device(data.device)
        self.device = device
        self.terms = HeadTerms(data.head_model, data.ict, data.landmarks)
        limit, files = data.photo_limit, (data.ict, data.photos, data.fits)
        self.stream = FaceStream.open(
            *files, device=device, limit=limit, landmarks=data.landmarks, renders=data.renders
        )
        others = TextureBank.read(data.fits, data.photos, self.stream.heads, heldout=True, limit=limit)
        self.heldout = self.stream.with_photos(others)
        mean = self.terms.head.mean_landmarks.numpy().astype(np.float64) * MODEL_UNIT
        triangles = landmark_triangles(mean)
        geometry = GeometryNet(
            GeometryConfig(data.width, data.layers, data.heads, decoder=data.decoder, stem=data.stem), len(triangles)
        )
        geometry.mean_landmarks.copy_(torch.from_numpy(mean))
        geometry.triangles.copy_(torch.from_numpy(triangles))
        self.mean, self.triangles = geometry.mean_landmarks.to(device), geometry.triangles.to(device)
        base = regressor_config(self.terms.head)
        initial, known = _initial(data.init) if data.init else ({}, {})
        if known:  # weights of landmarks in these groups
            base = replace(base, groups=RegressorConfig.from_dict(known["regressor"]).groups)
        sizes = {**vars(base), "width": data.regressor_width, "layers": data.regressor_layers, "heads": data.heads}
        regressor = ImageRegressor(
            ImageRegressorConfig(
                type(base)(**sizes),
                data.width,
                identity_weights=self.terms.basis_id.shape[1],
                expression_weights=self.terms.head.expression_basis.shape[1],
                field_of_view=True,
                details=data.details,
            )
        )
        regressor.identity_basis.copy_(self.terms.basis_id)
        regressor.expression_basis.copy_(self.terms.head.expression_basis)
        first = self.stream.draw(0, 64)
        standardise(regressor, self.terms.head, first.landmarks.cpu(), first.size.cpu())
        for size in TRUNK:
            x = first.features[size]
            getattr(geometry, f"trunk_mean_{size}").copy_(x.mean((0, 2, 3)))
            getattr(geometry, f"trunk_spread_{size}").copy_(x.std((0, 2, 3)).clamp_min(1e-3))
        self.model = Faces(geometry, regressor)
        if initial:
            self.model.load_state_dict(grown(self.model, initial))
        if data.frozen:
            self.model.geometry.requires_grad_(False)
        self.device_terms = self.terms if device.type == "cpu" else self.terms.to(device)
        self._evaluated: list[FaceBatch] = []
        self.replay = Replay(data.kept) if data.reuse > 1 else None
        self.pool, self._ahead = ThreadPoolExecutor(1), {}
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def config(self) -> dict[str, Any]:
        model = self.model
        return {
            "kind": "faces",
            "geometry": model.geometry.config.to_dict(),
            "regressor": model.regressor.image_config.to_dict(),
        }

    def losses(self, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        del generator  # all chance is on the device
        batch, maps, rng = self._batch(step)
        count = len(batch.valid)
        terms: dict[str, Tensor] = {}
        if self.data.frozen:
            n, p = self.model.geometry.encode(batch.crop, batch.features, maps)
            tokens = self._read(self.model, batch, n, p)
        else:
            out = self.model.geometry(batch.crop, batch.features, maps)
            tokens = self._read(self.model, batch, out["tokens_n"], out["tokens_p"])
            mask = batch.mask * batch.valid[:, None, None]
            terms = geometry_terms(out, batch.normals, batch.points, mask)
        radius = batch.landmarks[..., :2].std(dim=(1, 2), keepdim=True)
        scale = rng.uniform(count, 1, 1, high=2 * self.data.jitter)
        landmarks = batch.landmarks + rng.normal(*batch.landmarks.shape) * radius * scale
        focal = torch.where(rng.chance(KNOWN_CAMERA, count), batch.K[:, 0, 0], torch.nan)
        codes = self.model.regressor.predict(landmarks, batch.scores, batch.size, tokens, focal)
        good = batch.valid.nonzero()[:, 0] if batch.valid.any() else torch.arange(count, device=self.device)
        codes = Codes(*(x[good].float() for x in (codes.z_id, codes.z_ex, codes.log_variance)))
        table = {k: getattr(batch, k)[good] for k in ("w", "e", "K", "R", "t", "landmarks")}
        with torch.autocast(self.device.type, enabled=False):
            terms |= self.device_terms.vertex_terms(codes.z_id, codes.z_ex, table)
            if self.data.sdf_points and step % self.data.sdf_every == 0:
                near = (table, rng.generator, len(good), self.data.sdf_points)
                terms["sdf"] = self.device_terms.sdf_term(codes.z_id, codes.z_ex, *near)
            regressor = self.model.regressor
            sizes = (codes.z_id / regressor.spread_id, codes.z_ex / regressor.spread_ex)
            terms["code"] = sizes[0].square().mean() + sizes[1].square().mean()
            terms["uncertainty"] = likelihood(self.device_terms, regressor, codes, table)
        return terms

    def _batch(self, step: int) -> tuple[FaceBatch, Tensor, Rng]:
        """The batch of a step with its landmark maps, drawn while the step before trained."""
        future = self._ahead.pop(step, None) or self.pool.submit(self._draw, step)
        self._ahead = {step + 1: self.pool.submit(self._draw, step + 1)}
        drawn, ready = future.result()
        if ready is not None:
            here = torch.cuda.current_stream(self.device)
            here.wait_event(ready)
            batch, maps, _ = drawn
            for tensor in (*batch.columns().values(), *batch.features.values(), maps):
                tensor.record_stream(here)  # its memory belongs to the other stream, which must not reuse it too early
        return drawn

    def _draw(self, step: int) -> tuple[tuple[FaceBatch, Tensor, Rng], torch.cuda.Event | None]:
        seed = step * self.share.world + self.share.rank + 1
        count = self.data.batch // self.share.world
        with torch.no_grad(), torch.cuda.stream(self.side):
            rng = Rng(seed + HELDOUT_SEED // 2, self.device)
            batch = self.stream.draw(seed, -(-count // self.data.reuse))
            if self.replay:
                batch = self.replay.mix(batch, count, rng)
            maps = self._maps(batch, rng)
            ready = None if self.side is None else self.side.record_event()
        return (batch, maps, rng), ready

    @staticmethod
    def _read(model: Faces, batch: FaceBatch, n: Tensor, p: Tensor) -> dict[str, Tensor]:
        """What the regressor reads of an image, from the tokens of E_n and E_p."""
        return {"n": n, "p": p, "d": model.geometry.details(batch.features, batch.crop_landmarks)}

    def _maps(self, batch: FaceBatch, rng: Rng) -> Tensor:
        """Landmark maps of landmarks with smooth errors, so that the networks learn to overrule them."""
        landmarks = batch.crop_landmarks
        b = len(landmarks)
        amount = 256 * self.data.landmark_noise * rng.uniform(b, 1, 1) ** 2
        centres = landmarks[:, rng.below(468, 24)]
        weight = torch.softmax(-torch.cdist(landmarks[..., :2], centres[..., :2]) / 8, -1)  # smooth over the face
        noisy = landmarks + weight @ (rng.normal(b, 24, 3) * amount)
        return landmark_maps_batch(noisy, self.mean, self.triangles, DENSE)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out people: errors of the maps beside the landmark mesh's, and of the codes (``HeadTerms.metrics``)."""
        assert isinstance(model, Faces)
        if not self._evaluated:
            self._evaluated = [self.heldout.draw(HELDOUT_SEED + k, 64) for k in range(self.data.heldout_batches)]
        errors: list[dict[str, Tensor]] = []
        parts: dict[str, list[Tensor]] = {}
        for batch in self._evaluated:
            maps = landmark_maps_batch(batch.crop_landmarks, self.mean, self.triangles, DENSE)
            out = model.geometry(batch.crop, batch.features, maps)
            mask = batch.mask * batch.valid[:, None, None]
            errors.append(geometry_errors(out, maps, batch.normals, batch.points, mask))
            tokens = self._read(model, batch, out["tokens_n"], out["tokens_p"])
            codes = model.regressor.predict(batch.landmarks, batch.scores, batch.size, tokens, batch.K[:, 0, 0])
            good = batch.valid.nonzero()[:, 0]
            table = {k: getattr(batch, k) for k in ("w", "e", "K", "R", "t", "landmarks")}
            for name, value in (table | {"z_id": codes.z_id, "z_ex": codes.z_ex}).items():
                parts.setdefault(name, []).append(value[good].float().cpu())
        table = {k: torch.cat(v) for k, v in parts.items()}
        return summarise_errors(errors) | self.terms.metrics(table.pop("z_id"), table.pop("z_ex"), table)


def _initial(source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights to start from and the configuration of their regressor."""
    if source != "released":
        tensors, config = read_weights(source)
        return tensors, config["regressor"]
    parts = {"geometry": "geometry", "regressor": "image-regressor"}
    read = {part: read_weights(resolve(name)) for part, name in parts.items()}
    return {f"{part}.{k}": v for part in parts for k, v in read[part][0].items()}, read["regressor"][1]["regressor"]


def grown(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """State of ``model`` that computes what ``tensors`` of a smaller one compute: here one without a stem.

    What the stem feeds starts at zero and is learnt. Weights of the same sizes are passed through. Where landmarks lie
    on the mean head is the head model's to say: it may have been calibrated anew.
    """
    own = model.state_dict()
    out: dict[str, Tensor] = {}
    for name, value in own.items():
        old = tensors.get(name)
        if name in CALIBRATED or (old is None and (".stem." in name or ".detail." in name)):
            out[name] = value
        elif old is None and ".learnt." in name:
            out[name] = torch.zeros_like(value)
        elif old is not None and ".merge." in name and old.shape != value.shape:
            last = MAP_CHANNELS if ".merge.1." in name else 0  # behind the stem's channels: the landmark maps
            first = old.shape[1] - last
            out[name] = torch.zeros_like(value)
            out[name][:, :first] = old[:, :first]
            out[name][:, value.shape[1] - last :] = old[:, first:]
        elif old is not None:
            out[name] = old
    return out


Weights = tuple[dict[str, Tensor], dict[str, Any]]


def split_faces(tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Weights]:
    """The two models of a faces run: name -> tensors and configuration, as they are released."""
    kinds = {"geometry": "geometry", "regressor": "image-regressor"}
    return {
        kind: (
            {k.removeprefix(part + "."): v for k, v in tensors.items() if k.startswith(part + ".")},
            {"kind": kind, part: config[part], "training": config.get("training", {})},
        )
        for part, kind in kinds.items()
    }
