"""Wavefront OBJ sequence: ``<name>.obj`` for each frame with a head, plus ``export.json`` with camera and times.

Vertices are in the camera-fixed world (see ``ExportOptions``), so that the sequence lies under the clip seen through
the camera of ``export.json``. All files share vertex order and faces. Lost frames have no file; the times tell where.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nphm_track.export.manifest import GENERATOR
from nphm_track.export.options import ExportOptions
from nphm_track.export.sequence import write_sequence
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.run_folder import Run


def write(run: Run, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write the sequence into the folder ``target``."""
    write_sequence(run, target, options, progress, "obj", write_obj)


def write_obj(path: Path, vertices: NDArray[np.float64], faces: NDArray[np.int32]) -> None:
    """One triangle mesh; vertices [V, 3] with nine digits, which float32 survives, faces [F, 3] from 0."""
    lines = [f"# {GENERATOR}"]
    lines += [f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in vertices.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (faces + 1).tolist()]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
