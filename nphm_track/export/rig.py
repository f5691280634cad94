"""A run in the template's topology as a rig that performs: named shapes, joints, and their values in every frame.

Shapes move skin and teeth: ARKit's by its names, those that it lacks, and correctives, the person's and one for the arc
of the jaw. Joints turn: the head by its pose, the eyes by their gaze; the jaw's goes along with the lower teeth, for
what is to be attached to it, and moves no vertex, since jawOpen does. Lengths are metres, head space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nphm_track.export.frames import vertices
from nphm_track.heads.correctives import CorrectedFrames
from nphm_track.heads.rig import Rig, eye_turn
from nphm_track.heads.rig_file import PersonRig
from nphm_track.heads.rig_weights import rig_weights
from nphm_track.heads.template import Template
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.run_folder import Run
from nphm_track.tracking.surface import model_of, person_of

JOINTS, PARENT = ("head", "jaw", "eye_left", "eye_right"), (-1, 0, 0, 0)
GROUPS = ("face", "head", "gums", "teeth", "eyes")
"""Polygons that share a tile of texture coordinates, and with it a material: the skin has two of them."""
CORRECTIVE = 0.02
"""Size of a corrective at weight 1: root of the sum of its squared displacements, metres."""
UNSEEN = 1e-5
"""Metres: displacements of correctives that are shorter are left out."""
SHARE = 0.999
"""Of the vertices of every frame, for which an error is told."""
Array = NDArray[np.float32]


@dataclass(frozen=True)
class RiggedTake:
    """vertices = joints(neutral + sum_k weights[k] targets[k]).

    Attributes:
        template: whose vertices these are.
        neutral: [V, 3].
        names: of the K targets: 52 of ARKit, then others.
        targets: [K, V, 3] displacements at weight 1.
        weights: [N, K] of the rows asked for: the run's own, which are now and then a little below 0 or above 1.
        places: [J, 3] of ``JOINTS`` at rest.
        turns, shifts: [N, J, 3, 3] and [N, J, 3] of the joints about their places, relative to the head; of the head
            itself, none.
        error: metres that ``SHARE`` of the vertices that are drawn are off by at most in every frame, and the largest.
    """

    template: Template
    neutral: Array
    names: tuple[str, ...]
    targets: Array
    weights: Array
    places: Array
    turns: Array
    shifts: Array
    error: tuple[float, float]

    @property
    def joint_of_vertex(self) -> NDArray[np.uint8]:
        """[V] place in ``JOINTS`` of the joint that turns a vertex."""
        out = np.zeros(len(self.neutral), np.uint8)
        for name in ("eye_left", "eye_right"):
            out[self.template.part(name)] = JOINTS.index(name)
        return out

    def tiles(
        self, polygons: NDArray[np.integer], uv: NDArray[np.integer]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Place in ``GROUPS`` [F] of polygons [F, 3 or 4], and coordinates in its tile of their corners ``uv``."""
        corners = self.template.uv[uv].astype(np.float64)
        tile = np.floor(corners[:, :3, 0].mean(1)).astype(np.int64)
        group = np.minimum(tile, GROUPS.index("head"))
        for g, name in enumerate(GROUPS[2:], start=2):
            parts = [i for i, part in enumerate(self.template.parts) if part.startswith(name.removesuffix("s"))]
            group[np.isin(self.template.part_of_vertex[polygons[:, 0]], parts)] = g
        return group, corners - np.stack([tile, 0 * tile], -1)[:, None]


