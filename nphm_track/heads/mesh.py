"""From codes to meshes: the canonical surface once per person, then its vertices carried to every expression.

Public results are metres in head space. The grid is rectilinear: its cells are fine in the face and coarse elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import cumulative_trapezoid
from torch import Tensor

from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import ModelError
from nphm_track.heads.decoder import NphmDecoder

BOX = ((-0.14, 0.14), (-0.128, 0.19), (-0.22, 0.11))
"""Metres; the part of head space that is meshed, along x, y, z."""
CELLS = {
    "lips and nose": (0.0018, ((-0.034, 0.034), (-0.06, 0.014), (0.025, 0.075))),
    "eyes": (0.0023, ((-0.05, 0.05), (0.014, 0.055), (0.02, 0.06))),
    "face": (0.0034, ((-0.07, 0.07), (-0.085, 0.075), (0.0, 0.11))),
    "ears": (0.003, ((-0.095, 0.095), (-0.04, 0.055), (-0.06, 0.0))),
}
"""Metres: largest cells of parts of the head, and where these lie. Larger ones fray lips, pierce the wings of noses and
tear the rims of ears, which are 5 mm wide."""
COARSE, GROWTH = 0.01, 0.2
"""Metres: largest cells elsewhere; and how much larger than its own cells are outside a part, of the distance to it."""
LIPS_APART = {"jawOpen": 0.15} | {
    f"{name}_{side}": weight
    for name, weight in {"mouthLowerDown": 0.8, "mouthSmile": 0.45, "mouthUpperUp": 0.3}.items()
    for side in "LR"
}
"""ARKit weights of the open mouth that heads are meshed with: the lips are thin and apart there up to the corners. With
jaw and smile alone skin stands in the corners, without a smile lips are frayed, with the jaw alone a flap of the lower
lip hangs from the upper one."""
FAIR_STEP = 0.0015
"""Metres: the longest step back to the surface; a longer one may lead to another sheet."""
NECK_PLANE = (np.array([0.0, -0.1, 0.0]), np.array([0.0, 0.94, 0.34]))
"""Point and normal (metres, head space) of the cut under which the neck is removed; it rises towards the back."""


@dataclass(frozen=True)
class CanonicalMesh:
    """The neutral head of one person.

    Attributes:
        vertices: [V, 3] metres, head space.
        faces: [F, 3] outward.
        open_vertices: [V, 3] metres, the vertices with the mouth slightly open (``open_mouth_code``), where the lips
            are apart; None for models without that expression.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    open_vertices: NDArray[np.float32] | None = None


def grid_axes(detail: float = 1.0) -> list[NDArray[np.float64]]:
    """Node coordinates (metres) along each axis of ``BOX``: as dense as ``CELLS`` asks, times ``detail``."""
    axes = []
    for axis, (low, high) in enumerate(BOX):
        x = np.linspace(low, high, 4001)
        size = np.full_like(x, COARSE)
        for cell, part in CELLS.values():
            a, b = part[axis]
            size = np.minimum(size, cell + GROWTH * np.maximum(np.maximum(a - x, x - b), 0))
        cells = detail * cumulative_trapezoid(1 / size, x, initial=0)
        axes.append(np.interp(np.linspace(0, cells[-1], int(np.ceil(cells[-1])) + 1), cells, x))
    return axes


Field = Callable[[NDArray[np.floating]], NDArray[np.float32]]
"""Signed distance [N] (metres) at points [N, 3] (metres, head space)."""


