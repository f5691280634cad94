"""The points of the template that the network of surface points finds: vertices of ICT-FaceKit's skin."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from nphm_track.kd_tree import kd_tree
from nphm_track.rendering.rasteriser import vertex_normals
from nphm_track.training.ict import IctHeads
from nphm_track.training.lighting import ambient_occlusion

LEVEL, BACK, TOP = -0.1, -0.045, 0.1
"""Metres: points lie above, before and below these, which takes in chin, ears and forehead."""
OPEN = 0.3
"""Weight of jawOpen under which points are chosen, so that both lips have their own."""
SEEN = 0.1
"""Share of an even sky that a point sees at least: inside nostrils and behind lips and lids no picture shows any."""
SPACING = {"face": 0.0055, "nose": 0.003, "mouth": 0.0026, "eyes": 0.0022, "around": 0.01}
"""Metres between points: of the face, its finer parts, and of ears, neck and skull."""


def template_points(heads: IctHeads) -> NDArray[np.int64]:
    """Vertices [N] of the skin, the closer together the more there is to see; mirrored vertices are both in it.

    Farthest points on the right half, in a space where ``SPACING`` is 1.
    """
    v = _opened(heads)
    spacing = point_spacing(heads)
    half = np.flatnonzero(np.isfinite(spacing) & (v[:, 0] < 1e-4))
    first = int(np.argmax(v[half, 2]))  # the tip of the nose
    chosen = [first]
    distance = np.full(len(half), np.inf)
    while True:
        new = half[chosen[-1]]
        scale = np.minimum(spacing[half], spacing[new])
        distance = np.minimum(distance, np.linalg.norm(v[half] - v[new], axis=1) / scale)
        following = int(distance.argmax())
        if distance[following] < 1:
            break
        chosen.append(following)
    right = half[chosen]
    return np.unique(np.concatenate([right, heads.mirror[right]]))


def mirrored_points(heads: IctHeads, points: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index [N] among the points of each one's mirror image."""
    return kd_tree(heads.neutral[points]).query(heads.neutral[points] * [-1, 1, 1])[1]


def point_spacing(heads: IctHeads) -> NDArray[np.float64]:
    """Wanted distance [V] between points around each vertex, infinite where none shall be."""
    v = heads.neutral
    used = np.isin(np.arange(len(v)), heads.faces) & ~heads.is_eye & ~heads.is_pocket
    used &= (v[:, 1] > LEVEL) & (v[:, 1] < TOP) & (v[:, 2] > BACK)
    surface = _opened(heads)
    normals = torch.from_numpy(vertex_normals(surface, heads.faces))
    used &= ambient_occlusion(torch.from_numpy(surface), normals).numpy() > SEEN
    out = np.full(len(v), SPACING["around"])
    out[(v[:, 2] > 0) & (np.abs(v[:, 0]) < 0.07) & (v[:, 1] > -0.09) & (v[:, 1] < 0.08)] = SPACING["face"]
    parts = {
        "nose": (np.abs(v[:, 0]) < 0.02) & (np.abs(v[:, 1] + 0.002) < 0.016) & (v[:, 2] > 0.04),
        "mouth": (np.abs(v[:, 0]) < 0.027) & (np.abs(v[:, 1] + 0.033) < 0.013) & (v[:, 2] > 0.035),
        "eyes": kd_tree(v[heads.is_eye]).query(v)[0] < 0.006,
    }
    for name, inside in parts.items():
        out[inside & (v[:, 2] > 0)] = SPACING[name]
    return np.where(used, out, np.inf)


def _opened(heads: IctHeads) -> NDArray[np.float32]:
    """The mean head [V, 3] with its mouth a little open."""
    e = np.zeros(len(heads.expression), np.float32)
    e[heads.expression_names.index("jawOpen")] = OPEN
    return heads.vertices(np.zeros(len(heads.identity), np.float32), e)
