"""Parameters of a public head model for a person's rigged template and its motion.

Which vertex of the model is which of the template is not known. The model is laid on the neutral head by its eyes,
then by closest points, whose distance along the normal counts; identity and pose are solved together. Where the
model's vertices come to lie, they stay: every frame is then a fit of known points, a Gauss-Newton for expression and
jaw. Identity and expression have the models' own prior, N(0, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from trimesh.triangles import points_to_barycentric

from nphm_track.errors import ModelError
from nphm_track.heads.parametric import Array, ParametricHead, read_flame, read_gnm
from nphm_track.heads.rig import SIDES, looking_along
from nphm_track.heads.template import Template, sphere
from nphm_track.rendering.rasteriser import vertex_normals
from nphm_track.rendering.surface import Surface
from nphm_track.robust import geman_mcclure

NOISE, INDEPENDENT = 0.001, 500
"""Metres that a template's surface is uncertain, and how many points of it know something of their own."""
SLIDE = 0.1
"""How much a distance along the surface counts beside one along the normal."""
KERNEL = (0.015, 0.003)
"""Metres: scale of the robust kernel in the first and the last step of the registration."""
STEPS, FRAME_STEPS, POINTS = 15, 4, 2000
FACING = 0.5
"""Cosine between normals below which the closest point is on the other side of something."""
JAW_SPREAD = 0.2
"""Radians."""
NO_SHAPE = np.zeros(0)


@dataclass(frozen=True)
class Person:
    """A model laid on a person's neutral head: x_head = unit R x_model + t.

    Attributes:
        shape: [S] weights of identity.
        unit: metres in the model's unit.
        R, t: [3, 3] and [3] in metres.
        model: the person's own, of those N vertices that have a place on the head.
        corners, shares: [N, 3] the place: vertices of the head and how much of each.
        weight: [N] how far that place is believed, 0..1.
        residual_mm: median distance of these vertices from the neutral head's surface.
    """

    shape: Array
    unit: float
    R: Array
    t: Array
    model: ParametricHead
    corners: NDArray[np.int64]
    shares: Array
    weight: Array
    residual_mm: float

    def in_model(self, head: NDArray[np.floating]) -> Array:
        """The places [N, 3] of the model's vertices on a head [V, 3] (metres, head space), in the model's unit."""
        points = (np.asarray(head, np.float64)[self.corners] * self.shares[..., None]).sum(1)
        return np.asarray((points - self.t) @ self.R / self.unit)


@dataclass(frozen=True)
class Pose:
    """A frame: expression [E], rotation vectors [J, 3] of the joints, and the mean distance of the points, mm."""

    expression: Array
    turns: Array
    residual_mm: float


def lay_on(file: Path, flame: bool, template: Template, neutral: NDArray[np.floating]) -> tuple[ParametricHead, Person]:
    """The user's FLAME or else GNM Head, laid on a neutral head [V, 3]. Raises ModelError for one that cannot be."""
    model = read_flame(file) if flame else read_gnm(file)
    try:
        person = fit_person(model, template, neutral)
    except (ValueError, np.linalg.LinAlgError) as error:
        raise ModelError(f"{file} cannot be laid on a head ({error})") from None
    if flame and person.unit != 1:
        raise ModelError(f"{file} is no FLAME model in metres: its eyes are too far apart or too near")
    return model, person


def fit_person(model: ParametricHead, template: Template, neutral: NDArray[np.floating]) -> Person:
    """Lay ``model`` on the neutral head [V, 3] (metres, head space) of a person with the template's topology."""
    faces = template.faces[(template.faces < template.parts["head"][1]).all(1)]
    surface = Surface(neutral, faces)
    points = model.skin[:: max(1, round(len(model.skin) / POINTS))]
    shape, still = np.zeros(model.shape.shape[-1]), np.zeros((len(model.joints), 3))
    no_expression = np.zeros(model.expression.shape[-1])
    unit, t = _by_the_eyes(model, template, neutral)
    R = np.eye(3)
    for step in range(STEPS + 1):
        posed = model.posed(shape, no_expression, still)
        x = unit * posed @ R.T + t
        normals = vertex_normals(x, model.faces)[points]
        hits = surface.closest(x[points])
        scale = KERNEL[0] * (KERNEL[1] / KERNEL[0]) ** (step / STEPS)
        weight = geman_mcclure(torch.from_numpy(hits.distance**2), scale)[1].numpy()
        weight = weight * ((normals * hits.normal).sum(1) > FACING) * ~hits.on_border
        if step == STEPS:
            break
        arm = x[points] - t
        columns = [unit * np.einsum("ab,nbk->nak", R, model.shape[points])] if step > 2 else []  # the pose comes first
        columns += [-_cross(arm), np.broadcast_to(np.eye(3), (len(points), 3, 3))]
        A, b = np.concatenate(columns, 2), hits.point - x[points]
        along = (A * hits.normal[..., None]).sum(1), (b * hits.normal).sum(1)
        k = A.shape[-1] - 6
        prior = np.r_[np.ones(k), np.zeros(6)]
        rows = np.concatenate([along[0], SLIDE * A.reshape(-1, k + 6)])
        values = np.concatenate([along[1], SLIDE * b.ravel()])
        found = _solve(
            rows, values, np.concatenate([weight, np.repeat(weight, 3)]), prior, np.r_[shape[:k], np.zeros(6)]
        )
        shape[:k] += found[:k]
        R, t = Rotation.from_rotvec(found[k : k + 3]).as_matrix() @ R, t + found[k + 3 :]
    believed = weight > 0.05
    corners = surface.faces[hits.face[believed]]
    return Person(
        shape=shape,
        unit=unit,
        R=R,
        t=t,
        model=model.of(shape, points[believed]),
        corners=corners,
        shares=points_to_barycentric(np.asarray(neutral, np.float64)[corners], hits.point[believed]),
        weight=weight[believed],
        residual_mm=float(1000 * np.median(hits.distance[believed])),
    )


