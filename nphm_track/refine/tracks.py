"""Points of the skin followed from frame to frame by what they look like: parallax tells the shape.

Around each point a patch of skin is cut out of every frame, straightened by the frame's own head, and shifted until it
looks like the others. Seen from several sides, a head that is too flat shifts its patches the wrong way, whatever the
networks believe. A point may slide on the skin, the same way in all frames: what a patch shows has no name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from torch import Tensor

from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.faces.roi import frame_to_crop_matrix
from nphm_track.geometry.landmark_mesh import N_MESH
from nphm_track.refine.codes import State
from nphm_track.refine.landmarks import LIDS, LIPS, POINTS

SKIN = tuple(p for p in range(N_MESH) if p not in LIDS and p not in LIPS)
"""Points that can be followed: lids and lips deform within a patch."""
NEIGHBOURS = 14
WITHIN = 0.01
"""Metres beyond which a neighbour tells less of a point's skin."""
SIDE = 13
"""Samples of a patch's side."""
SPACING = (0.0015, 0.0008)
"""Metres between samples, coarse and fine."""
BANDS = ((1.0, 3.0), (0.3, 1.3))
"""Sigmas (pixels of the crop) between which details are compared, coarse and fine."""
STEPS = 6
FARTHEST = 0.006
"""Metres a patch is searched around its point."""
LEAST_FACING = 0.35
"""Cosine between skin and view below which a patch is not used."""
LEAST_LIKENESS = 0.8
"""Correlation of a patch with the others of its point below which it is not believed."""
CORRELATED = 20.0
"""Samples of a patch that err together."""
FLOOR = 0.0003
"""Metres; no patch is placed better than that."""
MOTION_ERROR = 0.2
"""Share of a point's motion by expressions that a head may have wrong."""


@dataclass(frozen=True)
class Tracks:
    """Where N points are seen in B frames.

    Attributes:
        index: [N] which of the landmarks that a head is asked for (``Follower.marks``) are followed.
        pixels: [B, N, 2] undistorted px of the frame.
        whiten: [B, N, 2, 2] from a distance in pixels to standard deviations; 0 where a point is not seen.
        slide: [B, N, 2, 2] the same from a slide on the skin (metres).
    """

    index: Tensor
    pixels: Tensor
    whiten: Tensor
    slide: Tensor


