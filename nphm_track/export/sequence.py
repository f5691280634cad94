"""One mesh file a frame, for formats that know neither animation nor cameras."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nphm_track.export.frames import canonical, frame_names, image_name, present_rows, vertices
from nphm_track.export.manifest import write_manifest
from nphm_track.export.options import ExportOptions
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.run_folder import Run


def write_sequence(
    run: Run,
    folder: Path,
    options: ExportOptions,
    progress: Progress,
    format: str,
    write_mesh: Callable[[Path, Any, Any], None],
) -> None:
    """Write each frame's head, in the camera-fixed world, as ``<name>.<format>`` and the manifest."""
    track, rows, faces = run.track, present_rows(run), canonical(run)[1]
    names, frames = frame_names(track), []
    progress.stage(format, len(rows))
    for row, points in vertices(run, rows):
        R, t = options.head_pose(track.R[row], track.t[row])
        name = f"{names[row]}.{format}"
        write_mesh(folder / name, options.points(points) @ R.T + t, faces)
        facts = {"file": name, "frame": int(track.frame[row]), "time": float(track.time[row])}
        frames.append(facts | image_name(track, row))
        progress.advance()
    write_manifest(folder, run, format, options, world="camera-fixed", frames=frames)
