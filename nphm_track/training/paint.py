"""Plain painted renders of ICT heads, good enough for the landmark network to find its way on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nphm_track.rendering.rasteriser import Fragments, interpolate, rasterise, vertex_normals
from nphm_track.training.ict import IctHeads

BROW_DROP = 0.008
"""Metres below ICT-FaceKit's brow landmarks where people have their brows (``benchmarks/brows.py``)."""


@dataclass(frozen=True)
class View:
    """A camera and the head's pose in it (docs/architecture.md)."""

    K: NDArray[np.float64]
    R: NDArray[np.float64]
    t: NDArray[np.float64]
    size: tuple[int, int]


def random_view(
    rng: np.random.Generator, *, size: int = 320, yaw: float = 25, pitch: float = 15, roll: float = 8
) -> View:
    """A face that fills about half of a square image, within the given angles; 25-70 degrees field of view."""
    y, p, r = np.radians([rng.uniform(-yaw, yaw), rng.uniform(-pitch, pitch), rng.uniform(-roll, roll)])
    fov = np.radians(rng.uniform(25, 70))
    focal = size / 2 / np.tan(fov / 2)
    distance = focal * 0.19 / (size * rng.uniform(0.5, 0.62)) + 0.07
    turn = _rotation(2, r) @ _rotation(0, p) @ _rotation(1, y)
    R = np.diag([1.0, -1.0, -1.0]) @ turn
    t = np.array([rng.uniform(-0.01, 0.01), rng.uniform(-0.01, 0.01), distance])
    return View(np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1.0]]), R, t, (size, size))


def _rotation(axis: int, angle: float) -> NDArray[np.float64]:
    c, s = np.cos(angle), np.sin(angle)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    R = np.eye(3)
    R[i, i] = R[j, j] = c
    R[i, j], R[j, i] = -s, s
    return R


def paint(heads: IctHeads, landmarks68: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
    """Vertex colours [V, 3] in 0..1: skin, lips, brows, eyes."""
    v = heads.neutral
    skin = np.array([0.78, 0.58, 0.48]) * rng.uniform(0.35, 1.15) * rng.uniform(0.93, 1.07, 3)
    colour = np.tile(skin, (len(v), 1))
    lips = skin * np.array([0.85, 0.55, 0.55])
    outer = v[landmarks68[48:60]][:, :2]
    inside = in_polygon(v[:, :2], outer) & (v[:, 2] > 0.03) & ~heads.is_pocket
    colour[inside] = lips
    colour[heads.is_pocket] = [0.15, 0.05, 0.05]
    hair = skin * rng.uniform(0.15, 0.5)
    for distance in brow_distances(v, landmarks68):
        colour[(distance < rng.uniform(0.0025, 0.004)) & ~heads.is_eye] = hair
    iris = rng.uniform(0.05, 0.5, 3)
    for side in (-1, 1):
        own = heads.is_eye & (np.sign(v[:, 0]) == side)
        centre = v[own].mean(0)
        front = np.array([centre[0], centre[1]])
        radius = np.linalg.norm(v[:, :2] - front, axis=1)
        colour[own] = 0.9
        colour[own & (radius < 0.006)] = iris
        colour[own & (radius < 0.0025)] = 0.02
    return colour.astype(np.float32)


def render(
    heads: IctHeads, vertices: NDArray[np.float32], colour: NDArray[np.float32], view: View, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], Fragments]:
    """Lambert image [H, W, 3] and its fragments."""
    camera = vertices @ view.R.T + view.t
    fragments = rasterise(camera, heads.faces, view.K, view.size)
    normals = vertex_normals(camera.astype(np.float32), heads.faces)
    light = rng.normal(size=3) * [0.6, 0.5, 0.2] + [0, -0.3, -1.0]
    light /= np.linalg.norm(light)
    shade = rng.uniform(0.25, 0.5) + rng.uniform(0.5, 0.8) * np.clip(normals @ light, 0, 1)
    image = interpolate(fragments, heads.faces, colour * shade[:, None].astype(np.float32))
    background = rng.uniform(0, 1, 3) + rng.normal(size=(*view.size[::-1], 3)) * 0.08
    image = np.where(fragments.face_id[..., None] >= 0, image, background)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), fragments


def brow_distances(
    v: NDArray[np.floating], landmarks68: NDArray[np.int64]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Distances [V] of a neutral head's vertices to the lines of its right and left brow."""
    lines = (v[landmarks68[brow]] - [0, BROW_DROP, 0] for brow in (slice(17, 22), slice(22, 27)))
    right, left = (distance_to_line(v, line) for line in lines)
    return right, left


def in_polygon(points: NDArray[np.floating], polygon: NDArray[np.floating]) -> NDArray[np.bool_]:
    inside = np.zeros(len(points), bool)
    x, y = points.T
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        crosses = (y0 > y) != (y1 > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


def distance_to_line(points: NDArray[np.floating], line: NDArray[np.floating]) -> NDArray[np.floating]:
    best = np.full(len(points), np.inf)
    for a, b in pairwise(line):
        along = np.clip(((points - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
        best = np.minimum(best, np.linalg.norm(points - a - along[:, None] * (b - a), axis=1))
    return best