def fit_pose(
    person: Person, head: NDArray[np.floating], gaze: NDArray[np.floating] | None = None, start: Pose | None = None
) -> Pose:
    """Expression, jaw and eyes of one frame.

    Args:
        person: as ``fit_person`` made it.
        head: [V, 3] the person's head in this frame, metres, head space.
        gaze: [2, 3] unit vectors of the left and the right eye in head space; eyes look ahead where it is not finite.
        start: of a frame like this one.
    """
    model, goal, jaw = person.model, person.in_model(head), person.model.joint("jaw")
    expression = start.expression if start else np.zeros(model.expression.shape[-1])
    turns = np.zeros((len(model.joints), 3))
    if jaw is not None and start:
        turns[jaw] = start.turns[jaw]
    weight = np.repeat(person.weight, 3)
    for _ in range(FRAME_STEPS):
        x = model.posed(NO_SHAPE, expression, turns)
        columns, spread, now = [_turned(model, turns, jaw)], [np.ones(len(expression))], [expression]
        if jaw is not None:
            columns.append(_jaw_columns(model, expression, turns, jaw, x))
            spread.append(np.full(3, JAW_SPREAD))
            now.append(turns[jaw])
        A = person.unit * np.concatenate(columns, 2).reshape(len(weight), -1)
        found = _solve(A, person.unit * (goal - x).ravel(), weight, np.concatenate(spread) ** -2, np.concatenate(now))
        expression = expression + found[: len(expression)]
        if jaw is not None:
            turns[jaw] += found[len(expression) :]
    off = np.linalg.norm(goal - model.posed(NO_SHAPE, expression, turns), axis=1)
    for side, direction in zip(SIDES, gaze if gaze is not None else (), strict=False):
        eye = model.joint("eye", side)
        if eye is not None and np.isfinite(direction).all():
            turns[eye] = Rotation.from_matrix(person.R.T @ looking_along(direction) @ person.R).as_rotvec()
    return Pose(expression, turns, float(1000 * person.unit * np.average(off, weights=person.weight)))


def _world(person: Person, R: Array, t: Array) -> tuple[Array, Array]:
    """Rotations [T, 3, 3] and shifts [T, 3] from the model, in metres, to the world."""
    return R @ person.R, R @ person.t + t


def flame_values(
    model: ParametricHead, person: Person, poses: list[Pose], R: Array, t: Array
) -> dict[str, NDArray[np.float32]]:
    """FLAME's parameters by VHAP's names, of T frames whose heads are brought into a world by R [T, 3, 3], t [T, 3]."""
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


def gnm_values(person: Person, poses: list[Pose], R: Array, t: Array) -> dict[str, NDArray[np.float32]]:
    """GNM Head's parameters, with ``unit`` metres in its unit: x = unit R(rotation) v + translation."""
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


def _by_the_eyes(model: ParametricHead, template: Template, neutral: NDArray[np.floating]) -> tuple[float, Array]:
    """Metres in the model's unit, a power of ten, and the shift that brings its eyes to the head's."""
    ours = np.array([sphere(neutral[template.part(f"eye_{side}")][: template.eye_shell])[0] for side in SIDES])
    eyes = [eye for side in SIDES if (eye := model.joint("eye", side)) is not None]
    if len(eyes) < 2:
        raise ValueError("the model has no joints for the eyes")
    theirs = model.joints[eyes]
    ratio = np.linalg.norm(ours[0] - ours[1]) / np.linalg.norm(theirs[0] - theirs[1])
    unit = float(10.0 ** np.round(np.log10(ratio)))
    return unit, ours.mean(0) - unit * theirs.mean(0)


def _turned(model: ParametricHead, turns: Array, jaw: int | None) -> Array:
    """Directions [N, 3, E] of the expressions, turned with the jaw as the skin is."""
    if jaw is None:
        return model.expression
    share = model.weights[:, jaw][:, None, None]
    R = Rotation.from_rotvec(turns[jaw]).as_matrix()
    return np.asarray(((1 - share) * np.eye(3) + share * R) @ model.expression)


def _jaw_columns(
    model: ParametricHead, expression: Array, turns: Array, jaw: int, x: Array, small: float = 1e-4
) -> Array:
    """How vertices x [N, 3] move with the jaw's rotation vector, [N, 3, 3]."""
    moved = []
    for axis in range(3):
        other = turns.copy()
        other[jaw, axis] += small
        moved.append((model.posed(NO_SHAPE, expression, other) - x) / small)
    return np.stack(moved, -1)


def _solve(A: Array, b: Array, weight: Array, prior: Array, now: Array) -> Array:
    """The step that minimises the residuals (metres) beside the prior's pull of ``now`` towards 0."""
    w = weight * (INDEPENDENT / max(weight.sum(), 1e-9) / NOISE**2)
    H = A.T @ (w[:, None] * A) + np.diag(prior + 1e-9)
    return np.asarray(np.linalg.solve(H, A.T @ (w * b) - prior * now))


def _cross(x: Array) -> Array:
    """[N, 3, 3] such that ``_cross(x) @ r`` is x x r."""
    zero = np.zeros(len(x))
    a, b, c = x.T
    return np.stack([zero, -c, b, c, zero, -a, -b, a, zero], -1).reshape(-1, 3, 3)
