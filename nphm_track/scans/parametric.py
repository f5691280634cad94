"""A fitted scan in the parameters of FLAME or Google's GNM Head, with the user's own model file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.parametric_fit import fit_pose, flame_values, gnm_values, lay_on
from nphm_track.heads.registration import Registration
from nphm_track.heads.rig import open_rig
from nphm_track.heads.rig_weights import rig_weights


@dataclass(frozen=True)
class ParametricScan:
    """Parameters of a model and what they make.

    Attributes:
        values: by the names of ``export --format flame`` and ``gnm``; with x the model's head in metres, the scan is
            ``scale`` x.
        vertices, faces: [V, 3] in the scan's coordinates and [F, 3].
        residual_mm: mean distance of the model's skin from the fitted head.
    """

    values: dict[str, NDArray[np.floating]]
    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    residual_mm: float


def fit_model(file: Path, flame: bool, model: NphmDecoder, fitted: Registration) -> ParametricScan:
    """Fit the user's FLAME, or else GNM Head, to the head that ``model`` was registered with.

    Raises ModelError when the file is none, or the head has no rig to lay it on.
    """
    z_id, z_ex = (torch.from_numpy(code).to(model.mean_anchors.device) for code in (fitted.z_id, fitted.z_ex))
    rig = open_rig(model, fitted.z_id)
    theirs, person = lay_on(file, flame, rig.template, rig.neutral)
    pose = fit_pose(person, rig.vertices(rig_weights(rig, model, z_id, z_ex[None])[0]))
    scale = fitted.pose.scale
    R, t = np.asarray(fitted.pose.R)[None], np.asarray(fitted.pose.t)[None] / scale
    found = flame_values(theirs, person, [pose], R, t) if flame else gnm_values(person, [pose], R, t)
    values = {name: value if name in PER_PERSON else value[0] for name, value in found.items()}
    in_head = person.unit * theirs.posed(person.shape, pose.expression, pose.turns) @ person.R.T + person.t
    return ParametricScan(
        {**values, "scale": np.array(scale), "residual_mm": np.array(pose.residual_mm)},
        fitted.pose(in_head),
        theirs.faces,
        pose.residual_mm,
    )


PER_PERSON = ("shape", "identity", "unit")
"""Values that ``flame_values`` and ``gnm_values`` have once, not for each frame."""
