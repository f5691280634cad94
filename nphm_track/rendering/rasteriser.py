"""Triangle rasteriser on the CPU: depth, triangle and barycentric coordinates of every pixel.

Single-threaded and free of the interpreter lock, so that several frames can be drawn from Python threads. Camera space
is OpenCV's (x right, y down, z forward, metres); pixel centres lie at 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nphm_track.rendering.kernels import kernel

NEAR = 1e-3
"""Metres; a triangle with a vertex nearer than this is skipped rather than clipped."""


TILE, LOOK_UP = 8, 6000
"""Pixels of the side of a tile, and triangles drawn between two looks at what lies farthest in each."""
EDGE = 1e-9
"""Slack of the inside test: rounding must not open a seam between neighbours, and the depth test settles overlaps."""


@dataclass(frozen=True)
class Fragments:
    """What each pixel of an image sees."""

    depth: NDArray[np.float32]  # [H, W] metres along z, 0 where nothing is seen
    face_id: NDArray[np.int32]  # [H, W] index into faces, -1 where nothing is seen
    bary: NDArray[np.float32]  # [H, W, 3] perspective-correct weights of the face's vertices, sum 1 (0 where nothing)
    K: NDArray[np.float64]  # [3, 3] intrinsics it was drawn with, pixels


def rasterise(
    vertices_cam: ArrayLike, faces: ArrayLike, K: ArrayLike, size: tuple[int, int], *, cull: bool = False
) -> Fragments:
    """Draw a triangle mesh into a depth buffer.

    Args:
        vertices_cam: [V, 3] camera space, metres; triangles with a NaN vertex are skipped.
        faces: [F, 3] vertex indices, counter-clockwise seen from outside.
        K: [3, 3] intrinsics in pixels, no skew.
        size: (width, height) of the image.
        cull: leave out triangles that turn their back to the camera.
    """
    vertices = np.ascontiguousarray(vertices_cam, np.float32).reshape(-1, 3)
    triangles = np.ascontiguousarray(faces, np.int32).reshape(-1, 3)
    intrinsics = np.asarray(K, np.float64)
    width, height = size
    depth = np.zeros((height, width), np.float32)
    face_id = np.full((height, width), -1, np.int32)
    bary = np.zeros((height, width, 3), np.float32)
    _fill(vertices, triangles, intrinsics, cull, depth, face_id, bary)
    return Fragments(depth, face_id, bary, intrinsics)


def screen_box(vertices_cam: ArrayLike, K: ArrayLike, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of the pixels a mesh [V, 3] can touch, right and bottom excluded, or None."""
    vertices = np.ascontiguousarray(vertices_cam, np.float32)
    low_x, low_y, high_x, high_y = _bounds(vertices, np.asarray(K, np.float64))
    left, top = max(0.0, np.floor(low_x)), max(0.0, np.floor(low_y))
    right, bottom = min(size[0], np.ceil(high_x)), min(size[1], np.ceil(high_y))
    return (int(left), int(top), int(right), int(bottom)) if right > left and bottom > top else None


def interpolate(fragments: Fragments, faces: ArrayLike, attributes: ArrayLike) -> NDArray[np.float32]:
    """Vertex attributes [V, C] at every pixel, [H, W, C]; 0 where nothing is seen."""
    values = np.ascontiguousarray(attributes, np.float32)
    out = np.zeros((*fragments.face_id.shape, values.shape[1]), np.float32)
    interpolate_into(fragments.face_id, fragments.bary, np.ascontiguousarray(faces, np.int32), values, out)
    return out


def vertex_normals(vertices: ArrayLike, faces: ArrayLike) -> NDArray[np.float32]:
    """Unit normals [V, 3], the area-weighted mean of the adjoining faces' (0 at a vertex without area)."""
    points = np.ascontiguousarray(vertices, np.float32)
    normals = np.zeros(points.shape, np.float32)
    _vertex_normals(points, np.ascontiguousarray(faces, np.int32), normals)
    return normals


