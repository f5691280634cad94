"""Photos laid on heads, all at once: where every vertex lies in every photo, its colour, and the photo's light.

A photo with a fitted head says where each vertex lies in the picture. What the photo does not show is taken from the
mirrored side, or from the nearest vertex that it does show.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nphm_track.errors import InputError
from nphm_track.kd_tree import kd_tree
from nphm_track.rendering.batched import Drawer
from nphm_track.training.ict import IctHeads

PICTURE = 288
"""Pixels of a side of a stored photo."""
RESIDUAL_SIGMA = 0.015
"""Metres over which a landmark's residual moves its surroundings."""
NEAREST_OF = 1500
"""Seen vertices among which the nearest is searched for each unseen one."""
SMOOTHING = 24
"""Rounds of averaging over neighbours that make a photo's soft colours: about 7 mm of a face."""


class HeadTensors:
    """What renders need of the ICT heads, on one device."""

    def __init__(self, heads: IctHeads, landmark_points: NDArray[np.floating], device: torch.device | str) -> None:
        """``landmark_points`` [1 + 100 + E, 478, 3]: mean and modes of the landmarks, metres."""

        def put(x: Any, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(x)).to(device, dtype)

        self.device = torch.device(device)
        v = heads.neutral
        self.neutral = put(v)
        self.modes = put(np.concatenate([heads.identity, heads.expression])).flatten(1)  # [100 + E, V 3]
        self.landmark_mean = put(landmark_points[0])
        self.landmark_modes = put(landmark_points[1:]).flatten(1)
        self.names = heads.expression_names
        self.faces = put(heads.faces, torch.int64)
        self.drawer = Drawer(self.faces)
        self.is_eye, self.is_pocket = put(heads.is_eye, torch.bool), put(heads.is_pocket, torch.bool)
        self.mirror = put(heads.mirror, torch.int64)
        face = (v[:, 2] > -0.03) & (v[:, 1] > -0.105) & (v[:, 1] < 0.085) & (np.abs(v[:, 0]) < 0.082) & ~heads.is_pocket
        self.in_face = put(face)
        skin = (v[:, 2] > 0.005) & (v[:, 1] > -0.09) & (v[:, 1] < 0.075) & ~heads.is_eye & ~heads.is_pocket
        eyes = (np.abs(np.abs(v[:, 0]) - 0.0315) < 0.02) & (np.abs(v[:, 1] - 0.035) < 0.014)
        mouth = (np.abs(v[:, 0]) < 0.03) & (np.abs(v[:, 1] + 0.035) < 0.014)
        self.skin = put(skin & ~eyes & ~mouth, torch.bool)
        distance, near = kd_tree(landmark_points[0]).query(v, k=8)
        weight = np.exp(-0.5 * (distance / RESIDUAL_SIGMA) ** 2)
        self.near = put(near, torch.int64)
        self.pull = put(weight / np.maximum(weight.sum(1, keepdims=True), 0.2))  # fades out away from the landmarks
        self.flesh = ~self.is_eye & ~self.is_pocket
        self.averaging = _averaging(self.faces, self.flesh)
        self.lids = [_lid(heads, side, skin & ~eyes & ~mouth, put) for side in ("L", "R")]

    def vertices(self, w: Tensor, e: Tensor) -> Tensor:
        """Vertices [B, V, 3] (metres) of weights w [B, 100], e [B, E]."""
        return self.neutral + (torch.cat([w, e], 1) @ self.modes).unflatten(1, (-1, 3))

    def landmarks(self, w: Tensor, e: Tensor) -> Tensor:
        """Landmarks [B, 478, 3] (metres) of weights w [B, 100], e [B, E]."""
        return self.landmark_mean + (torch.cat([w, e], 1) @ self.landmark_modes).unflatten(1, (-1, 3))


