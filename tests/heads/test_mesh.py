"""From a signed distance to a mesh: sparse against dense evaluation, and the mesh operations, on known shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes
from torch import Tensor

from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import ModelError
from nphm_track.heads import mesh as M
from nphm_track.heads.config import MONONPHM

Z_ID = torch.zeros(1)
SEMI_AXES = torch.tensor([0.075, 0.1, 0.085]) / MODEL_UNIT
Distance = Callable[[Tensor], Tensor]  # model units


def ball(x: Tensor) -> Tensor:
    return x.norm(dim=-1) - 0.09 / MODEL_UNIT


def ellipsoid(x: Tensor) -> Tensor:
    """First-order distance: exact on the surface, as far from exact elsewhere as a network's."""
    k = (x / SEMI_AXES).norm(dim=-1)
    return k * (k - 1) / (x / SEMI_AXES**2).norm(dim=-1).clamp_min(1e-6)


SHAPES = {"ball": ball, "ellipsoid": ellipsoid}


class Shape:
    """Stands in for a decoder with an analytic canonical SDF; opening its jaw shifts the whole head."""

    def __init__(self, distance: Distance, names: tuple[str, ...] = ()) -> None:
        self.canonical = distance
        self.config = replace(MONONPHM, expression_names=names)
        self.expression_basis = torch.tensor([[0.0, 1.0], [0.0, 0.0]])

    def canonical_sdf(self, queries: Tensor, z_id: Tensor) -> Tensor:
        return self.canonical(queries)

    def deform(self, points: Tensor, z_id: Tensor, z_ex: Tensor) -> tuple[Tensor, Tensor]:
        offset = torch.zeros_like(points)
        offset[..., 2] = 0.3 * z_ex[0]
        return offset, offset[..., :2] * 0

    def sdf(self, points: Tensor, z_id: Tensor, z_ex: Tensor) -> Tensor:
        return self.canonical(points + self.deform(points, z_id, z_ex)[0])


def extract(distance: Distance, *names: str, detail: float = 0.5) -> M.CanonicalMesh:
    model: Any = Shape(distance, names)
    return M.extract_canonical(model, Z_ID, detail=detail)


def metric(distance: Distance) -> M.Field:
    model: Any = Shape(distance)
    return M.model_field(model, Z_ID, None)


def uniform_axes(nodes: int) -> list[NDArray[np.float64]]:
    return [np.linspace(low, high, nodes) for low, high in M.BOX]


def dense(field: M.Field, axes: list[NDArray[np.float64]]) -> NDArray[np.float32]:
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    return field(grid.reshape(-1, 3)).reshape(grid.shape[:3])


