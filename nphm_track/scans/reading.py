"""Scans as users have them: meshes and point clouds of any unit and orientation (PLY, OBJ, GLB, glTF, STL, OFF)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import InputError
from nphm_track.files.images import without_programs
from nphm_track.files.reading import open_regular, reading
from nphm_track.kd_tree import kd_tree
from nphm_track.rendering.rasteriser import vertex_normals

SUFFIXES = (".ply", ".obj", ".glb", ".gltf", ".stl", ".off")
LARGEST = 4 << 30
"""Bytes."""
FARTHEST = 1e9
"""Coordinates beyond it are no scan in any unit."""
SAMPLES = 60_000
"""Surface points a mesh is registered by."""


@dataclass(frozen=True)
class ScanGeometry:
    """A mesh or a point cloud, in its own unit and frame.

    Attributes:
        vertices: [V, 3].
        faces: [F, 3], or None for a point cloud.
        normals: [V, 3] unit, outward (of a mesh as its faces are wound), or None for a cloud that has none.
        colours: [V, 3] uint8, or None.
        uv, texture: [V, 2] and uint8 [H, W, 3], row 0 at v = 1; both or neither.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64] | None
    normals: NDArray[np.float64] | None = None
    colours: NDArray[np.uint8] | None = None
    uv: NDArray[np.float32] | None = None
    texture: NDArray[np.uint8] | None = None

    def surface_points(self) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Points [N, 3] spread evenly over the surface and their normals [N, 3]; a cloud's own points."""
        rng = np.random.default_rng(0)
        if self.faces is None:
            some = _thinned(len(self.vertices), rng)
            return self.vertices[some], None if self.normals is None else self.normals[some]
        corners = self.vertices[self.faces]  # [F, 3, 3]
        area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
        chosen = rng.choice(len(area), SAMPLES, p=area / area.sum())
        weights = rng.dirichlet([1, 1, 1], SAMPLES)[:, :, None]
        assert self.normals is not None
        normals = (self.normals[self.faces[chosen]] * weights).sum(1)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        return (corners[chosen] * weights).sum(1), normals


def read_scan(path: str | Path) -> ScanGeometry:
    """Read a scan. Raises InputError when the file is missing, damaged, of another kind, or holds no geometry."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no scan at {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path.name}: scans are read from {', '.join(SUFFIXES)}")
    with reading(path.name, "a readable scan"):
        open_regular(path, LARGEST).close()
        return _geometry(_load(path), path.name)


def _load(path: Path) -> Any:
    """What trimesh makes of a file, its parts in one; None when there is none."""
    import trimesh

    with without_programs():
        loaded: Any = trimesh.load(path, process=False)
        if isinstance(loaded, trimesh.Scene):
            parts = [part for part in loaded.dump() if hasattr(part, "vertices") and len(part.vertices)]
            meshes = [part for part in parts if isinstance(part, trimesh.Trimesh)]
            chosen = meshes or parts
            loaded = trimesh.util.concatenate(chosen) if len(chosen) > 1 else chosen[0] if chosen else None
    return loaded


def _geometry(loaded: Any, name: str) -> ScanGeometry:
    if loaded is None or len(getattr(loaded, "vertices", ())) == 0:
        raise InputError(f"{name} holds no geometry")
    vertices = np.asarray(loaded.vertices, np.float64)
    if vertices.shape[1:] != (3,):
        raise InputError(f"{name} is damaged: its vertices have shape {list(vertices.shape)}")
    faces = np.asarray(getattr(loaded, "faces", np.empty((0, 3))), np.int64).reshape(-1, 3)
    if faces.size and not 0 <= faces.min() <= faces.max() < len(vertices):
        raise InputError(f"{name} is damaged: its faces name vertices it does not have")
    if np.abs(vertices, where=np.isfinite(vertices), out=np.zeros_like(vertices)).max(initial=0) > FARTHEST:
        raise InputError(f"{name} holds coordinates that are out of all bounds")
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(vertices).all(1))
    faces = faces[finite[faces].all(1)]
    if faces.size:
        corners = vertices[faces]
        faces = faces[
            np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) > 0
        ]
    colours, uv, texture = _appearance(loaded, len(vertices))
    if not faces.size:
        if finite.sum() < 1000:
            raise InputError(f"{name} holds {int(finite.sum())} points and no faces; that is too little to register")
        normals = _stored_normals(loaded, len(vertices))
        return ScanGeometry(
            vertices[finite], None, None if normals is None else normals[finite], _of(colours, finite), None, None
        )
    size = float(np.ptp(vertices[faces].reshape(-1, 3), axis=0).max())
    centre = vertices[faces[0, 0]]
    # In units of the scan's size, so that the float32 of the rasteriser's normals is enough for any unit.
    with np.errstate(over="ignore"):  # vertices that no face has may lie anywhere
        normals = vertex_normals(np.nan_to_num((vertices - centre) / size), faces).astype(np.float64)
    return ScanGeometry(vertices, faces, normals, colours, uv, texture)


def _stored_normals(loaded: Any, count: int) -> NDArray[np.float64] | None:
    """Normals [V, 3] of a point cloud: trimesh keeps a PLY's in its metadata only, text and binary differently."""
    rows = loaded.metadata.get("_ply_raw", {}).get("vertex", {}).get("data")
    names = () if rows is None else rows if isinstance(rows, dict) else rows.dtype.names or ()
    if any(name not in names for name in ("nx", "ny", "nz")):
        return None
    normals = np.stack([np.asarray(rows[name], np.float64).reshape(-1) for name in ("nx", "ny", "nz")], 1)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return normals / np.maximum(length, 1e-12) if len(normals) == count and (length > 0.1).mean() > 0.9 else None


def _appearance(
    loaded: Any, count: int
) -> tuple[NDArray[np.uint8] | None, NDArray[np.float32] | None, NDArray[np.uint8] | None]:
    visual: Any = getattr(loaded, "visual", None)
    if getattr(visual, "kind", None) == "texture" and visual.uv is not None and len(visual.uv) == count:
        material = visual.material
        image = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
        if image is not None:
            return None, np.asarray(visual.uv, np.float32), np.asarray(image.convert("RGB"))
    colours = loaded.colors if visual is None and hasattr(loaded, "colors") else getattr(visual, "vertex_colors", None)
    known = visual is None or getattr(visual, "kind", None) == "vertex"
    if known and colours is not None and len(colours) == count:
        rgb = np.asarray(colours)[:, :3].astype(np.uint8)
        return (rgb if np.ptp(rgb) else None), None, None
    return None, None, None


def _of(array: NDArray[np.uint8] | None, keep: NDArray[np.bool_]) -> NDArray[np.uint8] | None:
    return None if array is None else array[keep]


def _thinned(count: int, rng: np.random.Generator) -> NDArray[np.integer]:
    return rng.choice(count, SAMPLES, replace=False) if count > SAMPLES else np.arange(count)


def estimated_normals(points: NDArray[np.float64], neighbours: int = 16) -> NDArray[np.float64]:
    """Normals [N, 3] up to their sign: the direction in which the nearest points spread least."""
    near = kd_tree(points).query(points, k=min(neighbours, len(points)))[1]
    spread = points[near] - points[near].mean(1, keepdims=True)
    return np.asarray(np.linalg.eigh(np.einsum("nki,nkj->nij", spread, spread))[1][:, :, 0])
