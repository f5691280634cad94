"""Training of E_n, E_p and their decoders on photo-like renders with exact maps."""

from __future__ import annotations

import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import InputError
from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.faces.roi import frame_points_to_crop
from nphm_track.geometry.landmark_mesh import landmark_maps, landmark_triangles
from nphm_track.geometry.networks import DENSE, TRUNK, GeometryConfig, GeometryNet
from nphm_track.models import read_weights
from nphm_track.training.recipe import Strict
from nphm_track.training.trainer import Share

NORMAL_SCALE, POINT_SCALE = np.radians(18.0), 0.005
"""Error (radians, metres) at which the target of the confidence falls to 1/e."""


class GeometryData(Strict):
    """The ``[data]`` table of a geometry recipe."""

    shards: str = Field(description="folder written by training/build_face_renders.py")
    heldout: str = Field(description="the same, with held-out people")
    head_model: str = Field("nphm-small", description="whose mean landmarks define the landmark mesh")
    init: str | None = Field(None, description="model.safetensors to start from")
    batch: int = Field(16, gt=0)
    layers: int = Field(3, gt=0)
    width: int = Field(128, gt=0)
    trunk: bool = Field(True, description="frozen landmark trunk as the stem; false: patches of the image")
    landmark_mesh: bool = Field(True, description="rasterised landmark mesh as extra input")
    landmark_noise: float = Field(0.012, ge=0, description="largest noise on landmarks, of the crop's side")


