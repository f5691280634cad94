"""Webs of skin in open mouths: the area of what joins the lips although it should not, for the heads of runs.

    python benchmarks/lips.py RUN ... --out bench/lips

A head is meshed, then posed with open mouths. A triangle about the lips counts when one of its edges is four times as
long as at rest: skin does not stretch that far, but what runs from one lip to the other does. Wide open, the corners
themselves stretch as much. Handles are what makes the mesh less simple than a disc.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from report import save, table
from torch import Tensor

from nphm_track._runtime import prepare_torch
from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.carry import MeshCarrier
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.mesh import edges_of, extract_canonical
from nphm_track.tracking.run_folder import read_run

POSES = {
    "jaw .5": {"jawOpen": 0.5},
    "jaw .9": {"jawOpen": 0.9},
    "smile": {"jawOpen": 0.3, "mouthSmile_L": 0.6, "mouthSmile_R": 0.6},
    "cheeks": {"jawOpen": 0.43, "cheekPuff_L": 0.28, "cheekPuff_R": 0.3},
}
STRETCH, LEAST = 4.0, 4e-4
"""Times its length at rest that an edge may have, and metres that it is taken to have at least."""


def lengths(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> NDArray[np.floating]:
    """[F, 3] of the edges of faces."""
    return np.linalg.norm(vertices[faces] - vertices[np.roll(faces, 1, 1)], axis=-1)


def webs(model: NphmDecoder, z_id: Tensor) -> tuple[list[float], int]:
    """Area (mm^2) of webs in each of ``POSES``, and the handles of the mesh."""
    mesh = extract_canonical(model, z_id)
    faces, carrier = mesh.faces, MeshCarrier(model, mesh, z_id)
    handles = (1 - len(mesh.vertices) + len(edges_of(faces)) - len(faces)) // 2
    about_lips = np.isin(faces, carrier.lips.index.cpu().numpy()).any(1)

    def posed(weights: dict[str, float]) -> NDArray[np.floating]:
        e = torch.zeros(len(model.config.expression_names))
        for name, value in weights.items():
            e[model.config.expression_names.index(name)] = value
        return (carrier(model.expression_basis @ e).posed.points * MODEL_UNIT).numpy()

    rest = np.maximum(lengths(posed({}), faces), LEAST)
    areas = []
    for weights in POSES.values():
        vertices = posed(weights)
        web = about_lips & (lengths(vertices, faces) > STRETCH * rest).any(1)
        a, b, c = vertices[faces[web]].swapaxes(0, 1)
        areas.append(float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum()) / 2 * 1e6)
    return areas, handles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    prepare_torch()
    model = load_head_model()
    found = {run.name: webs(model, torch.from_numpy(np.array(read_run(run).track.z_id))) for run in args.runs}
    rows = [[name, *(f"{a:.0f}" for a in areas), str(handles)] for name, (areas, handles) in found.items()]
    mean = np.mean([areas for areas, _ in found.values()], 0)
    rows.append(["mean", *(f"{a:.1f}" for a in mean), f"{np.mean([h for _, h in found.values()]):.1f}"])
    text = table(["head", *(f"{pose} (mm2)" for pose in POSES), "handles"], rows)
    save(args.out, "lips", {name: [*areas, handles] for name, (areas, handles) in found.items()}, text)


if __name__ == "__main__":
    main()
