"""PLY sequence: ``<name>.ply`` (binary) for each frame with a head, plus ``export.json`` with camera and times.

Vertices are in the camera-fixed world (see ``ExportOptions``); the run's own ``meshes`` are the same in head space.
All files share vertex order and faces. Lost frames have no file; the times tell where.
"""

from __future__ import annotations

from pathlib import Path

from nphm_track.export.options import ExportOptions
from nphm_track.export.sequence import write_sequence
from nphm_track.rendering.ply import write_ply
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.run_folder import Run


def write(run: Run, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write the sequence into the folder ``target``."""
    write_sequence(run, target, options, progress, "ply", write_ply)