def evaluate_grid(field: Field, axes: list[NDArray[np.float64]]) -> tuple[NDArray[np.float32], NDArray[np.bool_], int]:
    """A signed distance on the grid, evaluated only near its surface.

    Strides 8, 4, 2, 1: a block is refined when the distance at one of its corners, known or interpolated from the
    stride before, is within 0.7 of its diagonal (a true distance needs half; the rest allows for the network's and for
    curvature). Elsewhere the coarse value stands, with its sign. Returns values [X, Y, Z], the cells [X-1, Y-1, Z-1]
    that may hold the surface, and the number of evaluations.
    """
    padded = [_pad_axis(a, 8) for a in axes]
    shape = tuple(len(a) for a in padded)
    values = np.full(shape, np.nan, np.float32)
    evaluations = 0
    active = np.ones(tuple((n - 1) // 8 for n in shape), bool)
    for stride in (8, 4, 2, 1):
        index = np.argwhere(_corners_of(active)) * stride
        index = index[np.isnan(values[tuple(index.T)])]
        values[tuple(index.T)] = field(np.stack([padded[i][index[:, i]] for i in range(3)], 1))
        evaluations += len(index)
        lattice = values[::stride, ::stride, ::stride]
        active &= _corner_reduce(np.abs(lattice), np.fmin) <= 0.7 * _diagonals(padded, stride)
        if stride > 1:  # which of a block's eight children the surface may cross, judged by interpolation
            children = active.repeat(2, 0).repeat(2, 1).repeat(2, 2)
            guess = _corner_reduce(np.abs(_interpolated(lattice)), np.fmin)
            active = children & ~(guess > 0.7 * _diagonals(padded, stride // 2))
    filled = _fill_from_coarse(values)
    crop = tuple(slice(0, len(a)) for a in axes)
    cells = tuple(slice(0, len(a) - 1) for a in axes)
    return filled[crop], active[cells], evaluations


@torch.no_grad()
def model_field(model: NphmDecoder, z_id: Tensor, z_ex: Tensor | None, chunk: int = 8_000) -> Field:
    """The model's distance in metres: of the canonical head, or of the head posed by z_ex."""

    def field(points: NDArray[np.floating]) -> NDArray[np.float32]:
        out = np.empty(len(points), np.float32)
        with torch.no_grad():
            for k in range(0, len(points), chunk):
                x = torch.as_tensor(points[k : k + chunk] / MODEL_UNIT, dtype=torch.float32, device=z_id.device)
                sdf = model.canonical_sdf(x, z_id) if z_ex is None else model.sdf(x, z_id, z_ex)
                out[k : k + chunk] = sdf.cpu().numpy()
        return out * MODEL_UNIT

    return field


@torch.no_grad()
def extract_canonical(model: NphmDecoder, z_id: Tensor, *, detail: float = 1.0) -> CanonicalMesh:
    """Neutral head of identity code z_id [D_id], cut at the neck.

    At rest the lips touch and the zero level runs across them like a skin. The surface is therefore extracted with the
    jaw slightly open, where the lips are apart and the mouth is a pocket, and its vertices are taken back to the
    canonical head.

    Args:
        model: the head model.
        z_id: [D_id].
        detail: scale of the grid's density; 1 gives about 30,000 vertices.

    Raises:
        ModelError: the code has no surface.
    """
    from skimage.measure import marching_cubes

    axes = grid_axes(detail)
    z_ex = open_mouth_code(model)
    values, cells, _ = evaluate_grid(model_field(model, z_id, z_ex), axes)
    if not cells.any() or values.min() > 0 or values.max() < 0:
        raise ModelError("the identity code has no surface")
    index, faces, _, _ = marching_cubes(values, 0.0, gradient_direction="descent")
    vertices = np.stack([np.interp(index[:, i], np.arange(len(axes[i])), axes[i]) for i in range(3)], 1)
    vertices, faces = merge_short_edges(vertices, faces)
    vertices = fair(vertices, faces, lambda points: distance_and_gradient(model, points, z_id, z_ex))
    if z_ex is not None:
        x = torch.as_tensor(vertices / MODEL_UNIT, dtype=torch.float32, device=z_id.device)
        canonical = (x + model.deform(x, z_id, z_ex)[0]).cpu().numpy().astype(np.float64) * MODEL_UNIT
        vertices = np.concatenate([canonical, vertices], 1)
    vertices, faces = cut_plane(vertices, faces, *NECK_PLANE)
    vertices, faces = drop_small_parts(vertices, faces)
    opened = None if z_ex is None else vertices[:, 3:].astype(np.float32)
    return CanonicalMesh(vertices[:, :3].astype(np.float32), faces.astype(np.int32), opened)


@torch.no_grad()
def distance_and_gradient(
    model: NphmDecoder, points: NDArray[np.floating], z_id: Tensor, z_ex: Tensor | None, chunk: int = 8_000
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The distance [N] of :func:`model_field` (metres) at points [N, 3], and its gradient [N, 3]."""
    distance, gradient = np.empty(len(points)), np.empty((len(points), 3))
    for k in range(0, len(points), chunk):
        x = torch.as_tensor(points[k : k + chunk] / MODEL_UNIT, dtype=torch.float32, device=z_id.device)
        with torch.enable_grad():
            x.requires_grad_(True)
            sdf = model.canonical_sdf(x, z_id) if z_ex is None else model.sdf(x, z_id, z_ex)
            slope = torch.autograd.grad(sdf.sum(), x)[0]
        distance[k : k + chunk], gradient[k : k + chunk] = sdf.detach().cpu() * MODEL_UNIT, slope.cpu()
    return distance, gradient


def fair(
    vertices: NDArray[np.floating],
    faces: NDArray[np.integer],
    field: Callable[[NDArray[np.floating]], tuple[NDArray[np.float64], NDArray[np.float64]]],
    rounds: int = 2,
    steps: int = 2,
) -> NDArray[np.float64]:
    """Vertices [V, 3] (metres) spread evenly over the surface; marching cubes leaves stairs, and teeth on sharp edges.

    Each round smooths without shrinking (Taubin 1995) and returns to the zero level by a Newton step. ``field`` gives
    distance and gradient at points.
    """
    from scipy.sparse import coo_matrix, diags

    edges = edges_of(faces)
    n = len(vertices)
    graph = coo_matrix((np.ones(len(edges)), edges.T), (n, n)).tocsr()
    graph = graph + graph.T
    degree = np.asarray(graph.sum(1)).ravel()
    mean = diags(1 / np.maximum(degree, 1)) @ graph
    v = np.asarray(vertices, np.float64)
    for _ in range(rounds):
        for factor in (0.5, -0.53) * steps:
            v = v + factor * (mean @ v - v)
        distance, gradient = field(v)
        step = distance[:, None] * gradient / np.maximum((gradient**2).sum(1, keepdims=True), 0.25)
        length = np.linalg.norm(step, axis=1, keepdims=True)
        v = v - step * np.minimum(1, FAIR_STEP / np.maximum(length, 1e-9))
    return v


def open_mouth_code(model: NphmDecoder, weights: Mapping[str, float] = LIPS_APART) -> Tensor | None:
    """Expression code [D_ex] of these ARKit weights, for models that know them."""
    names = model.config.expression_names
    if "jawOpen" not in names:
        return None
    columns = [model.expression_basis[:, names.index(n)] * w for n, w in weights.items() if n in names]
    return torch.stack(columns).sum(0)


def cut_plane(
    vertices: NDArray[np.floating],
    faces: NDArray[np.integer],
    point: NDArray[np.floating],
    normal: NDArray[np.floating],
) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    """Keep the side of a plane its normal points to, with a straight border; crossing triangles are split.

    Columns of ``vertices`` [V, 3 + C] beyond the position are interpolated along.
    """
    height = (vertices[:, :3] - point) @ (normal / np.linalg.norm(normal))
    height[height == 0] = 1e-12  # a vertex on the plane stays, without a double
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
    all_vertices = np.concatenate([vertices, np.array(new_vertices).reshape(-1, vertices.shape[1])])
    return compact(all_vertices, np.concatenate(pieces))


def edges_of(faces: NDArray[np.integer]) -> NDArray[np.integer]:
    """Edges [E, 2] of faces [F, 3], each once, the smaller vertex first."""
    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return np.unique(np.sort(pairs, 1), axis=0)


def merge_short_edges(
    vertices: NDArray[np.floating], faces: NDArray[np.integer], length: float = 0.00035
) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    """Collapse marching cubes' slivers: vertices within about ``length`` (metres) become one; degenerate faces go."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = edges_of(faces)
    short = edges[np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1) < length]
    n = len(vertices)
    graph = coo_matrix((np.ones(len(short)), (short[:, 0], short[:, 1])), shape=(n, n))
    count, label = connected_components(graph, directed=False)
    weight = np.bincount(label, minlength=count)[:, None]
    merged = np.stack([np.bincount(label, vertices[:, i], count) for i in range(3)], 1) / weight
    f = label[faces]
    f = f[(f[:, 0] != f[:, 1]) & (f[:, 1] != f[:, 2]) & (f[:, 2] != f[:, 0])]
    _, which, times = np.unique(np.sort(f, 1), axis=0, return_inverse=True, return_counts=True)
    return merged, f[times[which.ravel()] == 1]  # two faces back to back are a fin that sticks out


def drop_small_parts(
    vertices: NDArray[np.floating], faces: NDArray[np.integer], share: float = 0.01
) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    """Remove connected parts with less than ``share`` of the faces."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n = len(vertices)
    graph = coo_matrix((np.ones(len(faces) * 2), (faces[:, [0, 1]].ravel(), faces[:, [1, 2]].ravel())), shape=(n, n))
    label = connected_components(graph, directed=False)[1][faces[:, 0]]
    keep = np.bincount(label)[label] >= share * len(faces)
    return compact(vertices, faces[keep])


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


def _diagonals(axes: list[NDArray[np.float64]], stride: int) -> NDArray[np.floating]:
    x, y, z = (np.diff(a[::stride]) ** 2 for a in axes)
    return np.sqrt(x[:, None, None] + y[None, :, None] + z[None, None, :])


def _interpolated(lattice: NDArray[np.float32]) -> NDArray[np.float32]:
    """Halve the spacing of a lattice by linear interpolation (NaN where a neighbour is unknown)."""
    out = lattice
    for axis in range(3):
        shape = list(out.shape)
        shape[axis] = 2 * shape[axis] - 1
        fine = np.empty(shape, out.dtype)
        even, odd, low, high = ([slice(None)] * 3 for _ in range(4))
        even[axis], odd[axis] = slice(0, None, 2), slice(1, None, 2)
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        fine[tuple(even)] = out
        fine[tuple(odd)] = (out[tuple(low)] + out[tuple(high)]) / 2
        out = fine
    return out


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