class Follower:
    """Finds some points of the skin in frames.

    Attributes:
        points: the N landmarks followed, spread over the face.
        marks: the M landmarks to be known of a head: the compared ones first, then those that are only followed.
    """

    def __init__(self, mean: Tensor, count: int) -> None:
        """``mean`` [478, 3]: landmarks of the mean head, metres; ``count`` points at most are followed."""
        at = mean[:N_MESH].double().cpu()
        self.points = _spread(at, count)
        self.marks = POINTS + tuple(p for p in self.points if p not in POINTS)
        self.index = torch.tensor([self.marks.index(p) for p in self.points])
        known = at[list(self.marks)]
        own = at[list(self.points)]
        self.near = torch.cdist(own, known).topk(NEIGHBOURS + 1, largest=False).indices[:, 1:]
        skin = _on_the_skin(known[self.near] - own[:, None], own - at.mean(0))
        weight = (1 + (skin.norm(dim=-1, keepdim=True) / WITHIN).square()).rsqrt()
        self.solve = (torch.linalg.pinv(weight * _bent(skin)) * weight.mT).mT.to(mean.device)  # [N, k, 5]

    def straighten(self, pixels: Tensor) -> Tensor:
        """Maps [B, N, 2, 5] from ``_bent`` places on the skin to pixels, given all marks' pixels [B, M, 2].

        Quadratic: on plane patches, what a turned cheek or nose bends is taken for a shift.
        """
        offsets = pixels[:, self.near] - pixels[:, self.index, None]  # [B, N, k, 2]
        return torch.einsum("bnki,nkj->bnij", offsets, self.solve)

    def __call__(
        self,
        crops: Tensor,
        rois: Tensor,
        camera: Intrinsics,
        state: State,
        marks: Tensor,
        confidence: Tensor,
    ) -> Tracks:
        """Follow the points through B frames.

        Args:
            crops: [B, 3, m, m] 0..1 and rois: [B, 5] where they lie in the frame.
            camera: with its distortion; its focal length is the state's.
            marks: [B, M, 3] of the state's head, metres, head space.
            confidence: [B] of the frames.
        """
        turned = marks.double() @ state.R.mT + state.t[:, None]
        projected = turned @ state.K.mT
        pixels = projected[..., :2] / projected[..., 2:]
        at, bent = pixels[:, self.index], self.straighten(pixels)
        affine = bent[..., :2]
        facing = -torch.linalg.det(affine) * (turned[:, self.index, 2] / state.K[0, 0]).square()
        lens = replace(camera, K=state.K.cpu().numpy()).project(turned[:, self.index].cpu().numpy())
        to_crop = torch.from_numpy(frame_to_crop_matrix(rois.cpu().numpy(), crops.shape[-1])).to(at)
        bands = _bands(crops.mean(1, keepdim=True).to(at.device))
        patches = _Patches(bands, torch.from_numpy(lens).to(at), bent, to_crop)
        seen = (facing > LEAST_FACING) & (confidence > 0)[:, None] & patches.inside()
        delta, covariance, likeness = _register(patches, seen, facing, confidence)
        own = marks[:, self.index].double()
        where = seen.to(own)[..., None]
        moved = (own - (own * where).sum(0) / where.sum(0).clamp_min(1)).norm(dim=-1)
        covariance = covariance + (MOTION_ERROR * moved).square()[..., None, None] * torch.eye(2).to(own)
        good = seen & (likeness > LEAST_LIKENESS) & (delta.norm(dim=-1) < 0.95 * FARTHEST)
        good &= good.sum(0) > 1
        identity = torch.eye(2).to(at)
        slide = torch.linalg.cholesky(torch.linalg.inv(covariance)).mT * good[..., None, None]
        back = torch.linalg.inv(torch.where(good[..., None, None], affine, identity))
        found = at + (bent @ _bent(delta)[..., None])[..., 0]
        return Tracks(self.index, torch.where(good[..., None], found, 0.0), slide @ back, slide)


def _on_the_skin(offsets: Tensor, outward: Tensor) -> Tensor:
    """Places [N, k, 2] (metres right and up) of ``offsets`` [N, k, 3] from a point, in the plane next to them all;
    ``outward`` [N, 3] tells its sides apart."""
    normal = torch.linalg.svd(offsets, full_matrices=False)[2][:, 2]
    normal = normal * torch.sign((normal * outward).sum(1, keepdim=True))
    right = F.normalize(torch.linalg.cross(normal.new_tensor([[0.0, 1.0, 0.0]]).expand_as(normal), normal), dim=1)
    up = torch.linalg.cross(normal, right)
    return offsets @ torch.stack([right, up], -1)


def _bent(skin: Tensor) -> Tensor:
    """[..., 5] places on the skin [..., 2] and their products."""
    right, up = skin[..., :1], skin[..., 1:]
    return torch.cat([skin, right * right, right * up, up * up], -1)


def _spread(at: Tensor, count: int) -> tuple[int, ...]:
    """At most ``count`` points of the skin, each as far from the others as can be."""
    skin = at[list(SKIN)]
    if count >= len(SKIN):
        return SKIN
    chosen = [int(skin[:, 2].argmax())]
    nearest = torch.full((len(skin),), torch.inf, dtype=at.dtype)
    while len(chosen) < count:
        nearest = torch.minimum(nearest, (skin - skin[chosen[-1]]).norm(dim=1))
        chosen.append(int(nearest.argmax()))
    return tuple(SKIN[k] for k in sorted(chosen))


