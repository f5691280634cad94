"""Make, change and mix heads with the released head model.

    python examples/edit_heads.py heads                                  # a random person: meshes and pictures
    python examples/edit_heads.py heads --seed 7
    python examples/edit_heads.py heads --transfer RUN_A RUN_B           # what A does, on B's face

Writes head.ply, expressions.png, mirrored.png and interpolation.png, or transfer/<frame>.ply and transfer.png.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from nphm_track import read_run
from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.carry import MeshCarrier
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.editing import (
    IdentityMirror,
    expression_code,
    interpolate,
    mirror_expression,
    random_identities,
    transfer_expressions,
)
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.mesh import extract_canonical
from nphm_track.rendering.overlay import OverlayRenderer
from nphm_track.rendering.ply import write_ply
from nphm_track.tracking.records import Status
from nphm_track.tracking.surface import CarriedFrames

EXPRESSIONS = (
    "jawOpen", "mouthSmile", "mouthFrown", "mouthPucker", "mouthFunnel", "mouthStretch", "mouthUpperUp",
    "mouthLowerDown", "mouthLeft", "cheekPuff", "noseSneer", "browInnerUp", "browDown", "eyeBlink", "eyeWide",
)  # fmt: skip
SIZE = 240
PIVOT = np.array([0.0, -0.01, -0.045], np.float32)  # metres, head space: what the views turn about
Image8 = NDArray[np.uint8]


def draw(vertices: NDArray[np.float32], faces: NDArray[np.int32], yaw: float = 0.0) -> Image8:
    """A picture [SIZE, SIZE, 3] of a head (metres, head space) turned by ``yaw`` degrees to its own left."""
    c, s = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    R = np.diag([1.0, -1.0, -1.0]) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    K = np.array([[3.4 * SIZE, 0, SIZE / 2], [0, 3.4 * SIZE, SIZE / 2], [0, 0, 1]])
    renderer = OverlayRenderer(faces, K, (SIZE, SIZE), style="mesh")
    return renderer.draw(np.zeros((SIZE, SIZE, 3), np.uint8), vertices - PIVOT, R, np.array([0, 0.02, 1.0]))


def random_head(model: NphmDecoder, seed: int, out: Path) -> None:
    """One person at rest and in 15 expressions, mirrored, and on the way to another person."""
    person, other = random_identities(model, 2, seed=seed)
    mesh = extract_canonical(model, person)
    write_ply(out / "head.ply", mesh.vertices, mesh.faces)
    carry = MeshCarrier(model, mesh, person)
    codes = [torch.zeros(model.config.expression_dim), *(expression_code(model, {name: 1.0}) for name in EXPRESSIONS)]
    heads = [(carry(z_ex).posed.points * MODEL_UNIT).numpy() for z_ex in codes]
    save(out / "expressions.png", [draw(vertices, mesh.faces) for vertices in heads], columns=8)

    wink = expression_code(model, {"eyeBlinkLeft": 1.0, "mouthSmileLeft": 1.0, "jawLeft": 0.5})
    twin = IdentityMirror(model)(person)
    pictures = []
    for z_id, z_ex in ((person, wink), (twin, mirror_expression(model, wink))):
        mesh = extract_canonical(model, z_id)
        posed = MeshCarrier(model, mesh, z_id)(z_ex).posed.points * MODEL_UNIT
        pictures.append(draw(posed.numpy(), mesh.faces))
    save(out / "mirrored.png", pictures, columns=2)

    between = [extract_canonical(model, z_id) for z_id in interpolate(person, other, 6)]
    save(out / "interpolation.png", [draw(m.vertices, m.faces, 25) for m in between], columns=6)


def transfer(model: NphmDecoder, source: Path, target: Path, out: Path) -> None:
    """The source's performance on the target's face: a mesh for each frame and eight of them as a picture."""
    performance, face = read_run(source).track, read_run(target).track
    played = replace(performance, z_id=face.z_id, z_ex=transfer_expressions(performance, face))
    own, theirs = (extract_canonical(model, torch.from_numpy(z)) for z in (performance.z_id, face.z_id))
    actor, double = CarriedFrames(model, own, performance), CarriedFrames(model, theirs, played)
    rows = np.flatnonzero(performance.status != Status.LOST)
    shown = set(rows[np.linspace(0, len(rows) - 1, 8).astype(int)].tolist())
    (out / "transfer").mkdir(exist_ok=True)
    pictures = []
    for row in rows.tolist():
        vertices = double(row)
        write_ply(out / "transfer" / f"{int(performance.frame[row]):06d}.ply", vertices, theirs.faces)
        if row in shown:
            pictures.append((draw(actor(row), own.faces), draw(vertices, theirs.faces)))
    save(out / "transfer.png", list(chain(*zip(*pictures, strict=True))), columns=len(pictures))


def save(path: Path, pictures: list[Image8], columns: int) -> None:
    rows = [np.hstack(pictures[k : k + columns]) for k in range(0, len(pictures), columns)]
    Image.fromarray(np.vstack(rows)).save(path)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--seed", type=int, default=0, help="of the random person")
    parser.add_argument("--transfer", type=Path, nargs=2, metavar="RUN", help="two run folders: performance and face")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    model = load_head_model()
    if arguments.transfer:
        performance, face = arguments.transfer
        transfer(model, performance, face, arguments.folder)
    else:
        random_head(model, arguments.seed, arguments.folder)


if __name__ == "__main__":
    main()
