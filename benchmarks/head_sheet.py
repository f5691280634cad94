"""The picture sheet of a head model's card: random identities, expressions, an interpolation, fits to real scans.

    python benchmarks/head_sheet.py --out models/nphm-small/sheet.jpg [--head-model NAME] [--fits FOLDER ...]

A folder of ``--fits`` holds what ``nphm-track fit-scan`` wrote for a scan, or such folders. Rows, from above: eight
random identities from the front and from the side; one of them through 16 expressions; six steps from one identity to
another; for each scan the scan, the fit, and twice the scan coloured by its distance from the fit (blue 0, red 3 mm and
more, grey what is no part of the head).
"""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.progress import track
from torch import Tensor

from nphm_track._runtime import prepare_torch
from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.carry import MeshCarrier
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.editing import expression_code, interpolate, random_identities
from nphm_track.heads.loading import DEFAULT, load_head_model
from nphm_track.heads.mesh import NECK_PLANE, extract_canonical
from nphm_track.heads.registration import Pose
from nphm_track.rendering.rasteriser import interpolate as across
from nphm_track.rendering.rasteriser import rasterise, vertex_normals
from nphm_track.rendering.shading import backdrop, shade

EXPRESSIONS = (
    "jawOpen", "mouthSmile", "mouthFrown", "mouthPucker", "mouthFunnel", "mouthStretch", "mouthUpperUp",
    "mouthLowerDown", "mouthLeft", "jawRight", "cheekPuff", "noseSneer", "browInnerUp", "browDown", "eyeBlink",
    "eyeWide",
)  # fmt: skip
COLUMNS = 8
TILE = 200
STEP_TILE, SCAN_TILE = 266, 399
"""Pixels of a picture; six steps of the interpolation make a row, or the four pictures of a scan."""
PIVOT = np.array([0.0, -0.01, -0.045])
"""Metres, head space: what the views turn about, the middle of the head."""
SIDE = 45.0
"""Degrees of the view from the side."""
LARGEST = 400_000
"""Bytes of the sheet."""
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Mesh:
    """Vertices [V, 3] (metres, head space), faces [F, 3] and colours [V, 3] in 0..1 or None for porcelain."""

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    colours: NDArray[np.float32] | None = None


def draw(mesh: Mesh, size: int, yaw: float = 0.0, caption: str = "") -> Picture:
    """A head from a metre away, turned by ``yaw`` degrees to its own left; [size, size, 3]."""
    c, s = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    R = np.diag([1.0, -1.0, -1.0]) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    vertices = ((mesh.vertices - PIVOT) @ R.T + [0, 0.02, 1.0]).astype(np.float32)
    normals = vertex_normals(vertices, mesh.faces)
    focal = 2 * 3.4 * size  # drawn at twice the size and averaged down
    K = np.array([[focal, 0, size], [0, focal, size], [0, 0, 1]])
    seen = rasterise(vertices, mesh.faces, K, (2 * size, 2 * size))
    rgb, alpha = shade(seen, mesh.faces, vertices, normals, supersampled=True)
    if mesh.colours is not None:
        tone = rgb.mean(-1, keepdims=True) / 0.75
        paint = across(seen, mesh.faces, mesh.colours).reshape(size, 2, size, 2, 3)
        cover = (seen.face_id >= 0).reshape(size, 2, size, 2).sum((1, 3))[..., None].clip(1)
        rgb = np.clip((0.15 + 0.85 * paint.sum((1, 3)) / cover) * tone.clip(0.3, 1.1), 0, 1)
    picture = backdrop((size, size)) * (1 - alpha[..., None]) + 255 * rgb * alpha[..., None]
    image = Image.fromarray(picture.round().astype(np.uint8))
    ImageDraw.Draw(image).text((6, size - 15), caption, fill=(190, 195, 205))
    return np.asarray(image)


def identities(model: NphmDecoder, seed: int) -> Iterator[Picture]:
    """Eight people from the front, then the same from the side."""
    codes = random_identities(model, COLUMNS, seed=seed)
    meshes = [canonical(model, z_id) for z_id in track(codes, "identities")]
    yield from (draw(mesh, TILE) for mesh in meshes)
    yield from (draw(mesh, TILE, SIDE) for mesh in meshes)


