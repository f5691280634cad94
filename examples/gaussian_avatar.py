"""Start a Gaussian avatar from a run: a data set to train on, and a splat on every triangle of the person's head.

    python examples/gaussian_avatar.py clip_run avatar --frame 40

Writes ``avatar/data`` (``export --format transforms --images``, which GaussianAvatars, VHAP and nerfstudio read) and
``avatar/splats.ply`` of one frame, which any viewer of 3-D Gaussians shows. Splats are bound as GaussianAvatars does it
(Qian et al. 2024, section 3.2): position, rotation and scale are relative to a triangle, which the rig moves; a trainer
optimises these relative values, its start is what is here.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from nphm_track import Run, read_run
from nphm_track.errors import InputError, NphmTrackError
from nphm_track.export.formats import export
from nphm_track.export.frames import frame_names
from nphm_track.export.options import ExportOptions
from nphm_track.tracking.records import Status
from nphm_track.tracking.surface import surface_of

Array = NDArray[np.float64]
OPACITY = 0.9
FLATNESS = 0.1
"""Thickness of a splat in units of its width."""
ZEROTH_HARMONIC = 0.28209479177387814


class Splats(NamedTuple):
    """N Gaussians relative to their triangles: centres [N, 3] and scales [N, 3] in units of the triangle's size,
    rotations [N], colours [N, 3] in 0..1, and the triangles [N] they are bound to."""

    centre: Array
    scale: Array
    rotation: Rotation
    colour: Array
    triangle: NDArray[np.int64]

    def posed(self, vertices: Array, faces: NDArray[np.integer]) -> tuple[Array, Array, Rotation]:
        """Centres, scales and rotations in the space of the vertices [V, 3]."""
        origin, turn, size = triangle_frames(vertices, faces)
        k = self.triangle
        turned = Rotation.from_matrix(turn[k])
        return origin[k] + size[k, None] * turned.apply(self.centre), size[k, None] * self.scale, turned * self.rotation


def triangle_frames(vertices: Array, faces: NDArray[np.integer]) -> tuple[Array, Array, Array]:
    """Origin [F, 3] (centroid), rotation [F, 3, 3] (columns: an edge, across it, the normal) and size [F] of triangles:
    the mean of the edge and the height over it."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    along = (b - a) / np.maximum(np.linalg.norm(b - a, axis=1, keepdims=True), 1e-12)
    normal = np.cross(b - a, c - a)
    area = np.linalg.norm(normal, axis=1, keepdims=True)
    normal = np.where(area > 1e-16, normal / np.maximum(area, 1e-16), [0.0, 0.0, 1.0])
    across = np.cross(normal, along)
    edge = np.linalg.norm(b - a, axis=1)
    height = np.abs(((c - a) * across).sum(1))
    return (a + b + c) / 3, np.stack([along, across, normal], -1), (edge + height) / 2


def bound(vertices: Array, faces: NDArray[np.integer], colour: Array) -> Splats:
    """One flat splat as large as its triangle on each that has an area."""
    size = triangle_frames(vertices, faces)[2]
    triangle = np.flatnonzero(size > 1e-9)
    n = len(triangle)
    scale = np.tile([0.5, 0.5, 0.5 * FLATNESS], (n, 1))
    return Splats(np.zeros((n, 3)), scale, Rotation.identity(n), colour[triangle], triangle)


def seen_colours(run: Run, row: int, image: NDArray[np.uint8]) -> Array:
    """Colours [F, 3] of the triangles that look at the camera in a frame; the others have their mean."""
    surface, track = surface_of(run), run.track
    origin, turn, _ = triangle_frames(surface.vertices_of(row).astype(float), surface.mesh.faces)
    at = origin @ track.R[row].T + track.t[row]
    normal = turn[:, :, 2] @ track.R[row].T
    u, v = (at[:, :2] / at[:, 2:] * track.K[[0, 1], [0, 1]] + track.K[[0, 1], 2]).T.astype(int)
    height, width = image.shape[:2]
    seen = ((normal * at).sum(1) < 0) & (u >= 0) & (v >= 0) & (u < width) & (v < height)
    if not seen.any():
        raise InputError(f"{run.path}: nothing of the head is in the picture of row {row}")
    colours = np.empty((len(at), 3))
    colours[seen] = image[v[seen], u[seen]] / 255
    colours[~seen] = colours[seen].mean(0)
    return colours


def write_splats(path: Path, splats: Splats, vertices: Array, faces: NDArray[np.integer]) -> None:
    """The layout of the original implementation (Kerbl et al. 2023): logits of opacity, logarithms of scale."""
    centre, scale, rotation = splats.posed(vertices, faces)
    n = len(centre)
    columns = {
        **dict(zip("xyz", centre.T, strict=True)),
        **{f"n{axis}": np.zeros(n) for axis in "xyz"},
        **{f"f_dc_{i}": (splats.colour[:, i] - 0.5) / ZEROTH_HARMONIC for i in range(3)},
        "opacity": np.full(n, np.log(OPACITY / (1 - OPACITY))),
        **{f"scale_{i}": np.log(np.maximum(scale[:, i], 1e-9)) for i in range(3)},
        **{f"rot_{i}": value for i, value in enumerate(rotation.as_quat()[:, [3, 0, 1, 2]].T)},
    }
    properties = "".join(f"property float {name}\n" for name in columns)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {n}\n{properties}end_header\n"
    path.write_bytes(header.encode() + np.stack(list(columns.values()), 1).astype("<f4").tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--frame", type=int, help="frame of the clip that splats.ply shows (default: the first)")
    arguments = parser.parse_args()
    try:
        run = read_run(arguments.run)
        rows = np.flatnonzero(run.track.status != Status.LOST)
        frame = run.track.frame[rows[0]] if arguments.frame is None else arguments.frame
        row = next((int(r) for r in rows if run.track.frame[r] == frame), None)
        if row is None:
            raise InputError(f"{run.path} has no head in frame {frame}")
        data = export(run, "transforms", arguments.output / "data", ExportOptions(images=True))
        image = np.asarray(Image.open(data / "images" / f"{frame_names(run.track)[row]}.png"))
        faces = surface_of(run).mesh.faces
        vertices = surface_of(run).vertices_of(row).astype(float)
        splats = bound(vertices, faces, seen_colours(run, row, image))
        write_splats(arguments.output / "splats.ply", splats, vertices, faces)
    except NphmTrackError as error:
        parser.exit(error.exit_code, f"{error}\n")
    print(f"{data}\n{arguments.output / 'splats.ply'}: {len(splats.triangle)} splats")


if __name__ == "__main__":
    main()
