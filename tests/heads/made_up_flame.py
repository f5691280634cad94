"""Heads of FLAME's and GNM's layout, made from the template: their vertices are the middles of its quads."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csc_matrix
from scipy.spatial import Delaunay

from nphm_track.heads.template import Template, sphere

SHAPES, EXPRESSIONS = 6, ("browInnerUp_L", "mouthSmile_L", "mouthSmile_R", "mouthPucker", "eyeBlink_L", "mouthFunnel")
SHIFT = np.array([0.003, -0.02, 0.01])
"""Metres from head space to the models' origin."""


def layout(template: Template) -> dict[str, Any]:
    """FLAME's arrays: a jaw that turns the chin, 300 shapes of which few are used, and the rest of zeros."""
    quads = template.quads
    quads = quads[(quads < template.parts["head"][1]).all(1) & (quads[:, 3] >= 0)][::2]
    middle = lambda values: values[..., quads, :].mean(-2)  # noqa: E731
    skin = template.neutral.astype(float)
    v = middle(skin) + SHIFT
    identity = middle(template.identity[:SHAPES])
    names = [template.expression_names.index(name) for name in EXPRESSIONS]
    expression = 0.3 * middle(template.expression[names])
    shapes = np.zeros((len(v), 3, 300 + len(EXPRESSIONS)))
    shapes[..., :SHAPES], shapes[..., 300:] = np.moveaxis(identity, 0, -1), np.moveaxis(expression, 0, -1)
    opened = np.linalg.norm(middle(template.expression[template.expression_names.index("jawOpen")]), axis=-1)
    jaw = np.clip(opened / np.quantile(opened, 0.99), 0, 1)
    weights = np.zeros((len(v), 5))
    weights[:, 2], weights[:, 1] = jaw, 1 - jaw
    eyes = [sphere(skin[template.part(f"eye_{side}")])[0] + SHIFT for side in ("left", "right")]
    joints = np.array([[0, -0.1, -0.02], [0, -0.05, -0.02], [0, -0.01, 0.0], *eyes])
    near = np.argsort(np.linalg.norm(v[:, None] - joints[None], axis=-1), axis=0)[:8].T
    regressor = np.zeros((5, len(v)))
    for j, picked in enumerate(near):  # weights that give the joint and sum to 1
        A = np.vstack([v[picked].T, np.ones(8)])
        regressor[j, picked] = np.linalg.lstsq(A, np.r_[joints[j], 1], rcond=None)[0]
    flat = np.c_[np.arctan2(v[:, 0], v[:, 2]), v[:, 1]]
    faces = Delaunay(flat).simplices
    corners = flat[faces]
    (ax, ay), (bx, by) = (corners[:, 1] - corners[:, 0]).T, (corners[:, 2] - corners[:, 0]).T
    faces = np.where((ax * by - ay * bx < 0)[:, None], faces[:, [0, 2, 1]], faces)
    return {
        "v_template": v, "shapedirs": shapes, "posedirs": np.zeros((len(v), 3, 36)), "J_regressor": regressor,
        "weights": weights, "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]]),
        "f": faces.astype(np.uint32),
    }  # fmt: skip


def write_flame(folder: Path, template: Template) -> tuple[Path, Path]:
    """``flame.npz`` and ``flame.pkl``, whose regressor is sparse."""
    arrays = layout(template)
    np.savez(folder / "flame.npz", **arrays)
    stored = arrays | {"J_regressor": csc_matrix(arrays["J_regressor"]), "bs_style": "lbs"}
    (folder / "flame.pkl").write_bytes(pickle.dumps(stored, protocol=2))
    return folder / "flame.npz", folder / "flame.pkl"


def write_gnm(folder: Path, template: Template) -> Path:
    """``gnm_head.npz``, in centimetres; it has no jaw."""
    a = layout(template)
    n, cm = len(a["v_template"]), 100
    shapes = np.moveaxis(a["shapedirs"], -1, 0)
    joints = (a["J_regressor"] @ a["v_template"])[[0, 1, 3, 4]]
    weights = np.zeros((4, n))
    weights[1] = 1
    np.savez(
        folder / "gnm_head.npz",
        version="3.0", variant="head",
        template_vertex_positions=cm * a["v_template"], vertex_identity_basis=cm * shapes[:SHAPES],
        expression_basis=cm * shapes[300:], template_joint_positions=cm * joints,
        joint_identity_basis=np.zeros((SHAPES, 4, 3)), joint_parent_indices=np.array([-1, 0, 1, 1]),
        skinning_weights=weights, pose_correctives_regressor=np.zeros((36, 3 * n)), triangles=a["f"],
        joint_names=np.array(["neck", "head", "left_eye", "right_eye"]),
    )  # fmt: skip
    return folder / "gnm_head.npz"