def expressions(model: NphmDecoder, seed: int) -> Iterator[Picture]:
    """The first of these people through the expressions, both sides at full strength."""
    z_id = random_identities(model, COLUMNS, seed=seed)[0]
    mesh = extract_canonical(model, z_id)
    carry = MeshCarrier(model, mesh, z_id)
    for name in track(EXPRESSIONS, "expressions"):
        posed = carry(expression_code(model, {name: 1.0})).posed.points * MODEL_UNIT
        yield draw(Mesh(posed.cpu().numpy(), mesh.faces), TILE, caption=name)


def interpolation(model: NphmDecoder, seed: int) -> Iterator[Picture]:
    """From the second to the third of these people."""
    _, first, last, *_ = random_identities(model, COLUMNS, seed=seed)
    for z_id in track(interpolate(first, last, 6), "interpolation"):
        yield draw(canonical(model, z_id), STEP_TILE, 25)


def canonical(model: NphmDecoder, z_id: Tensor) -> Mesh:
    mesh = extract_canonical(model, z_id)
    return Mesh(mesh.vertices, mesh.faces)


def scans(folders: list[Path]) -> Iterator[Picture]:
    """Four pictures for each fitted scan, in head space; clouds, which have no faces, are left out."""
    found = sorted(path.parent for folder in folders for path in folder.rglob("summary.json"))
    for folder in track(found, "scans"):
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        scan = trimesh.load(folder / "error.ply", process=False)
        if not isinstance(scan, trimesh.Trimesh):
            continue
        fit = trimesh.load(folder / "mesh.ply", process=False)
        with np.load(folder / "codes.npz") as codes:
            pose = Pose(float(codes["scale"]), codes["R"], codes["t"])
        colours = (np.asarray(scan.visual.vertex_colors)[:, :3] / 255).astype(np.float32)
        measured = above_neck(Mesh(_head(scan, pose), scan.faces, colours))
        yield draw(Mesh(measured.vertices, measured.faces), SCAN_TILE, 25, f"scan {summary['scan']}"[:40])
        yield draw(Mesh(_head(fit, pose), fit.faces), SCAN_TILE, 25, "fit")
        yield draw(measured, SCAN_TILE, 25, f"median {summary['median_mm']:.2f} mm, mean {summary['mean_mm']:.2f} mm")
        yield draw(measured, SCAN_TILE)


def _head(mesh: trimesh.Trimesh, pose: Pose) -> NDArray[np.float32]:
    return pose.inverse(mesh.vertices).astype(np.float32)


def above_neck(mesh: Mesh) -> Mesh:
    """Without the shoulders, which would stand in the light of the next picture."""
    point, normal = NECK_PLANE
    above = (mesh.vertices - point) @ normal > -0.03
    return Mesh(mesh.vertices, mesh.faces[above[mesh.faces].all(1)], mesh.colours)


def grid(pictures: list[Picture], columns: int) -> Picture:
    """Rows of pictures; the last is filled up with background."""
    size = pictures[0].shape[0]
    pictures = pictures + [backdrop((size, size))] * (-len(pictures) % columns)
    return np.vstack([np.hstack(pictures[k : k + columns]) for k in range(0, len(pictures), columns)])


def save(path: Path, sheet: Picture) -> None:
    """Write a JPEG of the best quality that is small enough, atomically."""
    for quality in range(92, 30, -4):
        data = io.BytesIO()
        Image.fromarray(sheet).save(data, "jpeg", quality=quality, optimize=True, progressive=True)
        if data.tell() <= LARGEST:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data.getvalue())
    os.replace(partial, path)
    print(f"{path}: {sheet.shape[1]}x{sheet.shape[0]}, {data.tell() / 1000:.0f} kB, quality {quality}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JPEG to write")
    parser.add_argument("--head-model", default=DEFAULT)
    parser.add_argument("--fits", type=Path, nargs="+", default=[], help="folders written by nphm-track fit-scan")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    prepare_torch()
    model = load_head_model(args.head_model)
    rows = [
        grid([*identities(model, args.seed), *expressions(model, args.seed)], COLUMNS),
        grid(list(interpolation(model, args.seed)), 6),
    ]
    if pictures := list(scans(args.fits)):
        rows.append(grid(pictures, 4))
    width = min(row.shape[1] for row in rows)  # 8 x 200 and 6 x 266 differ a little
    save(args.out, np.vstack([row[:, :width] for row in rows]))


if __name__ == "__main__":
    main()