def _averaging(faces: Tensor, flesh: Tensor) -> Tensor:
    """Sparse [V, V]: the mean of a vertex of ``flesh`` [V] and its neighbours there; the others stay as they are."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = edges[flesh[edges].all(1)]
    own = torch.arange(len(flesh), device=faces.device)
    pairs = torch.cat([edges, edges.flip(1), own[:, None].expand(-1, 2)]).unique(dim=0)
    count = torch.bincount(pairs[:, 0], minlength=len(flesh))
    size = (len(flesh), len(flesh))
    share = 1 / count[pairs[:, 0]]
    return torch.sparse_coo_tensor(pairs.T, share, size, check_invariants=False).coalesce()


@dataclass(frozen=True)
class Lid:
    """An eye: its blink weight, the ``skin`` of the lids [M], those with lashes, and for each the skin around."""

    weight: int
    skin: Tensor
    lashes: Tensor  # [M] bool
    near: Tensor  # [M, 12] vertices around
    share: Tensor  # [M, 12]


def _lid(heads: IctHeads, side: str, skin: NDArray[np.bool_], put: Any) -> Lid:
    i = heads.expression_names.index("eyeBlink_" + side)
    shift = np.linalg.norm(heads.expression[i], axis=1)
    lid = (shift > 0.0015) & ~heads.is_eye & ~heads.is_pocket
    eye = heads.neutral[heads.is_eye & (heads.neutral[:, 0] * heads.neutral[lid, 0].mean() > 0)]
    near_eye = kd_tree(eye).query(heads.neutral)[0] < 0.002
    place = kd_tree(heads.neutral[lid]).query(heads.neutral)[0]
    around = np.flatnonzero(skin & ~lid & (place < 0.012))
    rows = np.flatnonzero(lid)
    distance, near = kd_tree(heads.neutral[around]).query(heads.neutral[rows], k=12)
    lashes = (near_eye & (shift > 0.004))[rows]
    return Lid(
        i, put(rows, torch.int64), put(lashes, torch.bool), put(around[near], torch.int64), put(1 / (distance + 0.004))
    )


@dataclass(frozen=True)
class TextureBank:
    """N photos on the V vertices of the heads; pixels are those of the stored pictures, centres at 0.5.

    Attributes:
        image: [N, 3, PICTURE, PICTURE] uint8.
        w, e: [N, 100], [N, E] weights of the fitted heads.
        K, R, t: [N, 3, 3], [N, 3, 3], [N, 3] camera and head pose.
        uv: [N, V, 2] pixel of the photo that each vertex shows (its own only where ``direct``).
        direct: [N, V] bool, seen in the photo.
        colour: [N, V, 3] colour of every vertex.
        soft: [N, V, 3] its skin without shading and smoothed over some 7 mm.
        shade: [N, V] estimated shading of the photo at the vertex, mean 1.
        light: [N, 9] spherical harmonics (camera frame) that explain it.
    """

    image: Tensor
    w: Tensor
    e: Tensor
    K: Tensor
    R: Tensor
    t: Tensor
    uv: Tensor
    direct: Tensor
    colour: Tensor
    soft: Tensor
    shade: Tensor
    light: Tensor

    def __len__(self) -> int:
        return len(self.image)

    @classmethod
    def read(
        cls, path: str | Path, folder: str | Path, heads: HeadTensors, *, heldout: bool, limit: int | None = None
    ) -> TextureBank:
        """Photos of one split that ``build_photo_fits.py`` fitted, ``limit`` of them at most.

        Raises InputError when the file of fits is missing or has none of the split.
        """
        if not Path(path).is_file():
            raise InputError(f"no {path}: it is written by training/build_photo_fits.py")
        data = np.load(path, allow_pickle=False)
        rows = np.flatnonzero(data["heldout"] == heldout)[:limit]
        if not len(rows):
            raise InputError(f"{path} has no {'held-out' if heldout else 'training'} photos")
        table = {k: data[k][rows] for k in ("w", "e", "K", "R", "t", "landmarks", "size", "photo")}
        with ThreadPoolExecutor() as pool:
            images = np.stack(list(pool.map(_picture, (Path(folder) / str(name) for name in table["photo"]))))
        table["scale"] = PICTURE / table["size"].max(1)
        del table["photo"]
        parts: list[TextureBank] = []
        for k in range(0, len(rows), 16):
            part = {n: torch.as_tensor(v[k : k + 16]).to(heads.device, torch.float32) for n, v in table.items()}
            parts.append(lay(heads, torch.as_tensor(images[k : k + 16]).to(heads.device), part))
        return cls(*(torch.cat([getattr(p, f) for p in parts]) for f in cls.__dataclass_fields__))


def _picture(path: Path) -> NDArray[np.uint8]:
    """The photo [3, PICTURE, PICTURE]; its longer side fills the square, the rest repeats the edge."""
    image = Image.open(path).convert("RGB")
    scale = PICTURE / max(image.size)
    w, h = (max(1, round(s * scale)) for s in image.size)
    pixels = np.asarray(image.resize((w, h), Image.Resampling.LANCZOS))
    return np.pad(pixels, ((0, PICTURE - h), (0, PICTURE - w), (0, 0)), mode="edge").transpose(2, 0, 1)


def lay(heads: HeadTensors, image: Tensor, fit: dict[str, Tensor]) -> TextureBank:
    """Photos uint8 [B, 3, PICTURE, PICTURE] on their fitted heads (w, e, K, R, t, landmarks, scale)."""
    w, e, R, t = (fit[k] for k in ("w", "e", "R", "t"))
    K = fit["K"] * fit["scale"][:, None, None]
    K[:, 2, 2] = 1
    camera = heads.vertices(w, e) @ R.mT + t[:, None]
    own = pixels_of(heads.landmarks(w, e) @ R.mT + t[:, None], K)
    residual = fit["landmarks"][..., :2] * fit["scale"][:, None, None] - own
    uv = pixels_of(camera, K) + (heads.pull[..., None] * residual[:, heads.near]).sum(2)
    normals = heads.drawer.normals(camera)
    facing = -(normals * F.normalize(camera, dim=-1)).sum(-1)
    depth = heads.drawer.rasterise(camera, K, (PICTURE, PICTURE)).depth
    index = uv.long().clamp(0, PICTURE - 1)
    there = depth.flatten(1).gather(1, index[..., 1] * PICTURE + index[..., 0])
    inside = ((uv >= 1) & (uv < PICTURE - 1)).all(-1)
    direct = inside & (facing > 0.2) & (camera[..., 2] < there + 0.004) & ~heads.is_pocket
    colour = sample_pixels(image.float() / 255, uv)
    source = _sources(heads, direct)
    seen = heads.skin & direct
    light = _fit_light(normals, colour.mean(-1), seen)
    raw = (harmonics(normals) @ light[..., None])[..., 0]
    mean = (raw * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp_min(1)
    shade = (raw / mean.clamp_min(1e-3)).clamp(0.4, 1.8)
    shade = shade.gather(1, source)
    colour = colour.gather(1, source[..., None].expand(-1, -1, 3))
    inner = colour[:, heads.skin].mean(1, keepdim=True) * colour.new_tensor([0.35, 0.18, 0.16])
    colour = torch.where(heads.is_pocket[:, None], inner, colour)
    soft = (colour / shade[..., None]).transpose(0, 1).flatten(1)
    for _ in range(SMOOTHING):
        soft = heads.averaging @ soft
    soft = soft.unflatten(1, (-1, 3)).transpose(0, 1)
    return TextureBank(image, w, e, K, R, t, uv, direct, colour.half(), soft.half(), shade.half(), light)


def _sources(heads: HeadTensors, direct: Tensor) -> Tensor:
    """For each vertex [B, V] the one whose colour it takes: itself, its mirror image, or the nearest one seen."""
    v = direct.shape[1]
    every = torch.arange(v, device=direct.device)
    known = direct | direct[:, heads.mirror]
    own = torch.where(direct, every, heads.mirror)
    out = []
    for k in range(len(direct)):
        seen = known[k].nonzero()[:, 0]
        if not len(seen):
            out.append(every)
            continue
        some = seen[:: max(1, len(seen) // NEAREST_OF)]
        nearest = some[torch.cdist(heads.neutral, heads.neutral[some]).argmin(1)]
        out.append(own[k][torch.where(known[k], every, nearest)])
    return torch.stack(out)


def _fit_light(normals: Tensor, luminance: Tensor, seen: Tensor) -> Tensor:
    """Harmonics [B, 9] with mean shading 1 over the skin points ``seen`` [B, V]."""
    basis = harmonics(normals)
    weight = seen.float()
    count = weight.sum(1).clamp_min(1)
    mean = (luminance * weight).sum(1) / count
    spread = ((luminance - mean[:, None]).square() * weight).sum(1).div(count).sqrt()
    weight = weight * ((luminance - mean[:, None]).abs() < 2.5 * spread[:, None] + 1e-6)
    ridge = torch.diag(basis.new_tensor([1e-4, 1, 1, 1, 4, 4, 4, 4, 4])) * 0.02 * count[:, None, None]
    weighted = basis * weight[..., None]
    a = torch.linalg.solve(weighted.mT @ basis + ridge, (weighted.mT @ luminance[..., None])[..., 0])
    level = (weighted @ a[..., None])[..., 0].sum(1) / weight.sum(1).clamp_min(1)
    return a / level.clamp_min(1e-3)[:, None]


def harmonics(n: Tensor) -> Tensor:
    """Real spherical harmonics to second order [..., 9] (unnormalised polynomials) of unit vectors [..., 3]."""
    x, y, z = n.unbind(-1)
    return torch.stack([torch.ones_like(x), x, y, z, x * y, y * z, x * z, x * x - y * y, 3 * z * z - 1], -1)


def pixels_of(camera: Tensor, K: Tensor) -> Tensor:
    """Pixels [B, P, 2] of camera-space points [B, P, 3] under K [B, 3, 3]."""
    return camera[..., :2] / camera[..., 2:].clamp_min(1e-3) * K[:, None, [0, 1], [0, 1]] + K[:, None, :2, 2]


def sample_pixels(image: Tensor, uv: Tensor) -> Tensor:
    """Bilinear colours [B, P, C] of images [B, C, H, W] at pixels uv [B, P, 2] (centres at 0.5), edges replicated."""
    size = uv.new_tensor([image.shape[3], image.shape[2]])
    grid = (uv / size * 2 - 1)[:, :, None]
    out = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return out[..., 0].mT
