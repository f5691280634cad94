"""Training of the network of surface points on renders drawn as they are needed; a render's own vertices are true."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from nphm_track.conventions import OUTER_EYE_CORNERS
from nphm_track.faces.roi import CROP_SIZE
from nphm_track.geometry.networks import TRUNK
from nphm_track.geometry.surface_points import (
    STEP,
    SurfacePointNet,
    SurfacePoints,
    SurfacePointsConfig,
    mahalanobis,
)
from nphm_track.models import read_weights
from nphm_track.training.face_batch import Scene
from nphm_track.training.face_stream import FaceStream
from nphm_track.training.faces_task import HELDOUT_SEED, Replay
from nphm_track.training.ict import load_ict
from nphm_track.training.photo_fit import LANDMARKS
from nphm_track.training.recipe import Strict
from nphm_track.training.renders import Renders
from nphm_track.training.rng import Rng
from nphm_track.training.template_points import SPACING, mirrored_points, point_spacing, template_points
from nphm_track.training.texture_bank import TextureBank, pixels_of
from nphm_track.training.trainer import Share

FRONTAL = 25.0
"""Degrees between face and camera up to which a view counts as frontal."""
RIDGE, MADE_UP = 20.0, 2000
"""Points are first read off the landmarks with a ridge of the weight of so many heads, of so many heads."""
TAIL = 3.0
"""Sigmas from which an error counts by its size, not by its square."""
HIDDEN = 0.004
"""Metres behind what the picture shows from which a point is hidden."""


class PointsData(Strict):
    """The ``[data]`` table of a surface-points recipe."""

    ict: str
    photos: str = Field(description="folder with the face photos")
    fits: str = Field(description="file written by training/build_photo_fits.py")
    landmarks: str = LANDMARKS
    renders: Renders = Field(Renders(), description="what renders are drawn from")
    device: str = Field("cpu", description="where renders are drawn; the trainer's device")
    init: str | None = Field(None, description="model.safetensors to start from")
    photo_limit: int | None = Field(None, gt=0, description="photos of each split to use; all without")
    batch: int = Field(48, gt=0)
    reuse: int = Field(3, gt=0, description="times that a render is trained on")
    kept: int = Field(1024, gt=0, description="renders of a process in memory for that, 1 MB each")
    start_renders: int = Field(256, gt=0, description="that tell how wrong landmarks are, for where points start")
    heldout_batches: int = Field(3, gt=0, description="batches of 64 that the held-out figures are taken on")
    fine: int = Field(32, gt=0)
    coarse: int = Field(64, gt=0)
    blocks: tuple[int, int] = (1, 2)
    width: int = Field(96, gt=0)
    slots: int = Field(48, gt=0)


@dataclass(frozen=True)
class PointBatch:
    """B crops with the N points they show.

    Attributes:
        crop: [B, 3, 256, 256] in 0..1. landmarks: [B, 478, 3] found, crop px. valid: [B] the face was found.
        xy: [B, N, 2] true places, crop px. camera: [B, N, 3] the points in the camera frame, metres.
        K: [B, 3, 3] intrinsics of the crop. visible: [B, N] nothing hides the point.
        true_landmarks: [B, 478, 3] places of the landmarks on the head, camera frame, metres.
        angle: [B] degrees between face and camera. painted: [B] no photo on it. w: [B, 100] identity.
        features: the landmark network's maps of the crop, by size.
    """

    crop: Tensor
    landmarks: Tensor
    valid: Tensor
    xy: Tensor
    camera: Tensor
    K: Tensor
    visible: Tensor
    true_landmarks: Tensor
    angle: Tensor
    painted: Tensor
    w: Tensor
    features: dict[int, Tensor]

    def columns(self) -> dict[str, Tensor]:
        """All tensors but the features, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "features"}

    def depth(self) -> Tensor:
        """[B, N] px behind the mean of the points."""
        return in_pixels(self.camera, self.K)[..., 2]


def in_pixels(camera: Tensor, K: Tensor) -> Tensor:
    """Points [B, N, 3] of the camera frame (metres) in the picture: x, y, and the depth behind their mean in pixels at
    that distance."""
    z = camera[..., 2]
    middle = z.mean(1, keepdim=True)
    return torch.cat([pixels_of(camera, K), ((z - middle) / middle * K[:, :1, 0])[..., None]], -1)