@kernel(error_model="numpy")
def _project(vertices, K):
    """Pixel position and 1/z of every vertex; 1/z is 0 where it cannot be drawn (behind the camera, NaN, infinite)."""
    screen = np.empty((len(vertices), 3))
    for i in range(len(vertices)):
        z = vertices[i, 2]
        inverse = 1.0 / z if z > NEAR else 0.0
        screen[i, 0] = K[0, 0] * vertices[i, 0] * inverse + K[0, 2]
        screen[i, 1] = K[1, 1] * vertices[i, 1] * inverse + K[1, 2]
        screen[i, 2] = inverse if abs(screen[i, 0]) < 1e9 and abs(screen[i, 1]) < 1e9 else 0.0  # NaN fails it too
    return screen


@kernel(error_model="numpy")
def _bounds(vertices, K):
    screen = _project(vertices, K)
    low_x = low_y = np.inf
    high_x = high_y = -np.inf
    for i in range(len(screen)):
        if screen[i, 2] > 0.0:
            low_x, high_x = min(low_x, screen[i, 0]), max(high_x, screen[i, 0])
            low_y, high_y = min(low_y, screen[i, 1]), max(high_y, screen[i, 1])
    return low_x, low_y, high_x, high_y


@kernel(error_model="numpy")
def _fill(vertices, faces, K, cull, depth, face_id, bary):
    """Writes the three images; ``depth`` holds 1/z, which is linear on the screen, until all triangles are drawn.

    Triangles that face the camera come first, since they hide most of the others: those are found by what lies
    farthest in each tile of the image (a hierarchical depth buffer of two levels), which is looked up now and then.
    """
    height, width = depth.shape
    screen = _project(vertices, K)
    farthest = np.zeros(((height + TILE - 1) // TILE, (width + TILE - 1) // TILE), np.float32)
    drawn = 0
    for turn in range(1 if cull else 2):
        for f in range(len(faces)):
            i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
            az, bz, cz = screen[i, 2], screen[j, 2], screen[k, 2]
            if az <= 0.0 or bz <= 0.0 or cz <= 0.0:
                continue
            ax, ay, bx, by, cx, cy = screen[i, 0], screen[i, 1], screen[j, 0], screen[j, 1], screen[k, 0], screen[k, 1]
            area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
            # y points down: a front face has negative area.
            if abs(area) < 1e-12 or (area > 0.0) != (turn == 1):
                continue
            left = max(0, int(np.ceil(max(min(ax, bx, cx), 0.0) - 0.5)))
            right = int(np.floor(min(max(ax, bx, cx), width) - 0.5))
            top = max(0, int(np.ceil(max(min(ay, by, cy), 0.0) - 0.5)))
            bottom = int(np.floor(min(max(ay, by, cy), height) - 0.5))
            if right < left or bottom < top or _hidden(farthest, max(az, bz, cz), left, right, top, bottom):
                continue
            drawn += 1
            if drawn % LOOK_UP == 0:
                _look_up(depth, farthest)

            # Weights u, v, w of the corners and 1/z are linear on the screen: a value at the box's first pixel, and
            # steps to the right and down.
            scale = 1.0 / area
            u_right, v_right = (by - cy) * scale, (cy - ay) * scale
            u_down, v_down = (cx - bx) * scale, (ax - cx) * scale
            w_right = -u_right - v_right
            z_right = u_right * (az - cz) + v_right * (bz - cz)
            z_down = u_down * (az - cz) + v_down * (bz - cz)
            px, py = left + 0.5, top + 0.5
            u = ((bx - px) * (cy - py) - (by - py) * (cx - px)) * scale
            v = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) * scale
            inverse = cz + u * (az - cz) + v * (bz - cz)
            u, v = u + EDGE, v + EDGE
            per_u, per_v, per_w = 1.0 / u_right, 1.0 / v_right, 1.0 / w_right

            for y in range(top, bottom + 1):
                # Where a row of pixels enters and leaves the triangle: each weight becomes 0 at one of them.
                at_u, at_v, at_w = -u * per_u, -v * per_v, (u + v - (1.0 + 3.0 * EDGE)) * per_w
                enters = max(
                    0.0, at_u if u_right > 0.0 else 0.0, at_v if v_right > 0.0 else 0.0, at_w if w_right > 0.0 else 0.0
                )
                leaves = float(right - left)
                leaves = min(
                    leaves,
                    at_u if u_right < 0.0 else leaves,
                    at_v if v_right < 0.0 else leaves,
                    at_w if w_right < 0.0 else leaves,
                )
                outside = (
                    (u_right == 0.0 and u < 0.0)
                    or (v_right == 0.0 and v < 0.0)
                    or (w_right == 0.0 and u + v > 1.0 + 3.0 * EDGE)
                )
                if not outside:
                    for n in range(int(np.ceil(enters)), int(np.floor(leaves)) + 1):
                        nearness = inverse + n * z_right
                        if nearness > depth[y, left + n]:
                            depth[y, left + n] = nearness
                            face_id[y, left + n] = f
                u, v, inverse = u + u_down, v + v_down, inverse + z_down

    for y in range(height):
        for x in range(width):
            f = face_id[y, x]
            if f < 0:
                continue
            # Areas of the triangles that the pixel makes with each edge, over the depth of the corner opposite.
            i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
            ax, ay, bx, by, cx, cy = screen[i, 0], screen[i, 1], screen[j, 0], screen[j, 1], screen[k, 0], screen[k, 1]
            px, py = x + 0.5, y + 0.5
            u = ((bx - px) * (cy - py) - (by - py) * (cx - px)) * screen[i, 2]
            v = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) * screen[j, 2]
            w = ((ax - px) * (by - py) - (ay - py) * (bx - px)) * screen[k, 2]
            share = 1.0 / (u + v + w)
            bary[y, x, 0], bary[y, x, 1], bary[y, x, 2] = u * share, v * share, w * share
            depth[y, x] = 1.0 / depth[y, x]


