"""Photo-like training samples with exact geometry, drawn batch by batch on the device that trains.

Random heads in real skin, light and surroundings (``texture_bank``) or in paint and clay, under light that knows their
geometry (``lighting``), seen by cameras as people use them and looked at by the landmark network itself. Nothing is
stored: no picture comes twice.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nphm_track.conventions import CHIN, EYE_CORNERS_478, OUTER_EYE_CORNERS
from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.faces.roi import CROP_SIZE, ROI_SCALE, crop_points_to_frame
from nphm_track.rendering.batched import BatchFragments
from nphm_track.training.degrade import degrade_batch
from nphm_track.training.face_batch import FaceBatch, Placed, Scene, View
from nphm_track.training.ict import load_ict, sample_expression
from nphm_track.training.lighting import ambient_occlusion, harmonic_light, lamp_light, random_harmonics
from nphm_track.training.paint_batch import Painter
from nphm_track.training.photo_fit import LANDMARKS, landmark_basis
from nphm_track.training.renders import Renders
from nphm_track.training.rng import Rng
from nphm_track.training.scenery import Scenery
from nphm_track.training.texture_bank import HeadTensors, TextureBank, pixels_of, sample_pixels

FRAME = 320.0
"""Pixels of the longer side of the imagined frame that a crop is cut from."""
MAP_SIZE = 128
OTHERS = 6
"""People whose soft colours are mixed."""
EYE_DEPTH = 0.004
"""Metres that eyeballs are drawn behind their place: those of random heads stand out of closed lids."""
EXPRESSIONS = 12_000


class FaceStream:
    """Draws batches; the same seed gives the same batch on the same device.

    ``rng``: where chance comes from, for streams of another kind.
    """

    rng: type[Rng] = Rng

    def __init__(
        self, heads: HeadTensors, bank: TextureBank, painter: Painter, landmarker: FaceLandmarker, renders: Renders
    ) -> None:
        self.heads, self.bank, self.painter, self.landmarker, self.renders = heads, bank, painter, landmarker, renders
        self.device = heads.device
        neutral = heads.neutral
        self.occlusion = ambient_occlusion(neutral, heads.drawer.normals(neutral[None])[0])
        rng = np.random.default_rng(0)
        self.expressions = torch.from_numpy(sample_expression(rng, EXPRESSIONS, heads.names)).to(self.device)
        self.scenery = Scenery(bank.image, renders)
        self.population = bank.w.mean(0)

    @classmethod
    def open(
        cls, ict: str | Path, photos: str | Path, fits: str | Path, *, heldout: bool = False,
        device: torch.device | str = "cpu", limit: int | None = None, landmarks: str = LANDMARKS,
        renders: Renders | None = None,
    ) -> Self:  # fmt: skip
        """From the ICT heads' folder, the photos' folder and the file of ``training/build_photo_fits.py``.

        ``limit`` photos of the split at most. Raises InputError when a file is missing.
        """
        heads = load_ict(ict)
        basis = landmark_basis(heads, landmarks)
        points = torch.cat([basis.mean[None], basis.identity, basis.expression]).numpy()
        rigid = json.loads((Path(ict) / "vertex_indices.json").read_text())["idx_to_landmark_verts"]
        tensors = HeadTensors(heads, points, device)
        bank = TextureBank.read(fits, photos, tensors, heldout=heldout, limit=limit)
        painter = Painter(heads, np.searchsorted(heads.source, rigid), device)
        return cls(tensors, bank, painter, FaceLandmarker.from_pretrained(device=device), renders or Renders())

    def with_photos(self, bank: TextureBank) -> Self:
        """The same stream with other people's photos."""
        out = copy.copy(self)
        out.bank, out.scenery = bank, Scenery(bank.image, self.renders)
        return out

    @torch.no_grad()
    def draw(self, seed: int, count: int) -> FaceBatch:
        """A batch of ``count`` samples."""
        s = self.scene(self.rng(seed, self.device), count)
        points, normal_maps, mask = self._targets(s.at, s.shown, s.fragments.depth)
        p, view = s.placed, s.placed.view
        seen = self._observe(s.crop, p.roi, p.w, p.e, view)
        return FaceBatch(s.crop, points, normal_maps, mask, p.w, p.e, view.K, view.R, view.t, view.size, p.roi, **seen)

    def placed(self, rng: Rng, count: int) -> Placed:
        """``count`` heads before their cameras, without pictures."""
        heads = self.heads
        row = rng.below(len(self.bank), count)
        w, e = self._codes(rng, row)
        vertices = self._bumps(rng, heads.vertices(w, e))
        kind = rng.uniform(count)
        painted = kind < self.renders.painted
        follow = ~painted & (kind < self.renders.painted + self.renders.follow)
        view = self._view(rng, row, follow)
        roi = self._roi(rng, w, e, view)
        K, turn = roi_cameras(view.K, roi, CROP_SIZE)
        R, t = turn @ view.R, (turn @ view.t[..., None])[..., 0]
        camera = vertices @ R.mT + t[:, None]
        return Placed(row, painted, follow, w, e, vertices, camera, K, R, t, view, roi)

    @torch.no_grad()
    def scene(self, rng: Rng, count: int) -> Scene:
        """``count`` heads and their pictures."""
        heads, bank, p = self.heads, self.bank, self.placed(rng, count)
        fragments = rasterise_heads(heads, p.camera, p.K)
        normals = heads.drawer.normals(p.vertices)
        image, at = self._shade(rng, p, normals @ p.R.mT, normals, fragments)
        covered = fragments.face_id >= 0
        direct = covered & (at["direct"] > 0.999) & ~p.painted[:, None, None]
        surroundings = self.scenery.backdrop(rng, count, CROP_SIZE)
        photo = (bank.K[p.row], bank.R[p.row], bank.t[p.row])
        place = self.scenery.follow(at["uv"], direct, (p.K, p.R, p.t), photo).flatten(1, 2)
        own = sample_pixels(bank.image[p.row].float() / 255, place).mT.unflatten(2, (CROP_SIZE, CROP_SIZE))
        surroundings = torch.where(p.follow[:, None, None, None], own, surroundings)
        cut = (at["inside"] < 0) & (rng.chance(self.renders.cut_out, count) & ~p.follow)[:, None, None]
        image = torch.where((covered & ~cut)[:, None], image, surroundings)
        image, hidden = self.scenery.occlude(rng, image)
        image = self.scenery.glasses(rng, image, pixels_of(p.landmarks(heads), p.K))
        return Scene(p, fragments, at, covered & ~cut & ~hidden, degrade_batch(rng, image))

    def _codes(self, rng: Rng, row: Tensor) -> tuple[Tensor, Tensor]:
        """Identities of the scans' spread about the people in the photos, some around the photo's own; expressions
        likewise."""
        b = len(row)
        own_e = self.bank.e[row].clamp(0, 1)
        own_w = self.bank.w[row] - self.population  # about the mean
        w = self.renders.spread * rng.normal(b, own_w.shape[1]).clamp(-3, 3)
        choice = rng.uniform(b, 1)
        some, few = self.renders.near_photo
        w = torch.where(choice < some, own_w + 0.8 * w, torch.where(choice < some + few, own_w + 0.3 * w, w))
        w = w + self.population  # people are not ICT's mean head
        e = self.expressions[rng.below(len(self.expressions), b)]
        choice = rng.uniform(b, 1)
        mixed = (own_e * rng.uniform(b, 1) + e * rng.uniform(b, 1)).clamp(0, 1)
        own, both = self.renders.own_expression
        return w, torch.where(choice < own, own_e, torch.where(choice < own + both, mixed, e))

    def _bumps(self, rng: Rng, vertices: Tensor) -> Tensor:
        """Smooth dents and swellings that no ICT head has, on a part of the samples."""
        b, n = len(vertices), 10
        heads = self.heads
        face = heads.in_face.nonzero()[:, 0]
        centre = heads.neutral[face[rng.below(len(face), b, n)]]  # [B, n, 3]
        sigma = 0.005 * 6 ** rng.uniform(b, n)
        height = 0.09 * sigma * rng.normal(b, n) * rng.chance(self.renders.dented, b, 1)
        near = torch.exp(-0.5 * (torch.cdist(heads.neutral.expand(b, -1, -1), centre) / sigma[:, None]) ** 2)
        lift = (near @ height[..., None]) * (~heads.is_eye & ~heads.is_pocket)[:, None]
        return vertices + lift * heads.drawer.normals(vertices)

    def _view(self, rng: Rng, row: Tensor, follow: Tensor) -> View:
        """Cameras around faces in a frame of some shape; what follows a photo turns little away from it."""
        b, r = len(row), self.renders
        wide = rng.chance(r.wide, b)
        yaw = rng.uniform(b, low=-1, high=1) * torch.where(follow, 16.0, torch.where(wide, r.yaw[1], r.yaw[0]))
        pitch = rng.uniform(b, low=-1, high=1) * torch.where(follow, 11.0, torch.where(wide, r.pitch[1], r.pitch[0]))
        roll = rng.uniform(b, low=-r.roll, high=r.roll)
        turn = rotation(2, roll) @ rotation(0, pitch) @ rotation(1, yaw)
        flip = torch.diag(turn.new_tensor([1.0, -1.0, -1.0]))
        R = flip @ turn
        R = torch.where(follow[:, None, None], R @ flip @ self.bank.R[row], R)
        size = torch.full((b, 2), FRAME, device=self.device)
        size[:, 1] /= torch.where(rng.chance(0.5, b), 1.0, rng.uniform(b, low=0.75, high=1.8))
        size = FRAME * size / size.amax(1, keepdim=True)
        angle = rng.uniform(b, low=r.field_of_view[0], high=r.field_of_view[1])
        focal = FRAME / 2 / torch.tan(torch.deg2rad(angle) / 2)
        fill = rng.uniform(b, low=r.fill[0], high=r.fill[1])
        distance = focal * 0.19 / (FRAME * fill) + 0.07
        room = (0.5 - 0.5 * fill)[:, None] * size / FRAME  # the face stays in the frame
        place = rng.uniform(b, 2, low=-1, high=1) ** 3 * room * 0.8
        t = torch.cat([place * FRAME / focal[:, None] * distance[:, None], distance[:, None]], 1)
        K = torch.zeros(b, 3, 3, device=self.device)
        K[:, 0, 0] = K[:, 1, 1] = focal
        K[:, :2, 2] = size / 2
        K[:, 2, 2] = 1
        return View(K, R, t, size)

    def _roi(self, rng: Rng, w: Tensor, e: Tensor, view: View) -> Tensor:
        """The region [B, 5] that the follower would look at, a little off as it is in clips."""
        points = pixels_of(self.heads.landmarks(w, e) @ view.R.mT + view.t[:, None], view.K)
        right, _, _, left = EYE_CORNERS_478
        low, high = points.amin(1), points.amax(1)
        side = ROI_SCALE * (high - low).amax(1) * (1 + 0.035 * rng.normal(len(w)))
        centre = (low + high) / 2 + 0.014 * side[:, None] * rng.normal(len(w), 2)
        across = points[:, left] - points[:, right]
        angle = torch.atan2(across[:, 1], across[:, 0]) + 0.035 * rng.normal(len(w))
        return torch.stack([centre[:, 0], centre[:, 1], side, side, angle], 1)

    def _shade(
        self, rng: Rng, p: Placed, camera_normals: Tensor, normals: Tensor, fragments: BatchFragments
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The lit heads [B, 3, H, W] and what their pixels show."""
        bank, heads, row, painted = self.bank, self.heads, p.row, p.painted
        b, r = len(row), self.renders
        unlit = r.smooth_light + r.own_light
        colour, shade, direct = bank.colour[row].float(), bank.shade[row].float(), bank.direct[row]
        colour, shade, direct = self._close_lids(rng, colour, shade, direct, bank.e[row], p.e)
        colour = torch.where(painted[:, None, None], self.painter(rng, b), colour)
        shade = torch.where(painted[:, None], 1.0, shade)
        smooth = rng.chance(r.smooth_light / max(unlit, 1e-9), b)[:, None]
        light = torch.where(smooth, random_harmonics(rng, b), bank.light[row])
        irradiance, shine = lamp_light(rng, p.camera, camera_normals, self.occlusion)
        lamps = (rng.uniform(b) >= unlit) | painted
        flat = rng.chance(r.even_light, b)[:, None, None]
        irradiance, shine = torch.where(flat, 1.0, irradiance), torch.where(flat, 0.0, shine)
        soft = harmonic_light(camera_normals, light)[..., None].expand_as(irradiance)
        exposure = rng.uniform(b, 1, 1, low=0.6, high=1.25) / irradiance[:, heads.skin].mean((1, 2), keepdim=True)
        exposure = exposure.clamp(0.5, 3)  # cameras expose for the face
        ratio = torch.where(lamps[:, None, None], irradiance * exposure, soft) / shade[..., None]
        ratio = ratio * torch.where((painted | (~lamps & ~smooth[:, 0]))[:, None, None], 1.0, self._mix(rng, row))
        shine = torch.where(lamps[:, None, None], shine * exposure, 0.0)
        inside = _cut_out(rng, p.vertices)
        parts = {
            "uv": bank.uv[row], "colour": colour, "ratio": ratio, "shine": shine, "direct": direct[..., None].float(),
            "inside": inside[..., None], "points": p.vertices, "normals": normals,
            "in_face": heads.in_face[:, None].expand(b, -1, 1),
        }  # fmt: skip
        drawn = heads.drawer.interpolate(fragments, torch.cat(list(parts.values()), -1))
        at = dict(zip(parts, drawn.split([x.shape[-1] for x in parts.values()], -1), strict=True))
        at = {k: v[..., 0] if v.shape[-1] == 1 else v for k, v in at.items()}
        shown = sample_pixels(bank.image[row].float() / 255, at["uv"].flatten(1, 2)).unflatten(1, at["uv"].shape[1:3])
        from_photo = (at["direct"] > 0.999) & ~painted[:, None, None]
        albedo = torch.where(from_photo[..., None], shown, at["colour"])
        image = albedo * at["ratio"].clamp(0.05, 3.0) + at["shine"]
        return image.permute(0, 3, 1, 2), at

    def _mix(self, rng: Rng, row: Tensor) -> Tensor:
        """Factor [B, V, 3] that gives photos the soft colours of several people; what is fine stays their own."""
        b, bank = len(row), self.bank
        weight = torch.softmax(rng.normal(b, OTHERS), 1)
        own = rng.uniform(b, 1, 1, high=0.3)
        mine = bank.soft[row].float()
        others = torch.einsum("bk,bkvc->bvc", weight, bank.soft[rng.below(len(bank), b, OTHERS)].float())
        baked = self.occlusion.clamp_min(0.4) ** rng.uniform(b, 1)  # everybody's hollows are dark in everybody's photo
        mixture = (own * mine + (1 - own) * others / baked[..., None]) / mine.clamp_min(0.02)
        mixed = rng.chance(self.renders.mixed, b)[:, None, None] & self.heads.flesh[:, None]
        return torch.where(mixed, mixture.clamp(0.3, 3), 1.0)

    def _close_lids(
        self, rng: Rng, colour: Tensor, shade: Tensor, direct: Tensor, e_photo: Tensor, e: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Skin on those lids that expression e [B, E] closes and the photo shows open: an open eye hides its lid."""
        colour, shade, direct = colour.clone(), shade.clone(), direct.clone()
        for lid in self.heads.lids:
            closing = (e[:, lid.weight] - e_photo[:, lid.weight] > 0.25)[:, None]
            weight = lid.share * direct[:, lid.near] + 1e-6
            weight = weight / weight.sum(-1, keepdim=True)
            skin = (colour[:, lid.near] * weight[..., None]).sum(2) * rng.uniform(len(e), 1, 1, low=0.8, high=1.05)
            lashes = rng.uniform(len(e), 1, 1, low=0.35, high=0.75)
            skin = torch.where(lid.lashes[:, None], skin * lashes, skin)
            colour[:, lid.skin] = torch.where(closing[..., None], skin, colour[:, lid.skin])
            shade[:, lid.skin] = torch.where(closing, (shade[:, lid.near] * weight).sum(2), shade[:, lid.skin])
            direct[:, lid.skin] &= ~closing
        return colour, shade, direct

    def _targets(self, at: dict[str, Tensor], shown: Tensor, depth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of half the crop's size: means of four pixels of one surface."""
        whole = (at["in_face"] > 0.5) & shown
        x = torch.cat([at["points"], at["normals"], whole[..., None].float()], -1).permute(0, 3, 1, 2)
        mean = F.avg_pool2d(x, CROP_SIZE // MAP_SIZE)
        depth = depth[:, None]
        spread = F.max_pool2d(depth, 2) + F.max_pool2d(-depth, 2)
        mask = (mean[:, 6] > 0.99) & (spread[:, 0] < 0.01)
        return mean[:, :3], F.normalize(mean[:, 3:6], dim=1), mask.float()

    def _observe(self, crop: Tensor, roi: Tensor, w: Tensor, e: Tensor, view: View) -> dict[str, Any]:
        """What the landmark network makes of the crops, and whether it found the faces."""
        from nphm_track.geometry.networks import TRUNK

        out = self.landmarker.landmark_net(crop.contiguous(memory_format=torch.channels_last), True)
        landmarks = crop_points_to_frame(out["landmarks"], roi)
        true = pixels_of(self.heads.landmarks(w, e) @ view.R.mT + view.t[:, None], view.K)
        some = [*OUTER_EYE_CORNERS, CHIN]
        error = (landmarks[:, some, :2] - true[:, some]).norm(dim=-1).amax(1)
        valid = (torch.sigmoid(out["presence"]) > 0.7) & (error < 0.08 * roi[:, 2])
        scores = self.landmarker.blendshape_net(landmarks[..., :2] - roi[:, None, :2])
        return {
            "landmarks": landmarks, "crop_landmarks": out["landmarks"], "scores": scores, "valid": valid.float(),
            "features": {s: out[f"features_{s}"].contiguous() for s in TRUNK},
        }  # fmt: skip


def rasterise_heads(heads: HeadTensors, camera: Tensor, K: Tensor) -> BatchFragments:
    """What crops show of heads [B, V, 3] (camera space). Closed lids hide the eye whatever the identity: eyeballs are
    drawn ``EYE_DEPTH`` behind their place, and the lining of lids, which turns its back, not at all."""
    behind = torch.where(heads.is_eye[:, None], 1 + EYE_DEPTH / camera[..., 2:], 1.0)
    return heads.drawer.rasterise(camera * behind, K, (CROP_SIZE, CROP_SIZE), cull=True)


def _cut_out(rng: Rng, vertices: Tensor) -> Tensor:
    """Signed distance [B, V] (metres) to the outline of a face cut out as scans are: a tilted rounded box."""
    b = len(vertices)
    tilt = rng.normal(b, 1) * 0.12
    x, y = vertices[..., 0] + tilt * vertices[..., 1], vertices[..., 1] - tilt * vertices[..., 0]
    top, bottom = rng.uniform(b, 1, low=0.055, high=0.1), rng.uniform(b, 1, low=0.075, high=0.12)
    side, back = rng.uniform(b, 1, low=0.058, high=0.085), rng.uniform(b, 1, low=-0.03, high=0.03)
    power = rng.uniform(b, 1, low=2.5, high=8)
    box = ((x / side).abs() ** power + (y / torch.where(y > 0, top, bottom)).abs() ** power) ** (1 / power)
    return torch.minimum(side * (1 - box), vertices[..., 2] - back)


def rotation(axis: int, degrees: Tensor) -> Tensor:
    """Rotations [B, 3, 3] about a coordinate axis."""
    angle = torch.deg2rad(degrees)
    c, s = angle.cos(), angle.sin()
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    R = torch.eye(3, device=degrees.device).repeat(len(degrees), 1, 1)
    R[:, i, i] = R[:, j, j] = c
    R[:, i, j], R[:, j, i] = -s, s
    return R


def roi_cameras(K: Tensor, roi: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Intrinsics [B, 3, 3] and image-plane roll [B, 3, 3]: ``K (roll x_cam)`` are pixels of the rois' crops."""
    cos, sin = roi[:, 4].cos(), roi[:, 4].sin()
    turn = torch.zeros_like(K)
    turn[:, 0, 0] = turn[:, 1, 1] = cos
    turn[:, 0, 1], turn[:, 1, 0] = sin, -sin
    turn[:, 2, 2] = 1
    scale = size / roi[:, 2]
    out = torch.zeros_like(turn)
    out[:, 0, 0], out[:, 1, 1] = K[:, 0, 0] * scale, K[:, 1, 1] * scale
    offset = (turn[:, :2, :2] @ (K[:, :2, 2] - roi[:, :2])[..., None])[..., 0]
    out[:, :2, 2] = offset * scale[:, None] + size / 2
    out[:, 2, 2] = 1
    return out, turn