class PointStream(FaceStream):
    """Draws batches of points; half of the pictures are mirrored when ``mirrored``."""

    def draw_points(self, seed: int, count: int, vertex: Tensor, mirror: Tensor | None) -> PointBatch:
        """``count`` samples of the vertices ``vertex`` [N]; ``mirror`` [N] of each one, to mirror half of them."""
        rng = self.rng(seed, self.device)
        s = self.scene(rng, count)
        p = s.placed
        crop, K, camera = s.crop, p.K.clone(), p.camera[:, vertex]
        visible = _visible(s, camera)
        true = p.landmarks(self.heads)
        flip = rng.chance(0.0 if mirror is None else 0.5, count)
        if mirror is not None:
            crop = torch.where(flip[:, None, None, None], crop.flip(-1), crop)
            side = camera.new_tensor([-1.0, 1.0, 1.0])
            camera = torch.where(flip[:, None, None], camera[:, mirror] * side, camera)
            visible = torch.where(flip[:, None], visible[:, mirror], visible)
            K[:, 0, 2] = torch.where(flip, CROP_SIZE - K[:, 0, 2], K[:, 0, 2])
            true = torch.where(flip[:, None, None], true * side, true)
        out = self.landmarker.landmark_net(crop.contiguous(memory_format=torch.channels_last), True)
        corners = list(OUTER_EYE_CORNERS)
        place = pixels_of(true[:, corners], K)
        place = torch.where(flip[:, None, None], place.flip(1), place)
        error = (out["landmarks"][:, corners, :2] - place).norm(dim=-1).amax(1)
        valid = (torch.sigmoid(out["presence"]) > 0.7) & (error < 0.08 * CROP_SIZE)
        angle = torch.rad2deg((-p.R[:, 2, 2]).clamp(-1, 1).acos())
        features = {size: out[f"features_{size}"].contiguous() for size in TRUNK}
        columns = (out["landmarks"], valid.float(), pixels_of(camera, K), camera, K, visible, true, angle, p.painted)
        return PointBatch(crop, *columns, p.w, features)


def _visible(s: Scene, camera: Tensor) -> Tensor:
    """[B, N] whether the picture shows the points [B, N, 3] of the camera frame."""
    x, y = pixels_of(camera, s.placed.K).unbind(-1)
    inside = (x >= 0) & (y >= 0) & (x < CROP_SIZE) & (y < CROP_SIZE)
    cell = y.long().clamp(0, CROP_SIZE - 1) * CROP_SIZE + x.long().clamp(0, CROP_SIZE - 1)
    depth, shown = s.fragments.depth.flatten(1).gather(1, cell), s.shown.flatten(1).gather(1, cell)
    return inside & shown & (camera[..., 2] < depth + HIDDEN)


