"""From codes to meshes: the canonical surface once per person, then its vertices carried to every expression.

Public results are metres in head space. The grid is rectilinear with cells that are fine in the face and coarse elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import ModelError
from nphm_track.heads.decoder import NphmDecoder

BOX = ((-0.14, 0.14), (-0.128, 0.19), (-0.22, 0.11))
"""Metres; the part of head space that is meshed, along x, y, z."""
FACE = ((-0.07, 0.07), (-0.085, 0.075), (0.0, 0.11))
"""Metres; the part with fine cells."""
NECK_PLANE = (np.array([0.0, -0.1, 0.0]), np.array([0.0, 0.94, 0.34]))
"""Point and normal (metres, head space) of the cut under which the neck is removed; it rises towards the back."""


@dataclass(frozen=True)
class CanonicalMesh:
    """The neutral head of one person: vertices [V, 3] float32 metres (head space), faces [F, 3] int32, outward."""

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]


def grid_axes(fine: float = 0.0021, coarse: float = 0.006) -> list[NDArray[np.float64]]:
    """Node coordinates (metres) along each axis: spacing ``fine`` in the face, growing to ``coarse`` away from it."""
    axes = []
    for (low, high), (a, b) in zip(BOX, FACE, strict=True):
        nodes = list(np.arange(a, b + fine, fine))
        for direction, end in ((-1, low), (1, high)):
            step, at = fine, nodes[0] if direction < 0 else nodes[-1]
            while (at - end) * direction < 0:
                step = min(step * 1.15, coarse)
                at += direction * step
                nodes.append(at)
            nodes.sort()
        axes.append(np.array(nodes))
    return axes


@torch.no_grad()
def evaluate_grid(
    model: NphmDecoder, z_id: Tensor, axes: list[NDArray[np.float64]], *, chunk: int = 40_000
) -> tuple[NDArray[np.float32], NDArray[np.bool_], int]:
    """Canonical SDF (metres) on the grid, evaluated only near the surface.

    Strides 8, 4, 2, 1: a block is refined when the distance at one of its corners is within .6 of its diagonal (a true
    distance needs half; the rest allows for the network's). Elsewhere the coarse value stands, with its sign.
    Returns values [X, Y, Z], the cells [X-1, Y-1, Z-1] that may hold the surface, and the number of evaluations.
    """
    padded = [_pad_axis(a, 8) for a in axes]
    shape = tuple(len(a) for a in padded)
    values = np.full(shape, np.nan, np.float32)
    evaluations = 0
    active = np.ones(tuple((n - 1) // 8 for n in shape), bool)
    for stride in (8, 4, 2, 1):
        if stride < 8:
            active = active.repeat(2, 0).repeat(2, 1).repeat(2, 2)
        nodes = _corners_of(active)
        index = np.argwhere(nodes) * stride
        index = index[np.isnan(values[tuple(index.T)])]
        points = np.stack([padded[i][index[:, i]] for i in range(3)], 1)
        values[tuple(index.T)] = canonical_distance(model, z_id, points, chunk)
        evaluations += len(index)
        lattice = values[::stride, ::stride, ::stride]
        spacing = [np.diff(a[::stride]) for a in padded]
        diagonal = np.sqrt(
            spacing[0][:, None, None] ** 2 + spacing[1][None, :, None] ** 2 + spacing[2][None, None, :] ** 2
        )
        nearest = _corner_reduce(np.abs(lattice), np.fmin)
        active &= nearest <= 0.6 * diagonal
    filled = _fill_from_coarse(values)
    crop = tuple(slice(0, len(a)) for a in axes)
    cells = tuple(slice(0, len(a) - 1) for a in axes)
    return filled[crop], active[cells], evaluations


def canonical_distance(
    model: NphmDecoder, z_id: Tensor, points: NDArray[np.floating], chunk: int = 40_000
) -> NDArray[np.float32]:
    """Canonical signed distance [N] (metres) at points [N, 3] (metres)."""
    device = z_id.device
    out = np.empty(len(points), np.float32)
    for k in range(0, len(points), chunk):
        x = torch.as_tensor(points[k : k + chunk] / MODEL_UNIT, dtype=torch.float32, device=device)
        out[k : k + chunk] = model.canonical_sdf(x, z_id).cpu().numpy()
    return out * MODEL_UNIT


@torch.no_grad()
def extract_canonical(model: NphmDecoder, z_id: Tensor, *, detail: float = 1.0) -> CanonicalMesh:
    """Neutral head of identity code z_id [D_id], cut at the neck; ``detail`` scales the grid's density (1: about 25,000 vertices).

    Raises ModelError when the code has no surface.
    """
    from skimage.measure import marching_cubes

    axes = grid_axes(0.0021 / detail, 0.006 / detail)
    values, cells, _ = evaluate_grid(model, z_id, axes)
    if not cells.any() or values.min() > 0 or values.max() < 0:
        raise ModelError("the identity code has no surface")
    index, faces, _, _ = marching_cubes(values, 0.0, gradient_direction="descent")
    vertices = np.stack([np.interp(index[:, i], np.arange(len(axes[i])), axes[i]) for i in range(3)], 1)
    vertices, faces = _largest_component(vertices, faces)
    vertices, faces = cut_plane(vertices, faces, *NECK_PLANE)
    vertices, faces = _largest_component(vertices, faces)
    vertices, faces = merge_short_edges(vertices, faces)
    return CanonicalMesh(vertices.astype(np.float32), faces.astype(np.int32))


def cut_plane(
    vertices: NDArray[np.floating], faces: NDArray[np.integer], point: NDArray[np.floating], normal: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    """Keep the side of a plane its normal points to, with a straight border; crossing triangles are split."""
    height = (vertices - point) @ (normal / np.linalg.norm(normal))
    above = height > 0
    count = above[faces].sum(1)
    pieces = [faces[count == 3]]
    new_vertices: list[NDArray[np.floating]] = []
    made: dict[tuple[int, int], int] = {}

    def crossing(a: int, b: int) -> int:
        key = (min(a, b), max(a, b))
        if key not in made:
            s = height[a] / (height[a] - height[b])
            made[key] = len(vertices) + len(new_vertices)
            new_vertices.append(vertices[a] + s * (vertices[b] - vertices[a]))
        return made[key]

    for kept in (1, 2):
        for triangle in faces[count == kept].tolist():
            flags = [bool(above[i]) for i in triangle]
            lone = flags.index(kept == 1)  # the corner that is alone on its side
            a, b, c = (triangle[(lone + k) % 3] for k in range(3))
            ab, ac = crossing(a, b), crossing(a, c)
            pieces.append(np.array([[a, ab, ac]] if kept == 1 else [[ab, b, c], [ab, c, ac]]))
    all_vertices = np.concatenate([vertices, np.array(new_vertices).reshape(-1, 3)])
    return compact(all_vertices, np.concatenate(pieces))


def merge_short_edges(
    vertices: NDArray[np.floating], faces: NDArray[np.integer], length: float = 0.00035
) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    """Collapse marching cubes' slivers: vertices closer than about ``length`` (metres) become one; degenerate faces go."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    short = edges[np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1) < length]
    n = len(vertices)
    graph = coo_matrix((np.ones(len(short)), (short[:, 0], short[:, 1])), shape=(n, n))
    count, label = connected_components(graph, directed=False)
    weight = np.bincount(label, minlength=count)[:, None]
    merged = np.stack([np.bincount(label, vertices[:, i], count) for i in range(3)], 1) / weight
    f = label[faces]
    f = f[(f[:, 0] != f[:, 1]) & (f[:, 1] != f[:, 2]) & (f[:, 2] != f[:, 0])]
    return merged, f


def _largest_component(
    vertices: NDArray[np.floating], faces: NDArray[np.integer]
) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n = len(vertices)
    graph = coo_matrix((np.ones(len(faces) * 2), (faces[:, [0, 1]].ravel(), faces[:, [1, 2]].ravel())), shape=(n, n))
    label = connected_components(graph, directed=False)[1]
    keep = label == np.bincount(label[faces[:, 0]]).argmax()
    return compact(vertices, faces[keep[faces[:, 0]]])


def compact(
    vertices: NDArray[np.floating], faces: NDArray[np.integer]
) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    """Drop vertices no face uses, keeping their order."""
    used = np.zeros(len(vertices), bool)
    used[faces] = True
    return vertices[used], (np.cumsum(used) - 1)[faces]


def _pad_axis(axis: NDArray[np.float64], stride: int) -> NDArray[np.float64]:
    """Lengthen an axis so that strides divide its cells."""
    missing = -(len(axis) - 1) % stride
    step = axis[-1] - axis[-2]
    return np.concatenate([axis, axis[-1] + step * np.arange(1, missing + 1)])


def _corners_of(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    nodes = np.zeros(tuple(n + 1 for n in cells.shape), bool)
    for i in (0, 1):
        for j in (0, 1):
            for k in (0, 1):
                nodes[i : i + cells.shape[0], j : j + cells.shape[1], k : k + cells.shape[2]] |= cells
    return nodes


def _corner_reduce(nodes: NDArray[np.floating], ufunc: np.ufunc) -> NDArray[np.floating]:
    out = nodes
    for axis in range(3):
        low = [slice(None)] * 3
        high = [slice(None)] * 3
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        out = ufunc(out[tuple(low)], out[tuple(high)])
    return out


def _fill_from_coarse(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Nodes never evaluated take the value of the coarser node before them (same side of the surface)."""
    for stride in (4, 2, 1):
        grid = values[::stride, ::stride, ::stride]
        coarse = grid[::2, ::2, ::2].repeat(2, 0).repeat(2, 1).repeat(2, 2)
        coarse = coarse[: grid.shape[0], : grid.shape[1], : grid.shape[2]]
        hole = np.isnan(grid)
        grid[hole] = coarse[hole]
    return values
