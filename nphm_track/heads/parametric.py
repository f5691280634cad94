"""Public parametric heads with skinning, FLAME's and Google's GNM, from the user's own model file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nphm_track.errors import ModelError
from nphm_track.files.pickled_arrays import read_pickled_arrays
from nphm_track.files.reading import Arrays, finite_array, reading

FLAME_JOINTS = ("root", "neck", "jaw", "eye_left", "eye_right")
FLAME_SHAPES = 300
"""Of ``shapedirs``, those of identity; expressions follow."""
FLAME_ARRAYS = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table", "f")
GNM_ARRAYS = (
    "template_vertex_positions", "vertex_identity_basis", "expression_basis", "template_joint_positions",
    "joint_identity_basis", "joint_parent_indices", "skinning_weights", "pose_correctives_regressor", "triangles",
    "joint_names",
)  # fmt: skip
Array = NDArray[np.float64]


@dataclass(frozen=True)
class ParametricHead:
    """A head that is linear in identity and expression, and skinned to joints. y is up, the face looks along +z.

    Attributes:
        template: [V, 3] in the model's unit.
        shape, expression: [V, 3, S] and [V, 3, E], displacements for weights N(0, 1).
        joints, joint_shape, joint_expression: [J, 3], [J, 3, S], [J, 3, E] where the joints are.
        parents: [J] of each joint the one it hangs on, before it; the first has none.
        weights: [V, J] of skinning.
        correctives: [V, 3, 9 C] displacements for the entries of the last C joints' rotations, less the identity.
        faces: [F, 3].
        joint_names: J names; eyes and the jaw are known by theirs.
    """

    template: Array
    shape: Array
    expression: Array
    joints: Array
    joint_shape: Array
    joint_expression: Array
    parents: tuple[int, ...]
    weights: Array
    correctives: Array
    faces: NDArray[np.int64]
    joint_names: tuple[str, ...]

    def joint(self, *words: str) -> int | None:
        """The first joint whose name has all the words."""
        return next((j for j, name in enumerate(self.joint_names) if all(w in name.lower() for w in words)), None)

    def of(self, shape: Array, vertices: NDArray[np.int64]) -> ParametricHead:
        """One person's head, of some of the vertices alone: without shapes of identity, and quick to pose."""
        return replace(
            self,
            template=self.template[vertices] + self.shape[vertices] @ shape,
            shape=self.shape[vertices, :, :0],
            expression=self.expression[vertices],
            joints=self.joints + self.joint_shape @ shape,
            joint_shape=self.joint_shape[..., :0],
            weights=self.weights[vertices],
            correctives=self.correctives[vertices],
        )

    @cached_property
    def skin(self) -> NDArray[np.int64]:
        """The vertices of the largest connected piece: no eyeballs, teeth or tongue."""
        edges = self.faces[:, [0, 1, 1, 2]].reshape(-1, 2)
        pieces = trimesh.graph.connected_components(edges, min_len=3)
        return np.sort(max(pieces, key=len))

    def posed(self, shape: Array, expression: Array, turns: Array) -> Array:
        """Vertices [V, 3] in the model's unit, with joints turned by rotation vectors [J, 3] (radians).

        Linear blend skinning as SMPL has it: joints move with identity (and expression, in FLAME), correctives with
        the rotations.
        """
        rotations = Rotation.from_rotvec(turns).as_matrix()
        joints = self.joints + self.joint_shape @ shape + self.joint_expression @ expression
        rest = self.template + self.shape @ shape + self.expression @ expression
        rest = rest + self.correctives @ (rotations - np.eye(3))[-self.correctives.shape[-1] // 9 :].ravel()
        whole, shifts = np.empty_like(rotations), np.empty_like(joints)
        for j, parent in enumerate(self.parents):
            whole[j] = rotations[j] if j == 0 else whole[parent] @ rotations[j]
            origin = joints[0] if j == 0 else whole[parent] @ joints[j] + shifts[parent]
            shifts[j] = origin - whole[j] @ joints[j]
        turned = np.einsum("jab,vb->vja", whole, rest) + shifts
        return np.asarray((self.weights[..., None] * turned).sum(1))


def read_flame(path: Path) -> ParametricHead:
    """FLAME 2020 or 2023, ``.npz`` or its own ``.pkl``, which is read without running it. Raises ModelError."""
    with reading(path, "a FLAME model", ModelError):
        m = _arrays(path, FLAME_ARRAYS)
        n, joints = len(m["v_template"]), len(FLAME_JOINTS)
        template = finite_array(m["v_template"], (None, 3))
        shapes = finite_array(m["shapedirs"], (n, 3, None))
        if shapes.shape[-1] <= FLAME_SHAPES:
            raise ValueError(f"{shapes.shape[-1]} shapes instead of {FLAME_SHAPES} and expressions")
        regressor = finite_array(m["J_regressor"], (joints, n))
        moved = np.einsum("jv,vdk->jdk", regressor, shapes)
        return ParametricHead(
            template=template,
            shape=shapes[..., :FLAME_SHAPES],
            expression=shapes[..., FLAME_SHAPES:],
            joints=regressor @ template,
            joint_shape=moved[..., :FLAME_SHAPES],
            joint_expression=moved[..., FLAME_SHAPES:],
            parents=_parents(m["kintree_table"][0], joints),
            weights=finite_array(m["weights"], (n, joints)),
            correctives=finite_array(m["posedirs"], (n, 3, 9 * (joints - 1))),
            faces=_faces(m["f"], n),
            joint_names=FLAME_JOINTS,
        )


def read_gnm(path: Path) -> ParametricHead:
    """Google's GNM Head, version 3, ``gnm_head.npz``. Raises ModelError."""
    with reading(path, "a GNM Head model", ModelError):
        m = _arrays(path, GNM_ARRAYS)
        n, names = len(m["template_vertex_positions"]), tuple(str(name) for name in m["joint_names"])
        joints = len(names)
        identity = finite_array(m["vertex_identity_basis"], (None, n, 3))
        expression = finite_array(m["expression_basis"], (None, n, 3))
        corrected = finite_array(m["pose_correctives_regressor"], (9 * joints, 3 * n))
        return ParametricHead(
            template=finite_array(m["template_vertex_positions"], (n, 3)),
            shape=np.moveaxis(identity, 0, -1),
            expression=np.moveaxis(expression, 0, -1),
            joints=finite_array(m["template_joint_positions"], (joints, 3)),
            joint_shape=np.moveaxis(finite_array(m["joint_identity_basis"], (len(identity), joints, 3)), 0, -1),
            joint_expression=np.zeros((joints, 3, len(expression))),
            parents=_parents(m["joint_parent_indices"], joints),
            weights=finite_array(m["skinning_weights"], (joints, n)).T,
            correctives=np.moveaxis(corrected.reshape(-1, n, 3), 0, -1),
            faces=_faces(m["triangles"], n),
            joint_names=names,
        )


def _arrays(path: Path, names: tuple[str, ...]) -> Mapping[str, NDArray[Any]]:
    """Those arrays of an ``.npz`` or a pickle. Raises KeyError when one is missing."""
    if path.suffix.lower() == ".npz":
        with Arrays(path) as file:
            return {name: file[name] for name in names}
    content = read_pickled_arrays(path)
    return {name: content[name] for name in names}


def _parents(values: NDArray[Any], joints: int) -> tuple[int, ...]:
    found = [int(v) for v in values]
    if len(found) != joints or any(not 0 <= parent < j for j, parent in enumerate(found) if j):
        raise ValueError("its joints do not hang on one another")
    return (-1, *found[1:])


def _faces(values: NDArray[Any], n: int) -> NDArray[np.int64]:
    faces = np.asarray(values, np.int64)
    if faces.ndim != 2 or faces.shape[1] != 3 or not len(faces) or faces.min() < 0 or faces.max() >= n:
        raise ValueError("its triangles name vertices that are not there")
    return faces