def corners(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    nodes = np.zeros(np.add(cells.shape, 1), bool)
    for index in np.argwhere(cells):
        nodes[tuple(slice(i, i + 2) for i in index)] = True
    return nodes


def surface(values: NDArray[np.float32], axes: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    index = marching_cubes(values, 0.0)[0]
    return np.stack([np.interp(index[:, i], np.arange(len(axes[i])), axes[i]) for i in range(3)], 1)


def signed_volume(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> float:
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def area(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> float:
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def border_edges(faces: NDArray[np.integer]) -> NDArray[np.integer]:
    """Directed edges without their opposite. Fails when the surface is not an oriented manifold."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    directed = {tuple(e) for e in edges.tolist()}
    assert len(directed) == len(edges), "an edge is used twice in the same direction"
    return np.array([e for e in directed if e[::-1] not in directed]).reshape(-1, 2)


# -- grid --------------------------------------------------------------------------------------------------------------
def test_axes_cover_the_box_with_cells_as_small_as_asked() -> None:
    for i, (axis, (low, high)) in enumerate(zip(M.grid_axes(1.25), M.BOX, strict=True)):
        steps, middle = np.diff(axis), (axis[1:] + axis[:-1]) / 2
        np.testing.assert_allclose(axis[[0, -1]], (low, high))
        assert steps.min() > 0 and steps.max() <= M.COARSE / 1.25 * 1.001
        for size, part in M.CELLS.values():
            inside = (part[i][0] < middle) & (middle < part[i][1])
            assert steps[inside].max() <= size / 1.25 * 1.05  # a cell across the border of a smaller part is between
        ratio = steps[1:] / steps[:-1]
        assert ratio.min() > 0.8 and ratio.max() < 1.25


@pytest.mark.parametrize("axes", [M.grid_axes(0.6), uniform_axes(71), uniform_axes(65)], ids=["graded", "71", "65"])
@pytest.mark.parametrize("name", SHAPES)
def test_sparse_evaluation_gives_the_dense_surface(name: str, axes: list[NDArray[np.float64]]) -> None:
    asked: list[NDArray[np.floating]] = []

    def field(points: NDArray[np.floating]) -> NDArray[np.float32]:
        asked.append(points)
        return metric(SHAPES[name])(points)

    values, cells, evaluations = M.evaluate_grid(field, axes)
    assert evaluations == sum(map(len, asked)) == len(np.unique(np.concatenate(asked), axis=0))
    full = dense(metric(SHAPES[name]), axes)
    assert values.shape == full.shape and np.isfinite(values).all()
    near = corners(cells)
    np.testing.assert_array_equal(values[near], full[near])
    np.testing.assert_array_equal(values > 0, full > 0)
    crossing = _crossed(full)
    assert crossing.any() and not (crossing & ~cells).any(), "a cell with the surface was skipped"
    sparse_surface, full_surface = surface(values, axes), surface(full, axes)
    half_cell = min(np.diff(a).min() for a in axes) / 2
    assert cKDTree(sparse_surface).query(full_surface)[0].max() < half_cell
    assert cKDTree(full_surface).query(sparse_surface)[0].max() < half_cell


def _crossed(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Cells whose corners differ in sign."""
    nx, ny, nz = np.subtract(values.shape, 1)
    parts = [values[i : i + nx, j : j + ny, k : k + nz] > 0 for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    return np.any(parts, 0) & ~np.all(parts, 0)


def test_a_256_grid_costs_a_twentieth_of_dense_evaluation() -> None:
    _, _, evaluations = M.evaluate_grid(metric(ball), uniform_axes(257))
    assert evaluations <= 257**3 / 20


# -- extraction --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SHAPES)
def test_extracted_head_is_one_oriented_sheet_with_one_straight_border(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point, normal = np.array([0.0, -0.06, 0.0]), np.array([0.0, 0.94, -0.34])
    monkeypatch.setattr(M, "NECK_PLANE", (point, normal))
    mesh = extract(SHAPES[name])
    v, f = mesh.vertices, mesh.faces
    assert v.dtype == np.float32 and f.dtype == np.int32
    distance = SHAPES[name](torch.from_numpy(v) / MODEL_UNIT) * MODEL_UNIT
    assert distance.abs().max() < 1e-3  # chords of 9 mm cells sag
    assert distance.abs().mean() < 2e-4
    border = border_edges(f)
    height = (v - point) @ (normal / np.linalg.norm(normal))
    assert height.min() > -5e-4
    assert np.abs(height[border]).max() < 5e-4
    edges = len(np.unique(np.sort(np.concatenate([f[:, [0, 1]], f[:, [1, 2]], f[:, [2, 0]]]), axis=1), axis=0))
    assert len(v) - edges + len(f) == 1, "not a disc"
    centred = v - point
    assert signed_volume(centred, f) > 0  # seen from a point of the cut, the missing lid adds nothing


def test_vertices_found_with_an_open_jaw_come_back_to_the_canonical_head() -> None:
    model: Any = Shape(ball, ("browInnerUp", "jawOpen"))
    z_ex = M.open_mouth_code(model)
    assert z_ex is not None and model.deform(torch.zeros(1, 3), Z_ID, z_ex)[0].norm() * MODEL_UNIT > 0.005
    opened, closed = extract(ball, "browInnerUp", "jawOpen"), extract(ball)
    assert ball(torch.from_numpy(opened.vertices) / MODEL_UNIT).abs().mean() * MODEL_UNIT < 2e-4
    assert signed_volume(opened.vertices, opened.faces) == pytest.approx(
        signed_volume(closed.vertices, closed.faces), rel=0.01
    )


def test_a_model_without_expression_names_is_meshed_at_rest() -> None:
    model: Any = Shape(ball)
    assert M.open_mouth_code(model) is None


def test_the_rim_of_an_ear_is_not_torn() -> None:
    centre, ring, rim = torch.tensor([0.078, 0.0, -0.034]), 0.018, 0.0025  # metres; a handle at the side of the head

    def eared(x: Tensor) -> Tensor:
        p = x * MODEL_UNIT - centre
        torus = torch.hypot(p[..., :2].norm(dim=-1) - ring, p[..., 2]) - rim
        return torch.minimum(ellipsoid(x), torus / MODEL_UNIT)

    def euler(distance: Distance) -> int:
        mesh = extract(distance, detail=1.0)
        number: int = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).euler_number
        return number

    assert euler(eared) == euler(ellipsoid) - 2


def test_detail_sets_the_density() -> None:
    counts = [len(extract(ball, detail=d).vertices) for d in (0.4, 0.8)]
    assert 3 < counts[1] / counts[0] < 5


@pytest.mark.parametrize("value", [1.0, -1.0])
def test_a_code_without_surface_is_an_error(value: float) -> None:
    with pytest.raises(ModelError, match="no surface"):
        extract(lambda x: torch.full_like(x[..., 0], value), detail=0.3)


# -- mesh operations ---------------------------------------------------------------------------------------------------
def unit_cube() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    cube = trimesh.creation.box(extents=(1, 1, 1)).subdivide().subdivide()
    return np.array(cube.vertices), np.array(cube.faces)


@pytest.mark.parametrize("height", [-0.33, 0.0123, 0.41])
def test_cut_of_a_cube_has_the_right_area_volume_and_border(height: float) -> None:
    v, f = M.cut_plane(*unit_cube(), np.array([0.0, height, 0.0]), np.array([0.0, 2.0, 0.0]))
    kept = 0.5 - height
    assert v[:, 1].min() == pytest.approx(height)
    assert area(v, f) == pytest.approx(1 + 4 * kept)
    assert signed_volume(v - [0, height, 0], f) == pytest.approx(kept)
    border = border_edges(f)
    np.testing.assert_allclose(v[border][..., 1], height)
    assert np.linalg.norm(v[border[:, 0]] - v[border[:, 1]], axis=1).sum() == pytest.approx(4)
    assert np.array_equal(np.unique(f), np.arange(len(v)))


def test_oblique_cut_lies_on_its_plane() -> None:
    point, normal = np.array([0.03, -0.11, 0.02]), np.array([0.2, 0.94, -0.34])
    v, f = M.cut_plane(*unit_cube(), point, normal)
    height = (v - point) @ normal
    assert height.min() > -1e-12
    border = border_edges(f)
    np.testing.assert_allclose(height[border], 0, atol=1e-12)
    assert (np.bincount(border[:, 0], minlength=len(v)) == np.bincount(border[:, 1], minlength=len(v))).all()
    below, _ = M.cut_plane(*unit_cube(), point, -normal)
    assert ((below - point) @ normal).max() < 1e-12


def test_a_plane_that_misses_keeps_all_or_nothing() -> None:
    v, f = unit_cube()
    kept_v, kept_f = M.cut_plane(v, f, np.array([0.0, -2.0, 0.0]), np.array([0.0, 1.0, 0.0]))
    np.testing.assert_array_equal(kept_v, v)
    np.testing.assert_array_equal(kept_f, f)
    gone_v, gone_f = M.cut_plane(v, f, np.array([0.0, 2.0, 0.0]), np.array([0.0, 1.0, 0.0]))
    assert gone_v.shape == (0, 3) and gone_f.shape == (0, 3)


def test_merging_short_edges_removes_slivers_only() -> None:
    v = np.array([[0, 0, 0], [1, 0, 0], [1.001, 0.001, 0], [0, 1, 0], [1, 1, 0.0]])
    f = np.array([[0, 1, 3], [1, 2, 3], [2, 4, 3]])
    merged, faces = M.merge_short_edges(v, f, length=0.01)
    assert len(merged) == 4 and faces.tolist() == [[0, 1, 2], [1, 3, 2]]
    np.testing.assert_allclose(merged[1], [1.0005, 0.0005, 0])
    same_v, same_f = M.merge_short_edges(v, f, length=1e-6)
    np.testing.assert_array_equal(same_v, v)
    np.testing.assert_array_equal(same_f, f)


def test_merging_keeps_a_marching_cubes_surface_closed_and_in_place() -> None:
    axes = uniform_axes(65)
    index, faces, _, _ = marching_cubes(dense(metric(ellipsoid), axes), 0.0, gradient_direction="descent")
    vertices = np.stack([np.interp(index[:, i], np.arange(65), axes[i]) for i in range(3)], 1)
    merged, kept = M.merge_short_edges(vertices, faces)
    assert len(merged) < len(vertices)
    assert len(border_edges(kept)) == 0
    assert signed_volume(merged, kept) == pytest.approx(signed_volume(vertices, faces), rel=1e-3)
    assert cKDTree(vertices).query(merged)[0].max() < 0.00035


def test_small_parts_go_and_larger_ones_stay() -> None:
    parts: Any = [
        trimesh.creation.icosphere(subdivisions=n, radius=1).apply_translation((3 * n, 0, 0)) for n in (0, 2, 3)
    ]
    joined: Any = trimesh.util.concatenate(parts)  # 20, 320 and 1280 faces
    v, f = M.drop_small_parts(np.array(joined.vertices), np.array(joined.faces), share=0.05)
    assert len(f) == 1600 and v[:, 0].min() > 4
    np.testing.assert_allclose(v[f], np.array(joined.triangles)[20:])


def test_compact_drops_unused_vertices_and_keeps_the_order() -> None:
    v = np.arange(18.0).reshape(6, 3)
    kept, faces = M.compact(v, np.array([[5, 1, 3]]))
    np.testing.assert_array_equal(kept, v[[1, 3, 5]])
    assert faces.tolist() == [[2, 0, 1]]
