"""Read a run folder with NumPy alone, as a program that does not have nphm_track would.

    python examples/read_run.py clip_run

Prints what is in it, projects the mesh of the most certain frame into the image and writes the points as
``points.png`` into the working directory (or ``--out``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

TRACKED, FILLED, LOST = 0, 1, 2


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] (metres, head space) and faces [F, 3] of a binary PLY as runs have it."""
    header, body = path.read_bytes().split(b"end_header\n", 1)
    counts = {
        words[1]: int(words[2]) for line in header.splitlines() if (words := line.decode().split())[0] == "element"
    }
    vertices = np.frombuffer(body, "<f4", 3 * counts["vertex"]).reshape(-1, 3)
    corner = np.dtype([("count", "u1"), ("index", "<i4", 3)])
    return vertices, np.frombuffer(body, corner, counts["face"], vertices.nbytes)["index"]


def project(points: np.ndarray, R: np.ndarray, t: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Pixels [V, 2] of head-space points [V, 3]; pixel centres at 0.5; for a lens without distortion."""
    x = (points @ R.T + t) @ K.T
    return x[:, :2] / x[:, 2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("points.png"))
    arguments = parser.parse_args()
    try:
        info = json.loads((arguments.run / "run.json").read_text(encoding="utf-8"))
        track = dict(np.load(arguments.run / "track.npz", allow_pickle=False))
    except OSError as error:
        parser.exit(2, f"{error}\n")

    print(f"{info['input']['path']}: {info['state']}, {info['quality']}")
    for name, values in track.items():
        print(f"  {name:18} {values.dtype!s:8} {list(values.shape)}")

    row = int(track["confidence"].argmax())
    mesh = arguments.run / "meshes" / f"{track['frame'][row]:06d}.ply"
    if not mesh.exists():
        parser.exit(2, f"{mesh} is not there: the run was made with --no-meshes, --mesh-every or --mesh-format npz\n")
    vertices, faces = read_ply(mesh)
    pixels = project(vertices, track["R"][row], track["t"][row], track["K"])
    width, height = track["image_size"]
    column, line = np.floor(pixels).astype(int).T  # pixel (0, 0) covers 0..1
    inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
    image = np.zeros((height, width), np.uint8)
    image[line[inside], column[inside]] = 255
    Image.fromarray(image).save(arguments.out)
    distance = np.linalg.norm(track["t"][row])
    print(f"frame {track['frame'][row]}: {len(vertices)} vertices, {len(faces)} faces, head {distance:.2f} m away")
    print(arguments.out)


if __name__ == "__main__":
    main()
