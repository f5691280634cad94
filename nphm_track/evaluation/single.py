"""One head against one scan: a mesh of any origin, a frame of a run, or a photo that is tracked for it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nphm_track.errors import InputError
from nphm_track.evaluation.points7 import UNITS, read_points7, unit_of
from nphm_track.evaluation.predict import HeadReader, Mesh7
from nphm_track.evaluation.results import provenance, provenance_text, table
from nphm_track.evaluation.scan import Scan
from nphm_track.heads.loading import DEFAULT
from nphm_track.scans.reading import read_scan
from nphm_track.tracking.records import Status
from nphm_track.tracking.run_folder import Run

LABELS = {
    "median": "scan to mesh, median mm",
    "mean": "scan to mesh, mean mm",
    "std": "scan to mesh, std mm",
    "p90": "scan to mesh, 90th percentile mm",
    "mesh_to_scan_mean": "mesh to scan, mean mm",
    "mesh_to_scan_median": "mesh to scan, median mm",
    "chamfer_l1": "both directions, mean mm",
    "chamfer_l2": "both directions, mean square mm²",
    "normal_consistency": "normal consistency",
    "recall_1mm": "scan within 1 mm",
    "recall_2p5mm": "scan within 2.5 mm",
    "completeness": "scan within 5 mm of the mesh's inside",
    "landmark_rms": "seven points, RMS mm",
    "scale": "scale",
}


def load_scan(scan: Path, points7: Path) -> Scan:
    """A scan and its points in m, cm or mm. Raises InputError when they are no scan of a face."""
    known, geometry = read_points7(points7), read_scan(scan)
    if geometry.faces is None:
        raise InputError(f"{scan.name} is a point cloud; this measure needs a mesh")
    metres = UNITS[unit_of(known.points)]
    tip = None if known.nose_tip is None else known.nose_tip * metres
    return Scan(geometry.vertices * metres, geometry.faces, known.points * metres, tip)


def load_mesh(mesh: Path, points7: Path) -> Mesh7:
    """A predicted mesh and its points in m, cm or mm, as metres. Raises InputError when they are no head."""
    points, geometry = read_points7(points7).points, read_scan(mesh)
    if geometry.faces is None:
        raise InputError(f"{mesh.name} has no faces")
    metres = UNITS[unit_of(points)]
    return Mesh7(
        (geometry.vertices * metres).astype(np.float32),
        geometry.faces.astype(np.int32),
        (points * metres).astype(np.float32),
    )


def head_of_run(run: Run, frame: int | None = None) -> Mesh7:
    """The posed head of a frame, by its number in the clip; left out, of the most confident one that is tracked."""
    track = run.track
    if frame is None:
        row = int(np.argmax(np.where(track.status == Status.TRACKED, track.confidence, -1)))
    elif not len(found := np.flatnonzero(track.frame == frame)):
        raise InputError(f"{run.path} has no frame {frame}; it has {track.frame[0]} to {track.frame[-1]}")
    else:
        row = int(found[0])
    head_model = str(run.info.options.get("head_model", DEFAULT))
    return HeadReader(head_model).of(run, row, ("posed",))["posed"]


def measure(truth: Scan, head: Mesh7, *, command: str, models: dict[str, str], **described: Any) -> dict[str, Any]:
    """Errors after alignment with and without scale, as JSON values; ``described`` names what was compared."""
    error = truth.error(head.vertices, head.faces, head.points7)
    return {
        "protocol": "scan error",
        **provenance(command, models),
        **{key: None if value is None else str(value) for key, value in described.items()},
        "similarity": asdict(error.similarity),
        "rigid": asdict(error.rigid),
    }


def measures_table(facts: dict[str, Any]) -> str:
    rows = [[label, facts["similarity"][name], facts["rigid"][name]] for name, label in LABELS.items()]
    return table(["measure", "aligned with scale", "without"], rows)


def markdown(facts: dict[str, Any]) -> str:
    return "\n\n".join([f"# {facts['scan']}", provenance_text(facts), measures_table(facts)])