@kernel(error_model="numpy")
def _hidden(farthest, nearness, left, right, top, bottom):
    """Whether all that was drawn in a box of pixels is nearer than ``nearness``."""
    for y in range(top // TILE, bottom // TILE + 1):
        for x in range(left // TILE, right // TILE + 1):
            if nearness > farthest[y, x]:
                return False
    return True


@kernel(error_model="numpy")
def _look_up(depth, farthest):
    """Smallest 1/z in each tile."""
    height, width = depth.shape
    farthest[:] = np.inf
    for y in range(height):
        for x in range(width):
            farthest[y // TILE, x // TILE] = min(farthest[y // TILE, x // TILE], depth[y, x])


@kernel(error_model="numpy")
def interpolate_into(face_id, bary, faces, values, out):
    """``interpolate`` with arrays of the right types, into ``out`` [H, W, C] of zeros."""
    height, width = face_id.shape
    for y in range(height):
        for x in range(width):
            f = face_id[y, x]
            if f < 0:
                continue
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            for channel in range(values.shape[1]):
                out[y, x, channel] = (
                    bary[y, x, 0] * values[a, channel]
                    + bary[y, x, 1] * values[b, channel]
                    + bary[y, x, 2] * values[c, channel]
                )


@kernel(error_model="numpy")
def _vertex_normals(vertices, faces, normals):
    for f in range(len(faces)):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, az = vertices[i, 0], vertices[i, 1], vertices[i, 2]
        ux, uy, uz = vertices[j, 0] - ax, vertices[j, 1] - ay, vertices[j, 2] - az
        vx, vy, vz = vertices[k, 0] - ax, vertices[k, 1] - ay, vertices[k, 2] - az
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        if not nx * nx + ny * ny + nz * nz < np.inf:
            continue
        for corner in (i, j, k):
            normals[corner, 0] += nx
            normals[corner, 1] += ny
            normals[corner, 2] += nz
    for i in range(len(normals)):
        length = np.sqrt(normals[i, 0] ** 2 + normals[i, 1] ** 2 + normals[i, 2] ** 2)
        if length > 0.0:
            normals[i] /= length
