"""Webs of skin in open mouths: the area of what joins the lips although it should not, for the heads of runs.

A head is meshed, then posed with open mouths. A triangle of the lips counts when one of its edges is four times as long
as at rest: skin does not stretch that far, but what runs from one lip to the other does. Wide open, the corners
themselves stretch as much. Handles are what makes the mesh less simple than a disc.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.harness import Out, Report, table
from nphm_track._runtime import prepare_torch
from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.carry import MeshCarrier
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.editing import expression_code
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.mesh import edges_of, extract_canonical
from nphm_track.tracking.run_folder import read_run

POSES = {
    "jaw 0.5": {"jawOpen": 0.5},
    "jaw 0.9": {"jawOpen": 0.9},
    "smile": {"jawOpen": 0.3, "mouthSmile": 0.6},
    "cheeks": {"jawOpen": 0.43, "cheekPuff": 0.29},
}
STRETCH, LEAST = 4.0, 4e-4
"""Times its length at rest that an edge may have, and metres that it is taken to have at least."""


Runs = Annotated[list[Path], typer.Option("--run", help="A finished run; may be given again.")]


def run(runs: Runs, out: Out) -> Report:
    """Areas in each of ``POSES``, mm^2, and handles."""
    prepare_torch()
    model = load_head_model()
    found = {path.name: webs(model, torch.from_numpy(np.array(read_run(path).track.z_id))) for path in runs}
    rows = [[name, *figures] for name, figures in found.items()]
    rows.append(["mean", *np.mean(list(found.values()), 0).tolist()])
    return Report(found, [table(["head", *(f"{pose} (mm2)" for pose in POSES), "handles"], rows)])


def webs(model: NphmDecoder, z_id: Tensor) -> list[float]:
    mesh = extract_canonical(model, z_id)
    faces, carrier = mesh.faces, MeshCarrier(model, mesh, z_id)
    about_lips = np.isin(faces, carrier.lips.index.cpu().numpy()).any(1)

    def posed(weights: dict[str, float]) -> NDArray[np.floating]:
        return (carrier(expression_code(model, weights)).posed.points * MODEL_UNIT).numpy()

    rest = np.maximum(lengths(posed({}), faces), LEAST)
    areas = []
    for weights in POSES.values():
        vertices = posed(weights)
        web = about_lips & (lengths(vertices, faces) > STRETCH * rest).any(1)
        a, b, c = vertices[faces[web]].swapaxes(0, 1)
        areas.append(float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum()) / 2 * 1e6)
    return [*areas, (1 - len(mesh.vertices) + len(edges_of(faces)) - len(faces)) // 2]


def lengths(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> NDArray[np.floating]:
    """[F, 3] of the edges of faces."""
    return np.linalg.norm(vertices[faces] - vertices[np.roll(faces, 1, 1)], axis=-1)