class PointsTask:
    """Likelihood of the true points, Gaussian but for its tails, each error weighted by its own sigma.

    So that what is hidden or hard does not stop being learnt (beta-NLL, Seitzer et al. 2022, beta 0.5).
    """

    share = Share()

    def __init__(self, data: PointsData) -> None:
        self.data, self.device = data, torch.device(data.device)
        heads = load_ict(data.ict)
        vertex = template_points(heads)
        limit, files = data.photo_limit, (data.ict, data.photos, data.fits)
        self.stream = PointStream.open(
            *files, device=self.device, limit=limit, landmarks=data.landmarks, renders=data.renders
        )
        others = TextureBank.read(data.fits, data.photos, self.stream.heads, heldout=True, limit=limit)
        self.heldout = self.stream.with_photos(others)
        sizes = {k: getattr(data, k) for k in ("fine", "coarse", "blocks", "width", "slots")}
        self.model = SurfacePointNet(SurfacePointsConfig(len(vertex), **sizes))
        self.vertex = torch.from_numpy(vertex).to(self.device)
        self.mirror = torch.from_numpy(mirrored_points(heads, vertex)).to(self.device)
        self.in_face = torch.from_numpy(point_spacing(heads)[vertex] < SPACING["around"])
        self.model.vertex.copy_(torch.from_numpy(heads.source[vertex]))
        self.model.mirror.copy_(self.mirror)
        self.model.mean.copy_(torch.from_numpy(heads.neutral[vertex]))
        self.replay = Replay(data.kept)
        self._evaluated: list[PointBatch] = []
        if data.init:
            self.model.load_state_dict(read_weights(data.init)[0])
        else:
            self._begin()
        self.model.start.requires_grad_(False)

    def _begin(self) -> None:
        """Statistics of the trunk's maps, and the points read off the landmarks in closed form.

        Few pictures tell how wrong landmarks are; many heads without a picture tell how points go with them.
        """
        seeds = range(HELDOUT_SEED // 2, HELDOUT_SEED // 2 + -(-self.data.start_renders // 64))
        drawn = [self.stream.draw_points(seed, 64, self.vertex, self.mirror) for seed in seeds]
        for size in TRUNK:
            x = drawn[0].features[size]
            getattr(self.model, f"trunk_mean_{size}").copy_(x.mean((0, 2, 3)))
            getattr(self.model, f"trunk_spread_{size}").copy_(x.std((0, 2, 3)).clamp_min(1e-3))
        found = torch.cat([b.landmarks[b.valid > 0] for b in drawn])
        true = torch.cat([in_pixels(b.true_landmarks, b.K)[b.valid > 0] for b in drawn])
        landmarks, points = self._made_up(found - true)
        mean = landmarks.mean(0)
        _, size, axes = torch.linalg.svd(landmarks - mean, full_matrices=False)
        components = self.model.config.components
        axes = axes[:components] / (size[:components] / len(landmarks) ** 0.5)[:, None]  # components of unit spread
        code = (landmarks - mean) @ axes.T
        ridge = RIDGE * torch.eye(len(axes), dtype=torch.float64)
        weight = torch.linalg.solve(code.T @ code + ridge, code.T @ (points - points.mean(0)))
        self.model.landmark_mean.copy_(mean)
        self.model.landmark_axes.copy_(axes)
        with torch.no_grad():
            self.model.start.weight.copy_(weight.T)
            self.model.start.bias.copy_(points.mean(0))

    def _made_up(self, errors: Tensor) -> tuple[Tensor, Tensor]:
        """Landmarks [M, 1434] and points [M, 3 N] of heads without pictures, whose landmarks are wrong as those of
        pictures are: ``errors`` [R, 478, 3] px. Double precision; points in units of ``STEP``."""
        rng = Rng(HELDOUT_SEED // 2, self.device)
        landmarks, points = [], []
        for _ in range(MADE_UP // 50):
            p = self.stream.placed(rng, 50)
            landmarks.append(in_pixels(p.landmarks(self.stream.heads), p.K) + errors[rng.below(len(errors), 50)])
            points.append(in_pixels(p.camera[:, self.vertex], p.K) / STEP)
        return torch.cat(landmarks).flatten(1).double(), torch.cat(points).flatten(1).double()

    def config(self) -> dict[str, Any]:
        return {"kind": "surface-points", "points": self.model.config.to_dict()}

    def losses(self, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        del generator  # all chance is on the device
        batch = self._batch(step)
        good = batch.valid > 0
        xy, depth = batch.xy[good], batch.depth()[good]
        rounds = self.model(batch.crop, batch.features, batch.landmarks)
        terms: dict[str, Tensor] = {}
        with torch.autocast(self.device.type, enabled=False):
            for k, found in enumerate(rounds):
                out = SurfacePoints(*(x[good] for x in found))
                terms[f"place_{k}"] = place_likelihood(out, xy)
                terms[f"depth_{k}"] = depth_likelihood(out, depth)
        return terms

    def _batch(self, step: int) -> PointBatch:
        seed, count = step * self.share.world + self.share.rank + 1, self.data.batch // self.share.world
        with torch.no_grad():
            fresh = self.stream.draw_points(seed, -(-count // self.data.reuse), self.vertex, self.mirror)
            return self.replay.mix(fresh, count, Rng(seed + HELDOUT_SEED // 2, self.device))

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Errors on held-out people (:func:`point_errors`)."""
        assert isinstance(model, SurfacePointNet)
        if not self._evaluated:
            seeds = range(HELDOUT_SEED, HELDOUT_SEED + self.data.heldout_batches)
            self._evaluated = [self.heldout.draw_points(seed, 64, self.vertex, None) for seed in seeds]
        return point_errors(model, self._evaluated, self.in_face)


def place_likelihood(out: SurfacePoints, xy: Tensor) -> Tensor:
    """Negative log likelihood of xy [B, N, 2], each point's weighted by its sigma; mean, in units of ``STEP``."""
    log_sigma = -(out.precision[..., 0] + out.precision[..., 2]) / 2
    value = _cost(mahalanobis(out, xy)) + 2 * log_sigma
    return (log_sigma.exp().detach() / STEP * value).mean()


def depth_likelihood(out: SurfacePoints, depth: Tensor) -> Tensor:
    """The same of depths [B, N]."""
    value = _cost(((depth - out.depth) / out.depth_sigma).square()) + out.depth_sigma.log()
    return (out.depth_sigma.detach() / STEP * value).mean()


def _cost(squared: Tensor) -> Tensor:
    """Half of squared errors in units of sigma, for large ones the errors themselves (pseudo-Huber)."""
    return TAIL**2 * ((1 + squared / TAIL**2).sqrt() - 1)


def point_errors(model: SurfacePointNet, batches: list[PointBatch], in_face: Tensor) -> dict[str, float]:
    """Errors of a network's points, and of the found landmarks beside it, on batches of renders.

    Millimetres after a similarity that is fitted to the points of the face (``in_face`` [N], hidden ones too), with the
    true camera; ``plane_``: after a similarity in the image, as large as a pixel is at the head; ``frontal_``: of views
    within ``FRONTAL`` degrees; ``painted_``: of frontal heads whose texture is exact. ``px``: RMS of seen points in the
    crop. ``chi2``, ``depth_chi2``: mean squared error of seen points in units of the variances, 1 when these are right.
    """
    of: dict[str, list[Tensor]] = {}
    for batch in batches:
        good = batch.valid > 0
        out = SurfacePoints(*(x[good].float() for x in model(batch.crop, batch.features, batch.landmarks)[-1]))
        camera, K, seen = batch.camera[good], batch.K[good], batch.visible[good]
        middle = camera[..., 2].mean(1)
        rows = in_face.nonzero()[:, 0]
        own = unprojected(torch.cat([out.xy, out.depth[..., None]], -1), K, middle)
        error = 1000 * similarity_errors(own[:, rows], camera[:, rows])
        found = unprojected(batch.landmarks[good, :468], K, middle)
        landmark = 1000 * similarity_errors(found, batch.true_landmarks[good, :468])
        scale = 1000 * middle[:, None] / K[:, 0, :1]  # mm a pixel
        plane = scale * similarity_errors(out.xy[:, rows], batch.xy[good][:, rows])
        true = pixels_of(batch.true_landmarks[good, :468], K)
        landmark_plane = scale * similarity_errors(batch.landmarks[good, :468, :2], true)
        frontal = batch.angle[good] < FRONTAL
        painted = frontal & batch.painted[good]
        kinds = {"": torch.ones_like(frontal), "frontal_": frontal, "painted_": painted}
        for kind, chosen in kinds.items():
            of.setdefault(kind + "mm", []).append(error[chosen].flatten())
            of.setdefault(kind + "landmark_mm", []).append(landmark[chosen].flatten())
            of.setdefault(kind + "plane_mm", []).append(plane[chosen].flatten())
            of.setdefault(kind + "landmark_plane_mm", []).append(landmark_plane[chosen].flatten())
        of.setdefault("seen_mm", []).append(error[frontal[:, None] & seen[:, rows]])
        of.setdefault("px", []).append((out.xy - batch.xy[good]).norm(dim=-1)[seen])
        of.setdefault("chi2", []).append(mahalanobis(out, batch.xy[good])[seen] / 2)
        depth = (batch.depth()[good] - out.depth) / out.depth_sigma
        of.setdefault("depth_chi2", []).append(depth.square()[seen])
    joined = {k: torch.cat(v) for k, v in of.items()}
    metrics: dict[str, Tensor] = {}
    for name, value in joined.items():
        if name.endswith("mm"):
            metrics |= {name + "_median": value.median(), name + "_rms": value.square().mean().sqrt()}
        else:
            metrics[name] = value.square().mean().sqrt() if name == "px" else value.mean()
    return {k: float(v) for k, v in metrics.items()}


def unprojected(points: Tensor, K: Tensor, middle: Tensor) -> Tensor:
    """Points [B, N, 3] (px, depth in pixels at distance ``middle`` [B], metres) in the camera frame, metres."""
    focal = K[:, :1, 0]
    z = middle[:, None] * (1 + points[..., 2] / focal)
    ray = (points[..., :2] - K[:, None, :2, 2]) / focal[..., None]
    return torch.cat([ray, torch.ones_like(z)[..., None]], -1) * z[..., None]


def similarity_errors(points: Tensor, true: Tensor) -> Tensor:
    """Distances [B, N] between true [B, N, D] and points after the best similarity (Umeyama 1991)."""
    a, b = points - points.mean(1, keepdim=True), true - true.mean(1, keepdim=True)
    u, s, vh = torch.linalg.svd(b.mT @ a)
    sign = torch.ones_like(s)
    sign[:, -1] = torch.linalg.det(u @ vh).sign()
    R = u * sign[:, None] @ vh
    scale = (s * sign).sum(1) / a.square().sum((1, 2))
    return (b - scale[:, None, None] * a @ R.mT).norm(dim=-1)
