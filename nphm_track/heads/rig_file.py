"""``rig.npz``: the rig of one person, made once and used by all takes of the same identity code.

It holds ``neutral`` [V, 3], ``names`` [K] and ``shapes`` [K, V, 3] (displacements at weight 1); of the left and the
right eye ``eye_centre`` [2, 3], ``eye_radius`` [2] and ``eye_axis`` [2, 3]; and the correctives: ``corrective_vertex``
[N], ``correctives`` [C, N, 3] (orthonormal displacements of those vertices) and ``probes`` [P], places among the N.
Lengths are metres, head space. ``key`` tells whom and which models it was made of.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import InputError
from nphm_track.files.reading import Arrays, finite_array, reading
from nphm_track.heads.correctives import Correctives
from nphm_track.heads.rig import Rig
from nphm_track.heads.template import DEFAULT, Template
from nphm_track.heads.wrap import Eyeball
from nphm_track.models import resolve, sha256

VERSION = 1
"""Of the file and of how rigs are made; another one makes the rigs of earlier versions void."""


@dataclass(frozen=True)
class PersonRig:
    """A rig and what it lacks of the network's deformation."""

    rig: Rig
    correctives: Correctives


def rig_key(z_id: NDArray[np.floating], head_model: str) -> str:
    """What a rig depends on: identity code [D_id], SHA-256 of the head model and of the template, ``VERSION``."""
    code = np.ascontiguousarray(z_id, "<f4").tobytes()
    return hashlib.sha256(f"{VERSION} {head_model} {sha256(resolve(DEFAULT))} ".encode() + code).hexdigest()


def save_rig(path: Path, person: PersonRig, key: str) -> None:
    """Write the file. Raises OSError."""
    rig, correctives = person.rig, person.correctives
    arrays = {
        "key": np.array(key),
        "neutral": rig.neutral,
        "names": np.array(rig.names),
        "shapes": rig.shapes,
        "eye_centre": np.stack([eye.centre for eye in rig.eyes]),
        "eye_radius": np.array([eye.radius for eye in rig.eyes]),
        "eye_axis": np.stack([eye.axis for eye in rig.eyes]),
        "corrective_vertex": correctives.index,
        "correctives": correctives.basis,
        "probes": correctives.probes,
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(values, order="C"), allow_pickle=False)


def load_rig(path: Path, template: Template, key: str | None = None) -> PersonRig:
    """Read the file. Raises InputError when it is missing, damaged, or was made of something else than ``key``."""
    with reading(path, "the rig of a head"), Arrays(path) as file:
        if key is not None and str(file["key"]) != key:
            raise InputError(f"{path} is the rig of another identity, or was made by another version")
        vertices, shapes = len(template.neutral), len(template.expression_names)
        if tuple(file["names"].tolist()) != template.expression_names:
            raise ValueError("it has other shapes than the template")
        centre, axis = (finite_array(file[f"eye_{name}"], (2, 3), np.float32) for name in ("centre", "axis"))
        radius = finite_array(file["eye_radius"], (2,), np.float64)
        left, right = (Eyeball(centre[i], float(radius[i]), axis[i]) for i in (0, 1))
        rig = Rig(
            template,
            finite_array(file["neutral"], (vertices, 3), np.float32),
            finite_array(file["shapes"], (shapes, vertices, 3), np.float32),
            (left, right),
        )
        index = finite_array(file["corrective_vertex"], (None,), np.int64)
        basis = finite_array(file["correctives"], (None, len(index), 3), np.float32)
        probes = finite_array(file["probes"], (None,), np.int64)
        for places, size in ((index, template.skin_size), (probes, len(index))):
            if places.size and not 0 <= places.min() <= places.max() < size:
                raise ValueError("it has correctives of vertices that are not there")
    return PersonRig(rig, Correctives(index, basis, probes))