def _register(patches: _Patches, seen: Tensor, facing: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shifts [B, N, 2] (metres on the skin) that make the patches of a point alike, their covariance [B, N, 2, 2] and
    likeness [B, N]; ``seen`` and ``facing`` [B, N], ``confidence`` [B].

    Patches are first compared with the frame that shows the point best, then with the mean of those found alike.
    """
    delta = patches.at.new_zeros(patches.at.shape)
    best = torch.where(seen, facing * confidence[:, None], -1.0).argmax(0)
    target = patches.cut(delta, 0)[best, torch.arange(len(best), device=best.device)]
    delta, _, likeness = _shifted(patches, delta, target, 0)
    weight = (seen & (likeness > LEAST_LIKENESS)) * facing.clamp_min(0)
    target = _normalised((patches.cut(delta, 1) * weight[..., None]).sum(0))
    return _shifted(patches, delta, target, 1)


def _shifted(patches: _Patches, delta: Tensor, target: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
    """``delta`` improved until the patches look like ``target`` [N, SIDE^2], its covariance [B, N, 2, 2] and the
    correlation [B, N]; the inverse compositional scheme of Baker and Matthews (IJCV 2004)."""
    gradient, solve = _gradient(target, SPACING[level])
    for _ in range(STEPS):
        error = target - patches.cut(delta, level)
        step = (solve @ (gradient.mT @ error[..., None]))[..., 0]
        step = step * (2 * SPACING[level] / step.norm(dim=-1, keepdim=True).clamp_min(1e-9)).clamp_max(1)
        delta = delta + step
        delta = delta * (FARTHEST / delta.norm(dim=-1, keepdim=True).clamp_min(FARTHEST))
    found = patches.cut(delta, level)
    noise = CORRELATED * (target - found).square().mean(-1)
    covariance = noise[..., None, None] * solve + FLOOR**2 * torch.eye(2).to(delta)
    return delta, covariance, (target * found).mean(-1)


@dataclass(frozen=True)
class _Patches:
    """Straightened patches around points of the frames."""

    bands: list[Tensor]  # [B, 1, n, n] each
    at: Tensor  # [B, N, 2] px of the frame, as the lens shows them
    bent: Tensor  # [B, N, 2, 5]
    to_crop: Tensor  # [B, 3, 3]

    def inside(self) -> Tensor:
        """[B, N] whether a point lies well inside the crop."""
        n = self.bands[0].shape[-1]
        place = self._crop(self.at)
        return ((place > 0.04 * n) & (place < 0.96 * n)).all(-1)

    def cut(self, delta: Tensor, level: int) -> Tensor:
        """Patches [B, N, SIDE^2], mean 0 and norm per sample 1, shifted by ``delta`` [B, N, 2] (metres on the skin)."""
        line = (torch.arange(SIDE).to(delta) - (SIDE - 1) / 2) * SPACING[level]
        grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).view(-1, 2)
        places = self.at[:, :, None] + _bent(delta[:, :, None] + grid) @ self.bent.mT
        where = self._crop(places) / self.bands[0].shape[-1] * 2 - 1
        found = F.grid_sample(self.bands[level], where.float(), align_corners=False, padding_mode="border")
        return _normalised(found[:, 0].to(delta))

    def _crop(self, pixels: Tensor) -> Tensor:
        return (pixels.flatten(1, -2) @ self.to_crop[:, :2, :2].mT + self.to_crop[:, None, :2, 2]).view_as(pixels)


def _bands(grey: Tensor) -> list[Tensor]:
    """Pictures [B, 1, n, n] without what changes slowly: light does, and it does not move with the skin."""
    return [_blurred(grey, fine) - _blurred(grey, coarse) for fine, coarse in BANDS]


def _blurred(image: Tensor, sigma: float) -> Tensor:
    side = 2 * int(3 * sigma + 0.5) + 1
    return gaussian_blur2d(image, (side, side), (sigma, sigma), border_type="replicate")


def _normalised(patches: Tensor) -> Tensor:
    centred = patches - patches.mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).sqrt().clamp_min(0.004)


def _gradient(patches: Tensor, spacing: float) -> tuple[Tensor, Tensor]:
    """Derivative [..., SIDE^2, 2] per metre by right and up, and the inverse [..., 2, 2] of its Gram matrix."""
    up, right = torch.gradient(patches.unflatten(-1, (SIDE, SIDE)), spacing=spacing, dim=(-2, -1))
    gradient = torch.stack([right, up], -1).flatten(-3, -2)
    gram = gradient.mT @ gradient
    weakest = 1e-3 * gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] + 1.0
    return gradient, torch.linalg.inv(gram + weakest * torch.eye(2).to(gram))
