"""Draws the tracked head over its frame, for a person to judge the fit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from nphm_track.errors import InputError
from nphm_track.rendering.kernels import kernel
from nphm_track.rendering.rasteriser import rasterise, screen_box, vertex_normals
from nphm_track.rendering.shading import backdrop, check_style, shade

Layer = tuple[NDArray[np.float32], NDArray[np.float32], tuple[int, int]]
"""rgb [h, w, 3] in 0..1, alpha [h, w] in 0..1, and the (left, top) pixel of the image where they belong."""

_WIRE_PIXELS = 7.0  # mean size of a wireframe cell on screen


def compose(
    image: NDArray[np.uint8],
    shaded_rgb: NDArray[np.float32],
    alpha: NDArray[np.float32],
    opacity: float = 0.85,
    side_by_side: bool = False,
    *,
    corner: tuple[int, int] = (0, 0),
) -> NDArray[np.uint8]:
    """Lay a shaded layer over an image.

    Args:
        image: [H, W, 3] uint8.
        shaded_rgb: [h, w, 3] in 0..1; alpha: [h, w] in 0..1. They lie inside the image.
        opacity: of the layer where alpha is 1.
        side_by_side: put the untouched image to the left of the result.
        corner: (left, top) pixel of the layer in the image.
    """
    out = np.array(image, np.uint8, order="C")
    left, top = corner
    _blend(out[top : top + alpha.shape[0], left : left + alpha.shape[1]], shaded_rgb, alpha, opacity)
    return np.hstack([image, out]) if side_by_side else out


class OverlayRenderer:
    """Draws one head mesh, frame after frame.

    Args:
        faces: [F, 3] vertex indices, counter-clockwise seen from outside.
        K: [3, 3] intrinsics in pixels of the frame.
        size: (width, height) of the frame.
        style: one of ``rendering.shading.STYLES``; "mesh" leaves the frame out.
        opacity: of the head over the frame; left out, 0.85, and 1 for the styles "mesh" and "wireframe".
        side_by_side: the untouched frame to the left of the drawn one.
        scale: size of what is drawn relative to the frame.
        occlusion: [V] share of the sky each vertex sees (``rendering.occlusion``), for the renderer "numba".
        albedo: [V, 3] linear colours of the vertices, for the renderer "numba"; left out, porcelain.
        prepare: changes vertices [V, 3] (head space) before they are drawn, such as to cut the neck.
        renderer: "numba", or "pyrender" (needs the extra of that name; style "wireframe" is not offered).

    ``threads`` may draw at the same time; None: any number. Raises InputError for an unknown style or renderer.
    """

    def __init__(
        self,
        faces: ArrayLike,
        K: ArrayLike,
        size: tuple[int, int],
        style: str = "shaded",
        opacity: float | None = None,
        side_by_side: bool = False,
        scale: float = 1.0,
        renderer: str = "numba",
        occlusion: NDArray[np.float32] | None = None,
        albedo: NDArray[np.float32] | None = None,
        prepare: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
    ) -> None:
        check_style(style)
        self.occlusion, self.albedo, self.prepare = occlusion, albedo, prepare
        self.size = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        ratio = np.array([self.size[0] / size[0], self.size[1] / size[1], 1.0])
        self.K = np.asarray(K, np.float64) * ratio[:, None]
        self.faces = np.ascontiguousarray(faces, np.int32)
        self.style, self.side_by_side = style, side_by_side
        self.opacity = opacity if opacity is not None else (1.0 if style in ("mesh", "wireframe") else 0.85)
        self._wires: NDArray[np.int32] | None = None
        # OpenGL belongs to one thread, and the first frame that is drawn chooses the wires.
        self.threads = None if renderer == "numba" and style != "wireframe" else 1
        self._layer = self._make_layer(renderer)

    @property
    def output_size(self) -> tuple[int, int]:
        """(width, height) of the images ``draw`` returns."""
        return self.size[0] * (2 if self.side_by_side else 1), self.size[1]

    def draw(self, image: NDArray[np.uint8], vertices_head: ArrayLike, R: ArrayLike, t: ArrayLike) -> NDArray[np.uint8]:
        """The frame with the head over it.

        Args:
            image: [H, W, 3] uint8 RGB frame.
            vertices_head: [V, 3] metres, head space.
            R, t: head-to-camera rotation [3, 3] and translation [3], metres.
        """
        head = np.asarray(vertices_head, np.float32)
        head = head if self.prepare is None else self.prepare(head)
        vertices = head @ np.asarray(R, np.float32).T + np.asarray(t, np.float32)
        frame = self._resized(image)
        below = backdrop(self.size) if self.style == "mesh" else frame
        layer = self._layer(vertices)
        drawn = below if layer is None else compose(below, layer[0], layer[1], self.opacity, corner=layer[2])
        return np.hstack([frame, drawn]) if self.side_by_side else drawn

    def draw_lost(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The frame without a head; a small amber dot in the top-left corner tells it from a tracked one."""
        frame = self._resized(image)
        drawn = backdrop(self.size) if self.style == "mesh" else frame.copy()
        radius = max(3.0, min(self.size) / 70)
        span = min(round(4 * radius), *self.size)
        y, x = np.mgrid[:span, :span] + 0.5 - 2 * radius
        disc = np.clip(radius - np.hypot(x, y) + 0.5, 0, 1).astype(np.float32)
        amber = np.broadcast_to(np.array([0.95, 0.62, 0.15], np.float32), (span, span, 3))
        drawn = compose(drawn, np.ascontiguousarray(amber), disc, 0.9)
        return np.hstack([frame, drawn]) if self.side_by_side else drawn

    def _make_layer(self, renderer: str) -> Callable[[NDArray[np.float32]], Layer | None]:
        if renderer == "numba":
            return self._rasterised
        if renderer == "pyrender":
            from nphm_track.rendering.pyrender_backend import PyrenderLayer

            return PyrenderLayer(self.faces, self.K, self.size, self.style)
        raise InputError(f"unknown renderer '{renderer}'; choose from numba, pyrender")

    def _resized(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if (image.shape[1], image.shape[0]) == self.size:
            return image
        return np.asarray(Image.fromarray(image).resize(self.size, Image.Resampling.BICUBIC))

    def _rasterised(self, vertices: NDArray[np.float32]) -> Layer | None:
        """Draw at twice the size inside the head's bounding box only, and average down."""
        box = screen_box(vertices, self.K, self.size)
        if box is None:
            return None
        left, top, right, bottom = box
        K = self.K.copy()
        K[:2, 2] -= left, top
        K[:2] *= 2
        faces = self._wire_faces(vertices) if self.style == "wireframe" else self.faces
        fragments = rasterise(vertices, faces, K, (2 * (right - left), 2 * (bottom - top)))
        normals = vertex_normals(vertices, faces)
        surface = {"occlusion": self.occlusion, "albedo": self.albedo}
        rgb, alpha = shade(fragments, faces, vertices, normals, self.style, **surface, supersampled=True)
        return rgb, alpha, (left, top)

    def _wire_faces(self, vertices: NDArray[np.float32]) -> NDArray[np.int32]:
        """Faces of a thinned mesh: a dense one would fill in. Chosen once, so that the lines stay on the skin."""
        if self._wires is None:
            cell = _WIRE_PIXELS * float(np.nanmedian(vertices[:, 2])) / self.K[0, 0]
            self._wires = thin_faces(vertices, self.faces, cell)
        return self._wires


def thin_faces(vertices: NDArray[np.float32], faces: NDArray[np.int32], cell: float) -> NDArray[np.int32]:
    """Faces [F', 3] between one vertex per cubic cell (side in the vertices' unit), by vertex clustering."""
    _, cluster, count = np.unique(
        np.floor(np.nan_to_num(vertices) / cell).astype(np.int64), axis=0, return_inverse=True, return_counts=True
    )
    cluster = cluster.ravel()
    centre = np.stack([np.bincount(cluster, vertices[:, i]) for i in range(3)], 1) / count[:, None]
    order = np.argsort(-np.linalg.norm(vertices - centre[cluster], axis=1), kind="stable")
    representative = np.empty(len(count), np.int32)
    representative[cluster[order]] = order  # the last one written is the nearest to the centre
    thinned = representative[cluster[faces]]
    a, b, c = thinned.T
    thinned = thinned[(a != b) & (b != c) & (c != a)]
    return thinned[np.unique(np.sort(thinned, 1), axis=0, return_index=True)[1]]


@kernel(error_model="numpy")
def _blend(window, rgb, alpha, opacity):
    for y in range(alpha.shape[0]):
        for x in range(alpha.shape[1]):
            a = alpha[y, x] * opacity
            if a > 0.0:
                for c in range(3):
                    value = window[y, x, c] * (1.0 - a) + 255.0 * a * rgb[y, x, c]
                    window[y, x, c] = np.uint8(min(255.0, max(0.0, value + 0.5)))
