"""What the viewer shows of a run: the head of a frame in its colours, and the picture it was tracked in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nphm_track.cameras.intrinsics import Intrinsics
from nphm_track.conventions import IBUG68_FROM_478
from nphm_track.errors import InputError
from nphm_track.heads.template import load_template
from nphm_track.kd_tree import kd_tree
from nphm_track.rendering.rasteriser import vertex_normals
from nphm_track.tracking.clip import open_clip
from nphm_track.tracking.records import Status
from nphm_track.tracking.run_folder import Run
from nphm_track.tracking.surface import has_template
from nphm_track.video.source import Frame, FrameSource

SHADINGS = ("plain", "normals", "error")
PLAIN = ((214, 205, 196), (150, 178, 204))
"""Of the first and the second run."""
WORST_MM = 5.0
"""Landmark error drawn in full red; it is spread over ``REACH`` metres around each landmark."""
REACH = 0.012
PICTURE_SIZE = 640
"""Pixels of the longer side of the pictures that are sent to the browser."""
KEPT = 64
"""Pictures kept in memory."""


@dataclass(frozen=True)
class Surface:
    """Head of a frame: vertices [V, 3] metres, head space; normals [V, 3]; faces [F, 3]; colours [V, 3] uint8."""

    vertices: NDArray[np.float32]
    normals: NDArray[np.float32]
    faces: NDArray[np.int32]
    colours: NDArray[np.uint8]


class RunScene:
    """A run, frame by frame. Raises InputError when it has no meshes or no head at all."""

    def __init__(self, run: Run, plain: tuple[int, int, int] = PLAIN[0]) -> None:
        if not run.info.options.get("meshes", True):
            raise InputError(f"{run.path} was made without meshes; there is nothing to view")
        self.run, self.track, self.plain = run, run.track, plain
        if not (self.track.status != Status.LOST).any():
            raise InputError(f"{run.path} has no frame with a head")
        self.pictures = Pictures(run)
        self.template = load_template() if has_template(run) else None
        self.skin = np.array(plain, np.uint8) if self.template is None else self.template.painted(plain)

    def row_at(self, time: float) -> int:
        """Row of the track nearest to a time in seconds."""
        return int(np.argmin(np.abs(self.track.time - time)))

    def surface(self, row: int, shading: str) -> Surface | None:
        """The head of a row; None where it is lost or its mesh was not kept."""
        if self.track.status[row] == Status.LOST:
            return None
        try:
            vertices, faces = self.run.mesh(row)
        except InputError:
            return None
        if self.template is not None:
            vertices, faces = self.template.cut_at_neck(vertices), self.template.head_faces
        normals = vertex_normals(vertices, faces)
        colours = np.broadcast_to(self.skin, vertices.shape)
        if shading == "normals":
            colours = np.round(127.5 * (normals + 1)).astype(np.uint8)
        elif shading == "error":
            colours = self._error_colours(row, vertices, normals, colours)
        return Surface(vertices, normals, faces, colours)

    def _error_colours(
        self, row: int, vertices: NDArray[np.float32], normals: NDArray[np.float32], plain: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """Distance of the observed from the fitted iBUG-68 points, green to red, around where they are on the head."""
        track = self.track
        fitted, observed = track.landmarks_fit[row], track.landmarks[row][list(IBUG68_FROM_478)]
        known = np.isfinite(fitted).all(1) & np.isfinite(observed).all(1)
        camera = vertices @ track.R[row].T + track.t[row]
        facing = np.flatnonzero(((normals @ track.R[row].T) * camera).sum(1) < 0)
        if not known.any() or not len(facing):
            return plain
        lens = Intrinsics(track.K, (int(track.image_size[0]), int(track.image_size[1])), track.distortion)
        nearest = facing[kd_tree(lens.project(camera[facing])).query(fitted[known])[1]]
        pixels = np.linalg.norm(fitted[known] - observed[known], axis=1)
        error = np.clip(1e3 * pixels * camera[nearest, 2] / track.K[0, 0] / WORST_MM, 0, 1)
        square = ((vertices[:, None] - vertices[nearest]) ** 2).sum(-1)  # [V, L]
        weight = np.exp(-0.5 * square / REACH**2)
        total = weight.sum(1)
        level = (weight @ error) / np.maximum(total, 1e-12)
        ramp = np.array([(70, 160, 90), (245, 210, 80), (215, 60, 50)], float)
        colour = np.stack([np.interp(level, (0, 0.5, 1), ramp[:, c]) for c in range(3)], 1)
        near = np.minimum(total, 1.0)[:, None]
        return np.round(near * colour + (1 - near) * plain).astype(np.uint8)


class Pictures:
    """The clip's frames, small, in any order; those asked for last are kept. None when the clip is not there."""

    def __init__(self, run: Run) -> None:
        try:
            self._source: FrameSource | None = open_clip(run)
        except InputError:
            self._source = None
        self._kept: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._frames: Iterator[Frame] | None = None
        self._next = 0

    def __call__(self, row: int) -> NDArray[np.uint8] | None:
        """Picture [h, w, 3] of a row of the track; one before the last that was read makes the clip be read again."""
        if row in self._kept:
            self._kept.move_to_end(row)
            return self._kept[row]
        if self._source is None:
            return None
        try:
            self._read(row)
        except InputError:
            self._source = None
        return self._kept.get(row)

    def _read(self, row: int) -> None:
        assert self._source is not None
        if self._frames is None or not self._next <= row < self._next + KEPT:
            self._frames, self._next = self._source.frames(row), row
        for frame in self._frames:
            small = Image.fromarray(frame.image)
            small.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
            self._kept[self._next] = np.asarray(small)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            self._next += 1
            if self._next > row:
                return
