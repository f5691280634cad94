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
from scipy.spatial.transform import Rotation

from nphm_track.errors import InputError, ModelError
from nphm_track.export.frames import canonical, present_rows, vertices
from nphm_track.export.manifest import GENERATOR
from nphm_track.export.options import ExportOptions
from nphm_track.heads.parametric import ParametricHead, read_flame, read_gnm
from nphm_track.heads.parametric_fit import Person, Pose, fit_person, fit_pose
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
    model = read_flame(file) if flame else read_gnm(file)
    try:
        person = fit_person(model, template, canonical(run)[0])
    except (ValueError, np.linalg.LinAlgError) as error:
        raise ModelError(f"{file} cannot be laid on a head ({error})") from None
    if flame and person.unit != 1:
        raise ModelError(f"{file} is no FLAME model in metres: its eyes are too far apart or too near")

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
    values = _flame(model, person, poses, R, t) if flame else _gnm(person, poses, R, t)
    with open(target, "wb") as stream:
        np.savez(stream, **{"nphm_track": np.array(GENERATOR), **described, **values})


def _world(person: Person, R: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations [T, 3, 3] and shifts [T, 3] from the model, in metres, to the world."""
    return R @ person.R, R @ person.t + t


def _flame(model: ParametricHead, person: Person, poses: list[Pose], R: np.ndarray, t: np.ndarray) -> dict[str, Any]:
    turned, shift = _world(person, R, t)
    expression = np.array([pose.expression for pose in poses])
    turns = np.array([pose.turns for pose in poses])
    root = model.joints[0] + model.joint_shape[0] @ person.shape + expression @ model.joint_expression[0].T
    about_root = shift + (turned @ root[..., None])[..., 0] - root  # FLAME turns about its first joint, then shifts
    left, right = model.joint("eye", "left"), model.joint("eye", "right")
    values = {
        "shape": person.shape,
        "expr": expression,
        "rotation": Rotation.from_matrix(turned).as_rotvec(),
        "translation": about_root,
        "neck_pose": turns[:, model.joint("neck")],
        "jaw_pose": turns[:, model.joint("jaw")],
        "eyes_pose": np.concatenate([turns[:, left], turns[:, right]], 1),
    }
    return {name: value.astype(np.float32) for name, value in values.items()}


def _gnm(person: Person, poses: list[Pose], R: np.ndarray, t: np.ndarray) -> dict[str, Any]:
    turned, shift = _world(person, R, t)
    values = {
        "identity": person.shape,
        "expression": np.array([pose.expression for pose in poses]),
        "joint_rotations": np.array([pose.turns for pose in poses]),
        "rotation": Rotation.from_matrix(turned).as_rotvec(),
        "translation": shift,
        "unit": np.array(person.unit),
    }
    return {name: value.astype(np.float32) for name, value in values.items()}