def rigged_take(run: Run, rows: NDArray[np.int64], progress: Progress) -> RiggedTake:
    """The rig of a run's person and what it does in the frames of ``rows`` [N], which have a head.

    Raises InputError when the head model has changed.
    """
    person, own, gaze = rig_and_weights(run, rows)
    rig, correctives = person.rig, person.correctives
    shapes = rig.arkit_shapes()
    targets = np.stack(list(shapes.values()))
    weights = rig.arkit_weights(own)
    jaw = _jaw_corrective(rig)
    beside = np.zeros((len(correctives.basis), *rig.neutral.shape), np.float32)
    if len(beside):
        codes, code = torch.from_numpy(run.track.z_ex[rows]), torch.from_numpy(run.track.z_id)
        frames = CorrectedFrames(model_of(run), rig, code, codes, own, correctives)
        beside[:, : rig.template.skin_size] = CORRECTIVE * frames.spread
        beside[np.linalg.norm(beside, axis=2) < UNSEEN] = 0
    places, turns, shifts = _joints(rig, own, gaze)

    found, errors = np.empty((len(rows), len(beside)), np.float32), np.empty((len(rows), 2))
    bent = np.empty((len(rows), 1), np.float32)
    drawn, skin, mouth = np.unique(rig.faces), rig.template.skin_size, rig.template.mouth
    progress.stage("rig", len(rows))
    for i, (_, points) in enumerate(vertices(run, rows)):
        made = rig.neutral + np.tensordot(weights[i], targets, 1)
        missing = (points - made)[correctives.index]
        found[i] = np.tensordot(correctives.basis, missing, 2) / CORRECTIVE
        made[:skin] += np.tensordot(found[i], beside[:, :skin], 1)
        bent[i] = np.tensordot(jaw[mouth], (points - made)[mouth], 2) / (jaw[mouth] ** 2).sum()
        made[mouth] += bent[i] * jaw[mouth]
        for j, side in ((2, "eye_left"), (3, "eye_right")):
            eye = rig.template.part(side)
            made[eye] = (made[eye] - places[j]) @ turns[i, j].T + places[j]
        off = np.linalg.norm((made - points)[drawn], axis=1)
        errors[i] = np.quantile(off, SHARE), off.max()
        progress.advance()
    names = (*shapes, "corrective_jaw", *(f"corrective_{k:02d}" for k in range(len(beside))))
    largest = errors.max(0).tolist()
    return RiggedTake(
        rig.template,
        rig.neutral,
        names,
        np.concatenate([targets, jaw[None], beside]),
        np.concatenate([weights, bent, found], 1),
        places,
        turns,
        shifts,
        (largest[0], largest[1]),
    )


def rig_and_weights(run: Run, rows: NDArray[np.int64]) -> tuple[PersonRig, Array, Array]:
    """The rig of a run's person; its own weights [N, K] and where the eyes look [N, 2, 3] in the frames of ``rows``.

    Eyes of a run without gaze look straight ahead. Raises InputError when the head model has changed.
    """
    person, model, track = person_of(run), model_of(run), run.track
    gaze = track.gaze[rows] if len(track.gaze) else None
    codes, code = torch.from_numpy(track.z_ex[rows]), torch.from_numpy(track.z_id)
    weights = rig_weights(person.rig, model, code, codes, gaze)
    ahead = np.broadcast_to(np.array([0, 0, 1], np.float32), (len(rows), 2, 3))
    return person, weights, ahead if gaze is None else gaze


def _jaw_corrective(rig: Rig) -> Array:
    """What a jaw that turns moves teeth, gums and tongue [V, 3] beside one that goes straight, half open: an arc."""
    opened = np.array([name == "jawOpen" for name in rig.names], np.float32)
    ends = [rig.vertices(weight * opened) for weight in (0, 0.5, 1)]
    out = np.zeros_like(rig.neutral)
    mouth = rig.template.mouth
    out[mouth] = (ends[1] - (ends[0] + ends[2]) / 2)[mouth]
    return out


def _joints(rig: Rig, weights: Array, gaze: NDArray[np.floating]) -> tuple[Array, Array, Array]:
    """Places [J, 3], turns [N, J, 3, 3] and shifts [N, J, 3] of the joints."""
    n, eye = len(weights), np.eye(3, dtype=np.float32)
    opened = np.array([name == "jawOpen" for name in rig.names], np.float32)
    turn, shift = rig.jaw_motion(opened)
    hinge = np.linalg.pinv(eye - turn, rcond=1e-2) @ shift  # the point of its axis nearest the middle of the head
    places = np.stack([np.zeros(3, np.float32), hinge, *(ball.centre for ball in rig.eyes)])
    turns, shifts = np.tile(eye, (n, len(JOINTS), 1, 1)), np.zeros((n, len(JOINTS), 3), np.float32)
    for i in range(n):
        turn, shift = rig.jaw_motion(weights[i])
        turns[i, 1], shifts[i, 1] = turn, turn @ hinge + shift - hinge
        for j in (0, 1):
            if np.isfinite(gaze[i, j]).all():
                turns[i, 2 + j] = eye_turn(gaze[i, j])
    return places.astype(np.float32), turns, shifts
