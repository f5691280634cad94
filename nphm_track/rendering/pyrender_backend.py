"""The head drawn with OpenGL through pyrender, an optional stand-in for the built-in rasteriser."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import InputError
from nphm_track.rendering.rasteriser import vertex_normals

_ACROSS, _BACK = np.array([0.78, 0, 0.63]), np.array([-0.50, 0.61, 0.62])
_LAMP = np.eye(4)  # OpenGL pose of a light that shines along its own -z, from the camera's upper left
_LAMP[:3, :3] = np.stack([_ACROSS, np.cross(_BACK, _ACROSS), _BACK], 1)

Layer = tuple[NDArray[np.float32], NDArray[np.float32], tuple[int, int]]


class PyrenderLayer:
    """Callable: vertices [V, 3] (camera space, metres) -> (rgb [H, W, 3] and alpha [H, W] in 0..1, corner (0, 0)).

    An OpenGL context belongs to one thread, the one that draws first. Raises InputError when pyrender or an OpenGL
    driver is missing, or for the style "wireframe".
    """

    def __init__(self, faces: NDArray[np.int32], K: NDArray[np.float64], size: tuple[int, int], style: str) -> None:
        if style == "wireframe":
            raise InputError("the pyrender renderer has no wireframe style; use the default renderer")
        if sys.platform == "linux" and not os.environ.get("DISPLAY"):
            os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
        try:
            import pyrender
        except (ImportError, AttributeError, OSError) as error:
            raise InputError(f"pyrender is not usable ({error}); pip install 'nphm-track[pyrender]'") from None
        self.pyrender, self.faces, self.size, self.style = pyrender, faces, size, style
        self.camera = pyrender.IntrinsicsCamera(K[0, 0], K[1, 1], K[0, 2], K[1, 2], znear=0.01, zfar=100.0)
        self.material = pyrender.MetallicRoughnessMaterial(metallicFactor=0.0, roughnessFactor=0.6)
        self.renderer: Any = None

    def __call__(self, vertices: NDArray[np.float32]) -> Layer:
        pyrender = self.pyrender
        normals = vertex_normals(vertices, self.faces)
        flip = np.array([1, -1, -1], np.float32)
        as_normals = self.style == "normals"
        colours = normals * flip * 0.5 + 0.5 if as_normals else np.full_like(vertices, (0.78, 0.82, 0.88))
        primitive = pyrender.Primitive(
            vertices * flip, normals * flip, color_0=colours, indices=self.faces, mode=4, material=self.material
        )
        scene = pyrender.Scene(bg_color=(0, 0, 0, 0), ambient_light=(0.25, 0.26, 0.28))
        scene.add(pyrender.Mesh([primitive]))
        scene.add(self.camera)
        scene.add(pyrender.DirectionalLight(intensity=2.5), pose=_LAMP)
        flags = pyrender.RenderFlags.RGBA | (pyrender.RenderFlags.FLAT if as_normals else 0)
        try:
            self.renderer = self.renderer or pyrender.OffscreenRenderer(*self.size)
        except Exception as error:  # each OpenGL platform raises its own
            raise InputError(f"pyrender found no OpenGL driver ({error})") from None
        rgba = self.renderer.render(scene, flags=flags)[0].astype(np.float32) / 255
        alpha = np.ascontiguousarray(rgba[..., 3])
        return rgba[..., :3] / np.maximum(alpha, 1 / 255)[..., None], alpha, (0, 0)  # its edges are mixed with black