class GeometryTask:
    """Dense losses of :func:`geometry_terms` on stored renders."""

    share = Share()

    def __init__(self, data: GeometryData) -> None:
        from nphm_track.heads.loading import load_head_model

        self.data = data
        self.landmarker = FaceLandmarker.from_pretrained()
        mean = load_head_model(data.head_model).mean_landmarks.numpy().astype(np.float64) * MODEL_UNIT
        triangles = landmark_triangles(mean)
        config = GeometryConfig(data.width, data.layers, trunk=data.trunk, landmark_mesh=data.landmark_mesh)
        self.model = GeometryNet(config, len(triangles))
        self.model.mean_landmarks.copy_(torch.from_numpy(mean))
        self.model.triangles.copy_(torch.from_numpy(triangles))
        self.shards = FaceShards(Path(data.shards))
        self.heldout = FaceShards(Path(data.heldout))
        self.pool = ThreadPoolExecutor(1)
        self._ahead: dict[int, Any] = {}
        if data.init:
            self.model.load_state_dict(read_weights(data.init)[0])
        else:
            self._standardise()

    def _standardise(self) -> None:
        batch = self.prepare(self.shards.take(np.arange(64) * len(self.shards) // 64), None)
        for size in TRUNK:
            x = batch["features"][size]
            getattr(self.model, f"trunk_mean_{size}").copy_(x.mean((0, 2, 3)))
            getattr(self.model, f"trunk_spread_{size}").copy_(x.std((0, 2, 3)).clamp_min(1e-3))

    def config(self) -> dict[str, Any]:
        return {"kind": "geometry", "geometry": self.model.config.to_dict()}

    def prepare(self, rows: dict[str, Any], rng: np.random.Generator | None) -> dict[str, Any]:
        """A batch of stored samples as network inputs and targets; ``rng`` adds photometric and landmark noise."""
        crop, features, maps, landmarks = prepare_crops(
            rows, self.landmarker, self.model, rng, self.data.landmark_noise
        )
        targets = {
            "points": torch.from_numpy(rows["points"]).float().permute(0, 3, 1, 2),
            "normals": F.normalize(torch.from_numpy(rows["normals"]).float(), dim=-1).permute(0, 3, 1, 2),
            "mask": torch.from_numpy(rows["mask"]).float(),
        }
        return {"crop": crop, "features": features, "maps": maps, "landmarks": landmarks, **targets}

    def _batch(self, step: int) -> dict[str, Any]:
        """The batch of a step, prepared while the step before trains."""

        def make(k: int) -> dict[str, Any]:
            rng = np.random.default_rng([k, 77])
            rows = rng.integers(len(self.shards), size=self.data.batch)
            return self.prepare(self.shards.take(rows[self.share.rank :: self.share.world]), rng)

        future = self._ahead.pop(step, None) or self.pool.submit(make, step)
        self._ahead = {step + 1: self.pool.submit(make, step + 1)}
        batch: dict[str, Any] = future.result()
        return batch

    def losses(self, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        batch = self._batch(step)
        out = self.model(batch["crop"], batch["features"], batch["maps"])
        return geometry_terms(out, batch["normals"], batch["points"], batch["mask"])

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out people: mean angle (degrees) and median distance (mm) in the face, beside the landmark mesh's."""
        errors = []
        for start in range(0, min(len(self.heldout), 192), 32):
            batch = self.prepare(self.heldout.take(np.arange(start, start + 32)), None)
            out = model(batch["crop"], batch["features"], batch["maps"])
            errors.append(geometry_errors(out, batch["maps"], batch["normals"], batch["points"], batch["mask"]))
        return summarise_errors(errors)


def geometry_terms(out: dict[str, Tensor], normals: Tensor, points: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Losses of a network's maps against normals and points [B, 3, n, n] where ``mask`` [B, n, n] is 1.

    The normals' loss is 1 - cosine and half the chord; confidences learn exp(-error).
    """
    total = mask.sum().clamp_min(1)
    cosine = (out["normals"] * normals).sum(1)
    chord = (out["normals"] - normals).square().sum(1).add(1e-6).sqrt()
    distance = (out["points"] - points).square().sum(1).add(1e-10).sqrt()
    angle = cosine.detach().clamp(-1, 1).acos()
    sure_n = mask * torch.exp(-angle / NORMAL_SCALE)
    sure_p = mask * torch.exp(-distance.detach() / POINT_SCALE)
    return {
        "normal": (mask * (1 - cosine + 0.5 * chord)).sum() / total,
        "point": (mask * distance).sum() / total,
        "sure_normal": F.binary_cross_entropy_with_logits(out["normal_logit"], sure_n),
        "sure_point": F.binary_cross_entropy_with_logits(out["point_logit"], sure_p),
    }


def geometry_errors(
    out: dict[str, Tensor], maps: Tensor, normals: Tensor, points: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    """Angles (degrees) and distances (mm) of all pixels of the face that networks and landmark mesh both know."""
    on = (mask > 0.5) & (maps[:, 6] > 0.5)
    errors = {}
    for name, n, p in (("", out["normals"], out["points"]), ("mesh_", maps[:, 3:6], maps[:, :3] / 10)):
        cosine = (n.float() * normals).sum(1).clamp(-1, 1)
        errors[name + "normal"] = torch.rad2deg(cosine.acos())[on]
        errors[name + "point"] = 1000 * (p.float() - points).norm(dim=1)[on]
    return errors


def summarise_errors(errors: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean angle and median distance of networks and landmark mesh."""
    joined = {k: torch.cat([e[k] for e in errors]) for k in errors[0]}
    return {
        "normal_deg": float(joined["normal"].mean()),
        "mesh_normal_deg": float(joined["mesh_normal"].mean()),
        "point_mm": float(joined["point"].median()),
        "mesh_point_mm": float(joined["mesh_point"].median()),
    }


def prepare_crops(
    rows: dict[str, Any],
    landmarker: FaceLandmarker,
    model: GeometryNet,
    rng: np.random.Generator | None = None,
    landmark_noise: float = 0.0,
) -> tuple[Tensor, dict[int, Tensor], Tensor, Tensor]:
    """Crops [B, 3, 256, 256], trunk maps, landmark maps [B, 7, 128, 128] and crop landmarks [B, 478, 3] of stored rows.

    ``rng`` adds photometric noise and smooth landmark errors of up to ``landmark_noise`` of the crop's side.
    """
    device = model.mean_landmarks.device
    crop = torch.stack([decode_crop(j) for j in rows["jpeg"]])
    landmarks = frame_points_to_crop(torch.from_numpy(rows["landmarks"]), torch.from_numpy(rows["roi"]))
    if rng is not None:
        b = len(crop)
        gain = rng.uniform(0.8, 1.2, (b, 3, 1, 1)) * rng.uniform(0.85, 1.15, (b, 1, 1, 1))
        crop = (crop * torch.from_numpy(gain).float()).clamp(0, 1)
        amount = 256 * landmark_noise * rng.uniform(0, 1, (b, 1, 1)) ** 2
        noise = torch.from_numpy(rng.normal(size=(b, 24, 3)) * amount).float()
        centres = landmarks[:, rng.choice(468, 24, replace=False)]
        weight = torch.softmax(-torch.cdist(landmarks[..., :2], centres[..., :2]) / 8, -1)  # smooth over the face
        landmarks = landmarks + weight @ noise
    mean, triangles = model.mean_landmarks.double().cpu().numpy(), model.triangles.cpu().numpy()
    maps = torch.from_numpy(landmark_maps(landmarks.numpy(), mean, triangles, DENSE)).to(device)
    crop = crop.to(device)
    with torch.no_grad():
        out = landmarker.landmark_net(crop.contiguous(memory_format=torch.channels_last), True)
    return crop, {s: out[f"features_{s}"].contiguous() for s in TRUNK}, maps, landmarks.to(device)


class FaceShards:
    """All shards of a folder, read into memory as they are stored."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("faces_??????.npz"))
        if not paths:
            raise InputError(f"no shards in {folder}: build them with training/build_face_renders.py")
        self.parts = [dict(np.load(p, allow_pickle=False)) for p in paths]
        self.start = np.cumsum([0, *[len(p["w"]) for p in self.parts]])

    def __len__(self) -> int:
        return int(self.start[-1])

    def take(self, rows: NDArray[np.integer]) -> dict[str, Any]:
        """Columns of the given rows; ``jpeg`` as a list of byte arrays."""
        out: dict[str, list[Any]] = {k: [] for k in self.parts[0] if k != "jpeg_end"}
        for row in rows:
            k = int(np.searchsorted(self.start, row, side="right")) - 1
            part, i = self.parts[k], int(row - self.start[k])
            for name in out:
                if name == "jpeg":
                    begin = part["jpeg_end"][i - 1] if i else 0
                    out[name].append(part["jpeg"][begin : part["jpeg_end"][i]])
                else:
                    out[name].append(part[name][i])
        return {k: v if k == "jpeg" else np.stack(v) for k, v in out.items()}


def decode_crop(jpeg: NDArray[np.uint8]) -> Tensor:
    picture = np.array(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB"))
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 255
