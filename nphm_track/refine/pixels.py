"""Which pixels of the geometry maps are compared, and the rays through them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.faces.roi import crop_points_to_frame, frame_to_crop_matrix
from nphm_track.geometry.maps import GeometryMaps
from nphm_track.refine.codes import State
from nphm_track.refine.surface import Rays
from nphm_track.rendering.rasteriser import rasterise

LEAST_CONFIDENCE = 0.1
"""A pixel is compared when either map is at least this sure of it."""


@dataclass(frozen=True)
class Targets:
    """What the maps say at N pixels of each of B frames.

    Attributes:
        pixels: [B, N, 2] of the original frame, undistorted.
        cells: [B, N] int64, i * n + j in the crop.
        normals, points: [B, N, 3] unit and metres, head space.
        normal_weight, point_weight: [B, N] confidence 0..1; 0 for padding.
    """

    pixels: Tensor
    cells: Tensor
    normals: Tensor
    points: Tensor
    normal_weight: Tensor
    point_weight: Tensor

    def first(self, count: int) -> Targets:
        """The first ``count`` pixels of each frame: they cover the face as evenly as all do."""
        return Targets(*(getattr(self, name)[:, :count] for name in self.__dataclass_fields__))

    def frames(self, index: Tensor | slice) -> Targets:
        """The targets of some frames."""
        return Targets(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def to(self, device: torch.device) -> Targets:
        return Targets(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def sample_targets(maps: GeometryMaps, count: int, camera: Intrinsics) -> Targets:
    """At most ``count`` confident pixels of each frame, evenly spread; any first part of them is evenly spread too."""
    B, n = maps.normals.shape[:2]
    order = torch.from_numpy(dispersed_order(n))
    normal_weight = maps.normal_confidence.reshape(B, -1)[:, order]
    point_weight = maps.point_confidence.reshape(B, -1)[:, order]
    sure = torch.maximum(normal_weight, point_weight) >= LEAST_CONFIDENCE
    rank = torch.where(sure, torch.arange(n * n), n * n).argsort(dim=1, stable=True)[:, :count]
    chosen = sure.gather(1, rank)
    cells = order[rank]

    def take(values: Tensor) -> Tensor:
        return values.reshape(B, n * n, 3).gather(1, cells[..., None].expand(-1, -1, 3)).float()

    row, column = (cells // n).numpy() + 0.5, (cells % n).numpy() + 0.5
    frame = crop_points_to_frame(np.stack([column, row], -1), maps.rois.numpy().astype(np.float64), n)
    return Targets(
        torch.from_numpy(camera.undistort(frame)),
        cells,
        take(maps.normals),
        take(maps.points),
        normal_weight.gather(1, rank).float() * chosen,
        point_weight.gather(1, rank).float() * chosen,
    )


@cache
def dispersed_order(n: int) -> NDArray[np.int64]:
    """The cells of an n x n grid (i * n + j) in the order of a Bayer matrix: every first part is evenly spread."""
    bits = max(1, (n - 1).bit_length())
    i, j = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    rank = np.zeros((n, n), np.int64)
    for bit in range(bits):  # the lowest bits of the place decide first
        a, b = (i >> bit) & 1, (j >> bit) & 1
        rank |= ((a ^ b) << 1 | a) << 2 * (bits - 1 - bit)
    return rank.ravel().argsort(kind="stable")


def mesh_depth(
    vertices: NDArray[np.floating],
    faces: NDArray[np.integer],
    R: NDArray[np.float64],
    t: NDArray[np.float64],
    K: NDArray[np.float64],
    roi: NDArray[np.floating],
    n: int,
) -> NDArray[np.float32]:
    """Camera depth (metres; 0 where nothing is seen) of a mesh (head space) at the pixels of one n x n crop, [n * n].

    The crop's affine map and the camera are one projective map, so the crop is drawn without drawing the frame.
    """
    projective = frame_to_crop_matrix(roi[None], n)[0] @ K
    camera = vertices @ R.T + t
    return rasterise(camera @ projective.T, faces, np.eye(3), (n, n)).depth.reshape(-1)


def pixel_rays(pixels: Tensor, R: Tensor, t: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """Origins and directions [B, N, 3] (metres, head space) of rays through ``pixels`` [B, N, 2]; depth along a ray is
    the camera's z."""
    k = camera_directions(pixels, K)
    direction = k @ R
    origin = -(t[:, None] @ R).expand_as(direction)
    return origin, direction


def rays_of(state: State, pixels: Tensor, depth: Tensor) -> Rays:
    """The rays of B frames through ``pixels`` [B, N, 2], flattened, from depths [B, N]."""
    origin, direction = pixel_rays(pixels, state.R, state.t, state.K)
    frame = torch.arange(len(depth), device=depth.device).repeat_interleave(depth.shape[1])
    return Rays(origin.float().flatten(0, 1), direction.float().flatten(0, 1), frame, depth.flatten())


def camera_directions(pixels: Tensor, K: Tensor) -> Tensor:
    """Viewing directions [..., 3] with z = 1, camera space."""
    focal, centre = K[[0, 1], [0, 1]], K[:2, 2]
    xy = (pixels - centre) / focal
    return torch.cat([xy, torch.ones_like(xy[..., :1])], -1)
