"""Turns what the rasteriser saw into colours: a porcelain look lit from the camera's side, normals, or a wireframe."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nphm_track.errors import InputError
from nphm_track.rendering.kernels import kernel
from nphm_track.rendering.rasteriser import NEAR, Fragments

Style = Literal["shaded", "wireframe", "normals", "mesh"]
STYLES: tuple[str, ...] = get_args(Style)

_INSIDE = {"shaded": 0.4, "mesh": 0.4, "wireframe": 0.4, "normals": 1.0}  # the inside of an open mesh is darker

# Linear colours; directions towards the lights in camera space (x right, y down, z away from the viewer).
PORCELAIN = np.array([0.60, 0.67, 0.77], np.float32)
_LINE = np.array([0.55, 0.92, 1.00], np.float32)
_KEY, _KEY_COLOUR = np.array([-0.55, -0.62, -0.56], np.float32), np.array([0.95, 0.93, 0.90], np.float32)
_FILL, _FILL_COLOUR = np.array([0.82, -0.05, -0.57], np.float32), np.array([0.17, 0.20, 0.25], np.float32)
_SKY, _GROUND = np.array([0.20, 0.21, 0.23], np.float32), np.array([0.06, 0.05, 0.05], np.float32)


def shade(
    fragments: Fragments,
    faces: ArrayLike,
    vertices_cam: ArrayLike,
    normals_cam: ArrayLike,
    style: str = "shaded",
    *,
    occlusion: ArrayLike | None = None,
    albedo: ArrayLike | None = None,
    supersampled: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Colour of every pixel.

    Args:
        fragments: the rasterised mesh, [H, W].
        faces: [F, 3]; vertices_cam: [V, 3] metres; normals_cam: [V, 3] unit, outwards; both in camera space.
        style: "shaded" (and "mesh", which differs only in what lies behind it), "wireframe" (thin lines) or
            "normals" (n * 0.5 + 0.5 with x right, y up, z towards the viewer).
        occlusion: [V] share of the sky that each vertex sees (``ambient_occlusion``); left out, all of it.
        albedo: [V, 3] linear colour of each vertex; left out, ``PORCELAIN``.
        supersampled: the fragments were drawn at twice the size; average 2x2 of them into [H // 2, W // 2] clean edges.

    Returns:
        rgb [H, W, 3] in 0..1 (display-referred) and alpha [H, W] in 0..1. Raises InputError for another style.
    """
    check_style(style)
    triangles = np.ascontiguousarray(faces, np.int32)
    vertices = np.ascontiguousarray(vertices_cam, np.float32)
    normals = np.ascontiguousarray(normals_cam, np.float32)
    if style == "normals":
        colours = normals * np.array([0.5, -0.5, -0.5], np.float32) + np.float32(0.5)
    else:
        colours = np.empty_like(normals)
        own = np.broadcast_to(PORCELAIN, vertices.shape) if albedo is None else albedo
        concavity = _concavity(vertices, normals, triangles)
        _light(vertices, normals, concavity, np.ascontiguousarray(own, np.float32), colours)
        if occlusion is not None:
            colours *= _darkening(np.asarray(occlusion, np.float32))[:, None]
        if style == "wireframe":
            colours *= _LINE
    heights = _signed_heights(vertices, triangles, fragments.K)
    step = 2 if supersampled else 1
    height, width = fragments.face_id.shape
    rgb = np.zeros((height // step, width // step, 3), np.float32)
    alpha = np.zeros((height // step, width // step), np.float32)
    lines = style == "wireframe"
    _resolve(fragments.face_id, fragments.bary, triangles, colours, heights, lines, _INSIDE[style], step, rgb, alpha)
    return rgb, alpha


def check_style(style: str) -> None:
    """Raises InputError when ``style`` is none of ``STYLES``."""
    if style not in STYLES:
        raise InputError(f"unknown overlay style '{style}'; choose from {', '.join(STYLES)}")


def backdrop(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Neutral dark background [H, W, 3], a little lighter towards the top; size is (width, height)."""
    column = np.linspace(54, 26, size[1])[:, None, None] * np.array([1.0, 1.02, 1.06])
    return np.broadcast_to(column, (size[1], size[0], 3)).astype(np.uint8)


def _darkening(occlusion: NDArray[np.float32]) -> NDArray[np.float32]:
    """Factor of display-referred colours: open skin keeps its own, a closed pocket a third of it."""
    return np.asarray(0.35 + 0.65 * np.sqrt(np.clip((occlusion - 0.05) / 0.5, 0, 1)), np.float32)


@kernel(error_model="numpy")
def _concavity(vertices, normals, faces):
    """Mean normal curvature at each vertex, 1/m, positive in a hollow: how far the neighbours rise above its plane."""
    rise = np.zeros(len(vertices), np.float32)
    reach = np.full(len(vertices), 1e-12, np.float32)
    for f in range(len(faces)):
        for corner in range(3):
            i, j = faces[f, corner], faces[f, (corner + 1) % 3]
            up_i = up_j = square = np.float32(0.0)
            for c in range(3):
                d = vertices[j, c] - vertices[i, c]
                up_i += d * normals[i, c]
                up_j -= d * normals[j, c]
                square += d * d
            if not square < np.inf:
                continue
            rise[i] += up_i
            rise[j] += up_j
            reach[i] += square
            reach[j] += square
    return rise / reach


@kernel(error_model="numpy", fastmath={"contract", "arcp"})
def _light(vertices, normals, concavity, albedo, colours):
    """Porcelain: two soft lights, a hint of rim and gloss, darker in hollows; display-referred colours [V, 3]."""
    wrap = np.float32(0.2)  # lets the lights reach a little round the terminator, as large lamps do
    for i in range(len(vertices)):
        nx, ny, nz = normals[i]
        px, py, pz = vertices[i]
        distance = np.sqrt(px * px + py * py + pz * pz) + np.float32(1e-9)
        vx, vy, vz = -px / distance, -py / distance, -pz / distance
        key = max(0.0, (nx * _KEY[0] + ny * _KEY[1] + nz * _KEY[2] + wrap) / (1.0 + wrap))
        fill = max(0.0, (nx * _FILL[0] + ny * _FILL[1] + nz * _FILL[2] + wrap) / (1.0 + wrap))
        up = 0.5 - 0.5 * ny
        facing = min(1.0, max(0.0, nx * vx + ny * vy + nz * vz))
        rim = 0.25 * (1.0 - facing) ** 4 * (0.3 + 0.7 * up)
        hx, hy, hz = vx + _KEY[0], vy + _KEY[1], vz + _KEY[2]
        gloss = max(0.0, (nx * hx + ny * hy + nz * hz) / np.sqrt(hx * hx + hy * hy + hz * hz))
        gloss *= gloss * gloss
        gloss *= gloss * gloss
        gloss *= gloss * gloss  # power 27
        open_sky = min(1.15, max(0.35, 1.0 - 0.006 * concavity[i]))
        for c in range(3):
            ambient = _GROUND[c] + (_SKY[c] - _GROUND[c]) * up
            value = albedo[i, c] * (ambient + key * _KEY_COLOUR[c] + fill * _FILL_COLOUR[c]) + rim + 0.08 * gloss
            colours[i, c] = np.sqrt(min(value * open_sky, 1.0))  # gamma 2


@kernel(error_model="numpy")
def _signed_heights(vertices, faces, K):
    """Each corner's distance from the opposite edge on screen, px [F, 3]; negative when the face turns its back."""
    heights = np.empty((len(faces), 3), np.float32)
    x, y = np.empty(3), np.empty(3)
    for f in range(len(faces)):
        for i in range(3):
            px, py, pz = vertices[faces[f, i]]
            z = max(pz, np.float32(NEAR))
            x[i], y[i] = K[0, 0] * px / z, K[1, 1] * py / z
        area = (y[1] - y[0]) * (x[2] - x[0]) - (x[1] - x[0]) * (y[2] - y[0])
        for i in range(3):
            j, k = (i + 1) % 3, (i + 2) % 3
            heights[f, i] = area / (np.sqrt((x[k] - x[j]) ** 2 + (y[k] - y[j]) ** 2) + 1e-9)
    return heights


@kernel(error_model="numpy", fastmath={"contract", "arcp"})
def _resolve(face_id, bary, faces, colours, heights, lines, inside, step, rgb, alpha):
    """Interpolate colours at every sample and average the samples of a pixel, weighted by their alpha."""
    share = np.float32(1.0 / (step * step))
    for row in range(alpha.shape[0]):
        for column in range(alpha.shape[1]):
            red = green = blue = total = np.float32(0.0)
            for y in range(row * step, (row + 1) * step):
                for x in range(column * step, (column + 1) * step):
                    f = face_id[y, x]
                    if f < 0:
                        continue
                    u, v, w = bary[y, x, 0], bary[y, x, 1], bary[y, x, 2]
                    i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
                    back = heights[f, 0] < 0.0
                    tone = np.float32(inside) if back else np.float32(1.0)
                    a = np.float32(1.0)
                    if lines:
                        gap = min(abs(u * heights[f, 0]), abs(v * heights[f, 1]), abs(w * heights[f, 2]))
                        line = np.float32(min(1.0, max(0.0, 0.5 * step + 0.5 - gap)))
                        a = np.float32((0.15 + 0.85 * line) * (0.3 if back else 1.0))
                    tone *= a
                    red += tone * (u * colours[i, 0] + v * colours[j, 0] + w * colours[k, 0])
                    green += tone * (u * colours[i, 1] + v * colours[j, 1] + w * colours[k, 1])
                    blue += tone * (u * colours[i, 2] + v * colours[j, 2] + w * colours[k, 2])
                    total += a
            if total > 0.0:
                alpha[row, column] = total * share
                rgb[row, column, 0] = red / total
                rgb[row, column, 1] = green / total
                rgb[row, column, 2] = blue / total
