"""Build ``ict_facekit_light_full.npz`` from ICT-FaceKit's public repository (MIT), for all other scripts' ``--ict``.

    git clone https://github.com/ICT-VGL/ICT-FaceKit
    python training/build_ict.py ICT-FaceKit/FaceXModel --out data/ict_facekit

The folder holds ``generic_neutral_mesh.obj``, ``identity000.obj`` and on, an OBJ for each expression, and
``vertex_indices.json``. All have the neutral mesh's vertices in its order, centimetres; what is kept of identities and
expressions is their difference from it.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import InputError
from nphm_track.files.reading import read_json, read_text, reading

NEUTRAL, INDICES, OUT = "generic_neutral_mesh.obj", "vertex_indices.json", "ict_facekit_light_full.npz"
OBJ_LIMIT = 1 << 26
"""Bytes of an OBJ; ICT's have 3 MB."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder FaceXModel of the repository")
    parser.add_argument("--out", type=Path, required=True, help="folder for the npz and vertex_indices.json")
    args = parser.parse_args()
    try:
        arrays = build(args.model)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    args.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out / OUT, **arrays)
    shutil.copyfile(args.model / INDICES, args.out / INDICES)
    licence = args.model.parent / "LICENSE"
    if licence.is_file():
        shutil.copyfile(licence, args.out / "LICENSE")
    print(args.out / OUT, *(f"{name} {values.shape}" for name, values in arrays.items()), sep="\n  ")


def build(folder: Path) -> dict[str, NDArray[Any]]:
    """The arrays of the npz.

    Returns:
        ``neutral`` [V, 3], ``identity_deltas`` [I, V, 3], ``expression_deltas`` [E, V, 3] float32, centimetres;
        ``expression_names`` [E]; ``faces`` [F, 4] and ``face_uv`` [F, 4], whose last corner is -1 in triangles;
        ``uv`` [T, 2], a tile for each part.

    Raises InputError for a folder that is not ICT's, or whose meshes do not belong together.
    """
    with reading(folder / INDICES, "ICT-FaceKit's list of vertices"):
        read_json(folder / INDICES)["idx_to_landmark_verts"]
    stems = sorted(path.stem for path in folder.glob("*.obj") if path.name != NEUTRAL)
    identities = [stem for stem in stems if re.fullmatch(r"identity\d+", stem)]
    expressions = [stem for stem in stems if stem not in identities]
    if not identities or not expressions:
        raise InputError(f"{folder} has no identities and expressions beside {NEUTRAL}")
    neutral, lines = _read(folder / NEUTRAL)
    faces = [line.split()[1:] for line in lines if line.startswith("f ")]
    corners = np.full((2, len(faces), 4), -1, np.int32)
    for face, words in enumerate(faces):
        for corner, word in enumerate(words):
            corners[:, face, corner] = [int(index) - 1 for index in word.split("/")[:2]]

    def deltas(names: list[str]) -> NDArray[np.float32]:
        out = np.empty((len(names), *neutral.shape), np.float32)
        for i, name in enumerate(names):
            shape, _ = _read(folder / f"{name}.obj")
            if shape.shape != neutral.shape:
                raise InputError(f"{folder / name}.obj has {len(shape)} vertices, {NEUTRAL} {len(neutral)}")
            out[i] = shape - neutral
        return out

    return {
        "neutral": neutral.astype(np.float32),
        "identity_deltas": deltas(identities),
        "expression_deltas": deltas(expressions),
        "expression_names": np.array(expressions),
        "faces": corners[0],
        "uv": np.array([line.split()[1:3] for line in lines if line.startswith("vt ")], np.float32),
        "face_uv": corners[1],
    }


def _read(path: Path) -> tuple[NDArray[np.float64], list[str]]:
    """Vertices [V, 3] of an OBJ, and its lines."""
    with reading(path, "an OBJ of ICT-FaceKit"):
        lines = read_text(path, OBJ_LIMIT).splitlines()
        return np.array([line.split()[1:4] for line in lines if line.startswith("v ")], np.float64).reshape(
            -1, 3
        ), lines


if __name__ == "__main__":
    main()
