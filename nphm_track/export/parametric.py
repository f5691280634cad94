"""Parameters of FLAME or Google's GNM Head for a run, fitted to its heads with the user's own model file.

One ``.npz`` with the rows that have a head: identity once, the rest for each frame, in the camera-fixed world (y up,
metres), with ``residual_mm`` [T], the mean distance of the model's skin from the run's heads.

- FLAME, by VHAP's names: ``shape`` [S], ``expr`` [T, E], ``rotation``, ``translation``, ``jaw_pose``, ``neck_pose``
  [T, 3], ``eyes_pose`` [T, 6]; rotation vectors, about the model's own joints. The neck is left straight: a head that
  is seen alone does not tell how it is turned against the trunk.
- GNM: ``identity`` [S], ``expression`` [T, E], ``joint_rotations`` [T, J, 3], and ``rotation``, ``translation``
  [T, 3], which bring the vertices into the world: x = unit R(rotation) v + translation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nphm_track.errors import InputError
from nphm_track.export.frames import canonical, present_rows, vertices
from nphm_track.export.manifest import GENERATOR
from nphm_track.export.options import ExportOptions
from nphm_track.heads.parametric_fit import Pose, fit_pose, flame_values, gnm_values, lay_on
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.run_folder import Run
from nphm_track.tracking.surface import surface_of


def write(run: Run, target: Path, options: ExportOptions, progress: Progress) -> None:
    """Write the file ``target``. Raises InputError for a run without the template, ModelError for a damaged model."""
    template, track = surface_of(run).template, run.track
    if template is None:
        raise InputError(
            f"{run.path} has meshes of its own topology; models are fitted to those of --topology template"
        )
    flame = options.flame_model is not None
    file = options.flame_model or options.gnm_model
    assert file is not None, "formats.export asks for it"
    model, person = lay_on(file, flame, template, canonical(run)[0])

    rows = present_rows(run)
    poses: list[Pose] = []
    progress.stage("fit", len(rows))
    for row, points in vertices(run, rows):
        gaze = track.gaze[row] if len(track.gaze) else None
        poses.append(fit_pose(person, points, gaze, poses[-1] if poses else None))
        progress.advance()
    residual = np.array([pose.residual_mm for pose in poses], np.float32)
    progress.note(f"{residual.mean():.2f} mm from the run's heads, {person.residual_mm:.2f} mm at rest")
    R, t = options.head_pose(track.R[rows], track.t[rows])
    described: dict[str, Any] = {"frame": track.frame[rows], "time": track.time[rows], "residual_mm": residual}
    values = flame_values(model, person, poses, R, t) if flame else gnm_values(person, poses, R, t)
    with open(target, "wb") as stream:
        np.savez(stream, **{"nphm_track": np.array(GENERATOR), **described, **values})
