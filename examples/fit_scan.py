"""Fit a head to a scan, then let the scan smile.

    python examples/fit_scan.py scan.ply fitted
    python examples/fit_scan.py scan.ply fitted --landmarks points.json     # when the face is not found by itself

Beside what ``nphm-track fit-scan`` writes: ``neutral.ply``, ``smile.ply`` and ``open.ply``, the fitted person with
other expressions, in the scan's own coordinates and unit, all with the same vertices and faces.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import NphmTrackError
from nphm_track.heads.carry import MeshCarrier
from nphm_track.heads.editing import expression_code
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.mesh import extract_canonical
from nphm_track.rendering.ply import write_ply
from nphm_track.rigid import Similarity
from nphm_track.scans.fitting import FitOptions, fit_scan

EXPRESSIONS: dict[str, dict[str, float]] = {
    "neutral": {},
    "smile": {"mouthSmileLeft": 0.9, "mouthSmileRight": 0.9, "cheekSquintLeft": 0.4, "cheekSquintRight": 0.4},
    "open": {"jawOpen": 0.8},
}


def write_expressions(folder: Path, detail: float = 1.0) -> None:
    """A mesh for each of ``EXPRESSIONS`` from the ``codes.npz`` in ``folder``; ``detail`` scales the grid's density."""
    codes = np.load(folder / "codes.npz", allow_pickle=False)
    to_scan = Similarity(float(codes["scale"]), codes["R"], codes["t"])
    model = load_head_model()
    z_id = torch.from_numpy(codes["z_id"])
    mesh = extract_canonical(model, z_id, detail=detail)
    carry = MeshCarrier(model, mesh, z_id)
    for name, weights in EXPRESSIONS.items():
        head = carry(expression_code(model, weights)).posed.points.numpy() * MODEL_UNIT  # metres, head space
        write_ply(folder / f"{name}.ply", to_scan(head), mesh.faces)
        print(folder / f"{name}.ply")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--landmarks", type=Path, help="known landmarks, see nphm-track fit-scan --help")
    arguments = parser.parse_args()
    try:
        summary = fit_scan(arguments.scan, arguments.out, options=FitOptions(landmarks=arguments.landmarks))
    except NphmTrackError as error:
        parser.exit(error.exit_code, f"{error}\n")
    print(f"median {summary['median_mm']:.2f} mm from the face of the scan, whose unit is {summary['unit']}")
    write_expressions(arguments.out)


if __name__ == "__main__":
    main()
