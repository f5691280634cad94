"""The landmark mesh as dense input: canonical position and normal of every pixel, as far as 478 points know them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.spatial import Delaunay
from torch import Tensor

from nphm_track.rendering.batched import interpolate_batch, rasterise_batch, vertex_normals_batch
from nphm_track.rendering.rasteriser import interpolate, rasterise, vertex_normals
from nphm_track.rigid import fit_similarities

N_MESH = 468
"""Landmarks of the skin; the last ten are the irises."""
MAP_CHANNELS = 7
LOWER_FACE = -0.015
"""Metres: landmarks of the mean head below this height move with jaw and lips."""
_FAR = 4096.0  # pixels to the camera: as good as orthographic, which is what the landmarks' depth is meant for


def landmark_triangles(points: NDArray[np.floating]) -> NDArray[np.int32]:
    """Triangles [F, 3] over the landmarks ``points`` [478, 3] of the mean head, counter-clockwise seen from outside.

    Delaunay on the face unrolled around a vertical axis; long thin triangles across the outline are left out.
    """
    p = points[:N_MESH]
    flat = np.stack([np.arctan2(p[:, 0], p[:, 2] + 0.03) * 0.09, p[:, 1]], 1)
    triangles = Delaunay(flat).simplices
    a, b, c = (p[triangles[:, i]] for i in range(3))
    longest = np.max([np.linalg.norm(x - y, axis=1) for x, y in ((a, b), (b, c), (c, a))], axis=0)
    triangles = triangles[longest < 0.035]
    a, b, c = (flat[triangles[:, i]] for i in range(3))
    turn = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    return np.where(turn[:, None] < 0, triangles[:, [0, 2, 1]], triangles).astype(np.int32)


def landmark_maps(
    landmarks: NDArray[np.floating],
    mean: NDArray[np.floating],
    triangles: NDArray[np.int32],
    size: int,
    crop: int = 256,
) -> NDArray[np.float32]:
    """Maps [B, 7, size, size] of crops of ``crop`` px: head-space position (decimetres), unit normal, 1 on the mesh.

    ``landmarks`` [B, 478, 3] in crop pixels (z in the same unit, smaller is nearer); they are brought into head space
    by the similarity that fits them best to ``mean`` [478, 3] (metres), so the maps know pose and expression.
    """
    out = np.zeros((len(landmarks), MAP_CHANNELS, size, size), np.float32)
    K = np.array([[_FAR, 0, 0], [0, _FAR, 0], [0, 0, 1.0]])
    heads = to_head_space(np.asarray(landmarks, np.float64)[:, :N_MESH], mean[:N_MESH])
    for k, points in enumerate(np.asarray(landmarks, np.float64)[:, :N_MESH]):
        head = heads[k]
        depth = _FAR + points[:, 2:] - points[:, 2].mean()
        camera = np.concatenate([points[:, :2] * (size / crop) * depth / _FAR, depth], 1)
        fragments = rasterise(camera, triangles, K, (size, size))
        normals = vertex_normals(head, triangles)
        attributes = np.concatenate([head * 10, normals, np.ones((N_MESH, 1))], 1)
        out[k] = interpolate(fragments, triangles, attributes.astype(np.float32)).transpose(2, 0, 1)
    out[:, 3:6] /= np.maximum(np.linalg.norm(out[:, 3:6], axis=1, keepdims=True), 1e-6)
    return out


def to_head_space(landmarks: NDArray[np.floating], mean: NDArray[np.floating]) -> NDArray[np.float32]:
    """Twin of :func:`_to_head_space_batch` for arrays, in double precision."""
    both = (torch.from_numpy(np.asarray(v, np.float64)) for v in (landmarks, mean))
    return _to_head_space_batch(*both).float().numpy()


def landmark_maps_batch(landmarks: Tensor, mean: Tensor, triangles: Tensor, size: int, crop: int = 256) -> Tensor:
    """Twin of :func:`landmark_maps` for any device: landmarks [B, 478, 3], mean [478, 3] -> [B, 7, size, size]."""
    points = landmarks[:, :N_MESH].float()
    head = _to_head_space_batch(points, mean[:N_MESH].float())
    faces = triangles.long()
    depth = _FAR + points[..., 2:] - points[..., 2:].mean(1, keepdim=True)
    camera = torch.cat([points[..., :2] * (size / crop) * depth / _FAR, depth], -1)
    K = torch.diag(points.new_tensor([_FAR, _FAR, 1.0])).expand(len(points), -1, -1)
    fragments = rasterise_batch(camera, faces, K, (size, size))
    attributes = torch.cat([head * 10, vertex_normals_batch(head, faces), torch.ones_like(head[..., :1])], -1)
    out = interpolate_batch(fragments, faces, attributes).permute(0, 3, 1, 2)
    return torch.cat([out[:, :3], F.normalize(out[:, 3:6], dim=1), out[:, 6:]], 1)


def _to_head_space_batch(landmarks: Tensor, mean: Tensor) -> Tensor:
    """Image landmarks [B, P, 3] (y down, z away) by the similarity each onto ``mean`` [P, 3], metres.

    The lower face counts little: it moves with the expression.
    """
    weight = mean.new_tensor([0.1, 1.0])[(mean[:, 1:2] > LOWER_FACE).long()]
    upright = landmarks * landmarks.new_tensor([1.0, -1.0, -1.0])
    return fit_similarities(upright, mean, weight / weight.sum())
