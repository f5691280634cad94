"""Triangle rasteriser for batches, in plain torch: the same on a CPU and on a GPU (``rasteriser`` is its CPU twin).

``Drawer`` takes the twin on a CPU, which has no need of windows and scatters.

Every triangle looks at a small window of pixels around itself; the nearest triangle of a pixel is found by one scatter
of (1/z, triangle) packed into an integer. Camera space is OpenCV's; pixel centres lie at 0.5.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nphm_track.rendering import rasteriser

NEAR = 1e-3
EDGE = 1e-6
"""Slack of the inside test: float32 rounding must not open a seam between neighbours."""
CHUNK = 1 << 25
"""Pixels of windows looked at in one go."""


class BatchFragments(NamedTuple):
    """What the pixels of B images see."""

    depth: Tensor
    """[B, H, W] metres along z, 0 where nothing is seen."""
    face_id: Tensor
    """[B, H, W] int64 index into the faces, -1 where nothing is seen."""
    bary: Tensor
    """[B, H, W, 3] perspective-correct weights of the face's vertices, 0 where nothing is seen."""


def rasterise_batch(
    camera: Tensor, faces: Tensor, K: Tensor, size: tuple[int, int], *, cull: bool = False
) -> BatchFragments:
    """Draw B meshes of one topology.

    Args:
        camera: [B, V, 3] camera space, metres. Triangles with a vertex nearer than ``NEAR`` are skipped.
        faces: [F, 3] int64, counter-clockwise seen from outside.
        K: [B, 3, 3] intrinsics in pixels, no skew.
        size: (width, height).
        cull: leave out triangles that turn their back to the camera.
    """
    width, height = size
    b, f = len(camera), len(faces)
    screen = _project(camera, K)  # [B, V, 3]: x, y, 1/z
    corner = screen[:, faces].flatten(0, 1)  # [B F, 3, 3]
    xy, inverse = corner[..., :2], corner[..., 2]
    low = (xy.amin(1) - 0.5).ceil().clamp_min(0)
    limit = torch.tensor([width, height], device=xy.device)
    high = torch.minimum(xy.amax(1) - 0.5, limit - 1.0).floor()
    area = _cross(xy[:, 1] - xy[:, 0], xy[:, 2] - xy[:, 0])
    use = (inverse > 0).all(1) & (high >= low).all(1) & ((area < -1e-9) if cull else (area.abs() > 1e-9))
    chosen = use.nonzero()[:, 0]
    corner, low, high = corner[chosen], low[chosen], high[chosen]
    side = (high - low).amax(1) + 1
    best = torch.full((b * height * width,), -1, dtype=torch.int64, device=camera.device)
    window, largest = 1, max(size)
    while window < largest:
        window *= 2
        rows = ((side > window // 2 * (window > 2)) & (side <= window)).nonzero()[:, 0]
        for part in rows.split(max(1, CHUNK // window**2)):
            _splat(best, corner[part], chosen[part], low[part], high[part], window, f, size)
    return _resolve(best.view(b, height, width), screen, faces)


def interpolate_batch(fragments: BatchFragments, faces: Tensor, attributes: Tensor) -> Tensor:
    """Vertex attributes [B, V, C] at every pixel, [B, H, W, C]; 0 where nothing is seen."""
    b, h, w = fragments.face_id.shape
    offset = torch.arange(b, device=faces.device)[:, None, None] * attributes.shape[1]
    flat = attributes.flatten(0, 1)
    out = torch.zeros(b * h * w, attributes.shape[2], dtype=attributes.dtype, device=attributes.device)
    seen = (fragments.face_id >= 0).flatten().nonzero()[:, 0]
    corner = (faces[fragments.face_id.clamp_min(0)] + offset[..., None]).flatten(0, 2)[seen]  # [N, 3]
    weight = fragments.bary.flatten(0, 2)[seen].to(attributes.dtype)
    out[seen] = sum(flat[corner[:, i]] * weight[:, i : i + 1] for i in range(3))  # type: ignore[assignment]
    return out.view(b, h, w, -1)


def vertex_normals_batch(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals [B, V, 3] of vertices [B, V, 3], the area-weighted mean of the adjoining faces'."""
    a, b, c = (vertices[:, faces[:, i]] for i in range(3))
    normal = torch.linalg.cross(b - a, c - a, dim=-1)
    out = torch.zeros_like(vertices)
    for i in range(3):
        out.index_add_(1, faces[:, i], normal)
    return F.normalize(out, dim=-1)


def _project(camera: Tensor, K: Tensor) -> Tensor:
    z = camera[..., 2]
    inverse = torch.where(z > NEAR, 1 / z.clamp_min(NEAR), torch.zeros_like(z))
    x = K[:, None, 0, 0] * camera[..., 0] * inverse + K[:, None, 0, 2]
    y = K[:, None, 1, 1] * camera[..., 1] * inverse + K[:, None, 1, 2]
    return torch.stack([x, y, inverse], -1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _weights(corner: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """First two screen barycentrics [N, W] of the points x, y [N, W] in triangles [N, 3, 3]."""
    (ax, ay), (bx, by), (cx, cy) = ((corner[:, i, 0:1], corner[:, i, 1:2]) for i in range(3))
    scale = 1 / ((bx - ax) * (cy - ay) - (by - ay) * (cx - ax))
    x, y = x - cx, y - cy
    u = ((by - cy) * scale) * x - ((bx - cx) * scale) * y
    v = ((cy - ay) * scale) * x - ((cx - ax) * scale) * y
    return u, v


def _splat(
    best: Tensor, corner: Tensor, chosen: Tensor, low: Tensor, high: Tensor, window: int, f: int, size: tuple[int, int]
) -> None:
    """Enter triangles [N, 3, 3] with bounds [N, 2] of at most ``window`` pixels into the buffer of nearest faces."""
    steps = torch.arange(window, device=best.device, dtype=low.dtype)
    x, y = low[:, :1] + steps.repeat(window), low[:, 1:] + steps.repeat_interleave(window)  # [N, W]
    u, v = _weights(corner, x + 0.5, y + 0.5)
    inside = (u >= -EDGE) & (v >= -EDGE) & (u + v <= 1 + EDGE) & (x <= high[:, :1]) & (y <= high[:, 1:])
    row, k = inside.nonzero(as_tuple=True)
    u, v = u[row, k], v[row, k]
    z = corner[row, :, 2]
    inverse = z[:, 2] + u * (z[:, 0] - z[:, 2]) + v * (z[:, 1] - z[:, 2])
    image, face = chosen[row] // f, chosen[row] % f
    place = (image * size[1] + y[row, k].long()) * size[0] + x[row, k].long()
    key = (inverse.contiguous().view(torch.int32).long() << 32) | face  # bits of positive floats keep order
    best.scatter_reduce_(0, place, key, "amax")


def _resolve(best: Tensor, screen: Tensor, faces: Tensor) -> BatchFragments:
    b, h, w = best.shape
    image, y, x = (best >= 0).nonzero(as_tuple=True)
    face = best[image, y, x] & 0xFFFFFFFF
    corner = screen[image[:, None], faces[face]]  # [N, 3, 3]
    u, v = _weights(corner, x[:, None] + 0.5, y[:, None] + 0.5)
    weight = torch.cat([u, v, 1 - u - v], -1) * corner[..., 2]
    inverse = weight.sum(-1, keepdim=True)
    depth = torch.zeros(b, h, w, device=best.device)
    bary = torch.zeros(b, h, w, 3, device=best.device)
    face_id = torch.full_like(best, -1)
    depth[image, y, x] = 1 / inverse[:, 0]
    bary[image, y, x] = weight / inverse
    face_id[image, y, x] = face
    return BatchFragments(depth, face_id, bary)


class Drawer:
    """Draws meshes of one topology with whatever the device is fastest with; results are those of the functions."""

    def __init__(self, faces: Tensor) -> None:
        """``faces`` [F, 3] int64 on the device that draws."""
        self.faces = faces
        self.triangles = faces.to(torch.int32).numpy() if faces.device.type == "cpu" else None

    def rasterise(self, camera: Tensor, K: Tensor, size: tuple[int, int], *, cull: bool = False) -> BatchFragments:
        """As :func:`rasterise_batch`."""
        if self.triangles is None:
            return rasterise_batch(camera, self.faces, K, size, cull=cull)
        meshes = zip(camera.numpy(), K.numpy(), strict=True)
        drawn = [rasteriser.rasterise(v, self.triangles, k, size, cull=cull) for v, k in meshes]
        parts = (torch.from_numpy(np.stack([getattr(d, f) for d in drawn])) for f in BatchFragments._fields)
        depth, face_id, bary = parts
        return BatchFragments(depth, face_id.long(), bary)

    def interpolate(self, fragments: BatchFragments, attributes: Tensor) -> Tensor:
        """As :func:`interpolate_batch`."""
        if self.triangles is None:
            return interpolate_batch(fragments, self.faces, attributes)
        values = np.ascontiguousarray(attributes.numpy(), np.float32)
        out = np.zeros((*fragments.face_id.shape, values.shape[2]), np.float32)
        face_id, bary = fragments.face_id.to(torch.int32).numpy(), fragments.bary.numpy()
        for k in range(len(out)):
            rasteriser.interpolate_into(face_id[k], bary[k], self.triangles, values[k], out[k])
        return torch.from_numpy(out)

    def normals(self, vertices: Tensor) -> Tensor:
        """As :func:`vertex_normals_batch`."""
        if self.triangles is None:
            return vertex_normals_batch(vertices, self.faces)
        return torch.from_numpy(np.stack([rasteriser.vertex_normals(v, self.triangles) for v in vertices.numpy()]))
