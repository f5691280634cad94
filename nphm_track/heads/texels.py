"""Pictures that are laid on the template's skin by its texture coordinates, pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nphm_track.heads.template import Template
from nphm_track.rendering.rasteriser import rasterise

TILES = 2
"""Pictures of the skin: face with ears, and the back of the head with neck, mouth and sockets (UDIM 1001 and 1002)."""


@dataclass(frozen=True)
class Texels:
    """The pixels of a tile that show skin."""

    row: NDArray[np.int64]  # [N]
    column: NDArray[np.int64]  # [N]
    corners: NDArray[np.int64]  # [N, 3] vertices of the triangle
    shares: NDArray[np.float32]  # [N, 3] barycentric

    def interpolate(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Values [V, C] of vertices at the texels, [N, C]."""
        v = np.asarray(values, np.float32)
        return np.asarray(sum(self.shares[:, k, None] * v[self.corners[:, k]] for k in range(3)))


def skin_triangles(template: Template) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """Triangles [F, 3] of the skin, of their corners' places in ``template.uv``, and their tile [F]."""
    skin = (template.faces < template.skin_size).all(1)
    faces, places = template.faces[skin], template.face_uv[skin]
    return faces, places, template.uv[places].mean(1)[:, 0].astype(np.int64)


def texels(template: Template, tile: int, size: int) -> Texels:
    """Those of a tile of ``size`` x ``size`` pixels."""
    faces, places, tiles = skin_triangles(template)
    faces, places = faces[tiles == tile], places[tiles == tile]
    u, v = template.uv.T
    flat = np.c_[size * (u - tile), size * (1 - v), np.ones(len(u))]
    drawn = rasterise(flat, places, np.eye(3), (size, size))
    row, column = np.nonzero(drawn.face_id >= 0)
    return Texels(row, column, faces[drawn.face_id[row, column]].astype(np.int64), drawn.bary[row, column])
