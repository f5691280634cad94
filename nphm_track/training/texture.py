"""Photo-textured heads: the skin, hair and light of a real picture on a head of known geometry.

A photo with a fitted head says where each vertex lies in the picture. Moving the vertices (another identity,
expression, view, focal length) and drawing the picture's pixels on them gives an image that looks real and has exact
geometry. What the photo does not show is taken from the mirrored side, or from the nearest vertex that it does show.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

from nphm_track.rendering.rasteriser import Fragments, interpolate, rasterise, vertex_normals
from nphm_track.training.ict import IctHeads
from nphm_track.training.paint import View

FloatArray = NDArray[np.floating]
RESIDUAL_SIGMA = 0.015  # metres over which a landmark's residual moves its surroundings
WARP_REACH = 0.35  # of the image: how far the background follows the head


@dataclass(frozen=True)
class PhotoTexture:
    """A photo laid on the vertices of ICT heads.

    Attributes:
        image: [H, W, 3] linear in 0..1.
        uv: [V, 2] pixel of the photo that each vertex shows (its own only where ``direct``).
        direct: [V] bool, seen in the photo.
        colour: [V, 3] colour of every vertex.
        shade: [V] estimated shading of the photo at the vertex, mean 1.
        light: [9] spherical harmonics (camera frame) that explain it.
        view: camera and head pose of the photo.
    """

    image: FloatArray
    uv: FloatArray
    direct: NDArray[np.bool_]
    colour: FloatArray
    shade: FloatArray
    light: FloatArray
    view: View


class TextureMaker:
    """Lays photos on heads; keeps what depends on the head model alone."""

    def __init__(self, heads: IctHeads, landmarks_neutral: FloatArray) -> None:
        """``landmarks_neutral`` [478, 3]: where the landmarks lie on the mean head."""
        self.heads = heads
        distance, self.near = cKDTree(landmarks_neutral).query(heads.neutral, k=8)
        weight = np.exp(-0.5 * (distance / RESIDUAL_SIGMA) ** 2)
        total = weight.sum(1, keepdims=True)
        self.pull = (weight / np.maximum(total, 0.2)).astype(np.float32)  # fades out away from the landmarks
        v = heads.neutral
        skin = (v[:, 2] > 0.005) & (v[:, 1] > -0.09) & (v[:, 1] < 0.075) & ~heads.is_eye & ~heads.is_pocket
        eyes = (np.abs(np.abs(v[:, 0]) - 0.0315) < 0.02) & (np.abs(v[:, 1] - 0.035) < 0.014)
        mouth = (np.abs(v[:, 0]) < 0.03) & (np.abs(v[:, 1] + 0.035) < 0.014)
        self.skin = skin & ~eyes & ~mouth
        self.lids = {side: _Lid.find(heads, side, self.skin) for side in ("L", "R")}

    def make(
        self,
        image: NDArray[np.uint8],
        w: FloatArray,
        e: FloatArray,
        view: View,
        landmarks: FloatArray,
        landmarks_fit: FloatArray,
    ) -> PhotoTexture:
        """``landmarks`` [478, 2] detected in the photo, ``landmarks_fit`` [478, 2] the fitted head's own, projected."""
        heads = self.heads
        vertices = heads.vertices(w, e)
        camera = (vertices @ view.R.T + view.t).astype(np.float32)
        uv = camera[:, :2] / camera[:, 2:] * view.K[0, 0] + view.K[:2, 2]
        uv = uv + (self.pull[..., None] * (landmarks - landmarks_fit)[self.near]).sum(1)
        normals = vertex_normals(camera, heads.faces)
        facing = -(normals * camera).sum(1) / np.linalg.norm(camera, axis=1)
        fragments = rasterise(camera, heads.faces, view.K, view.size)
        depth = fragments.depth[tuple(_pixel_index(uv, view.size))]
        inside = (uv >= 1).all(1) & (uv < np.array(view.size) - 1).all(1)
        direct = inside & (facing > 0.2) & (camera[:, 2] < depth + 0.004)
        direct &= ~heads.is_pocket
        picture = image.astype(np.float32) / 255
        colour = sample(picture, uv)
        source = self._sources(direct)
        light = _fit_light(normals[self.skin & direct], colour[self.skin & direct].mean(1))
        raw = harmonics(normals) @ light
        shade = np.clip(raw / max(float(np.mean(raw[self.skin & direct])), 1e-3), 0.4, 1.8) if direct.any() else raw
        colour, shade = colour[source], shade[source]
        colour[heads.is_pocket] = colour[self.skin].mean(0) * [0.35, 0.18, 0.16]
        return PhotoTexture(picture, uv, direct, colour, shade, light, view)

    def _sources(self, direct: NDArray[np.bool_]) -> NDArray[np.int64]:
        """For each vertex the one whose colour it takes: itself, its mirror image, or the nearest one seen."""
        heads = self.heads
        source = np.arange(len(direct))
        mirrored = ~direct & direct[heads.mirror]
        source[mirrored] = heads.mirror[mirrored]
        hidden = np.flatnonzero(~direct & ~mirrored)
        seen = np.flatnonzero(direct | mirrored)
        if len(seen) and len(hidden):
            source[hidden] = source[seen[cKDTree(heads.neutral[seen]).query(heads.neutral[hidden])[1]]]
        return source

    def close_lids(
        self, texture: PhotoTexture, e_photo: FloatArray, e: FloatArray, rng: np.random.Generator
    ) -> PhotoTexture:
        """The texture with skin on those lids that expression e [E] closes and the photo (e_photo [E]) shows open.

        An open eye hides its lid, and the pixels found there instead are lashes and the white of the eye.
        """
        direct, colour, shade = texture.direct.copy(), texture.colour.copy(), texture.shade.copy()
        for side, lid in self.lids.items():
            i = self.heads.expression_names.index("eyeBlink_" + side)
            if e[i] - e_photo[i] < 0.25:
                continue
            seen = lid.around & texture.direct
            if seen.sum() < 8:
                continue
            distance, near = cKDTree(self.heads.neutral[seen]).query(self.heads.neutral[lid.skin], k=8)
            weight = 1 / (distance + 0.004)
            weight /= weight.sum(1, keepdims=True)
            colour[lid.skin] = (texture.colour[seen][near] * weight[..., None]).sum(1) * rng.uniform(0.8, 1.05)
            shade[lid.skin] = (texture.shade[seen][near] * weight).sum(1)
            colour[lid.margin] *= rng.uniform(0.35, 0.75)
            direct[lid.skin] = False
        return replace(texture, direct=direct, colour=colour, shade=shade)


@dataclass(frozen=True)
class _Lid:
    """One eye: ``skin`` of the lids [M], their ``margin`` with the lashes [N], and a mask of the skin ``around``."""

    skin: NDArray[np.int64]
    margin: NDArray[np.int64]
    around: NDArray[np.bool_]

    @classmethod
    def find(cls, heads: IctHeads, side: str, skin: NDArray[np.bool_]) -> _Lid:
        shift = np.linalg.norm(heads.expression[heads.expression_names.index("eyeBlink_" + side)], axis=1)
        lid = (shift > 0.0015) & ~heads.is_eye & ~heads.is_pocket
        eye = heads.neutral[heads.is_eye & (heads.neutral[:, 0] * heads.neutral[lid, 0].mean() > 0)]
        near_eye = cKDTree(eye).query(heads.neutral)[0] < 0.002
        place = cKDTree(heads.neutral[lid]).query(heads.neutral)[0]
        around = skin & ~lid & (place < 0.012)
        return cls(np.flatnonzero(lid), np.flatnonzero(lid & near_eye & (shift > 0.004)), around)


def draw(
    heads: IctHeads,
    texture: PhotoTexture,
    vertices: FloatArray,
    view: View,
    light: FloatArray | None,
    background: FloatArray | None,
) -> tuple[FloatArray, Fragments, FloatArray]:
    """Image [H, W, 3] (0..1), fragments and camera-frame normals [V, 3] of the textured head in ``view``.

    ``light`` [9] None keeps the photo's own. ``background`` [H, W, 3] None takes the photo's own surroundings and lets
    them follow the head.
    """
    camera = (vertices @ view.R.T + view.t).astype(np.float32)
    fragments = rasterise(camera, heads.faces, view.K, view.size)
    normals = vertex_normals(camera, heads.faces)
    shade = harmonics(normals) @ (texture.light if light is None else light)
    ratio = np.clip(shade, 0.15, 2.2) / texture.shade
    attributes = np.concatenate([texture.uv, texture.colour, ratio[:, None], texture.direct[:, None]], 1)
    at = interpolate(fragments, heads.faces, attributes.astype(np.float32))
    covered = fragments.face_id >= 0
    direct = at[..., 6] > 0.999
    if background is None:
        place = _follow(at[..., :2], covered & direct, texture.view, view)
        image = sample(texture.image, place.reshape(-1, 2)).reshape(*place.shape[:2], 3)
    else:
        image = background.astype(np.float32).copy()
        image[direct] = sample(texture.image, at[direct][:, :2])
    filled = covered & ~direct
    image[filled] = at[filled][:, 2:5]
    image[covered] *= np.clip(at[covered][:, 5:6], 0.15, 2.5)
    return np.clip(image, 0, 1), fragments, normals


def _follow(uv: FloatArray, known: NDArray[np.bool_], source: View, view: View) -> FloatArray:
    """Photo pixel [H, W, 2] that each pixel shows, continued smoothly from the head into its surroundings."""
    height, width = known.shape
    pixels = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1)
    scale = source.t[2] / source.K[0, 0] * view.K[0, 0] / view.t[2]
    centre_to = view.K[:2, 2] + view.t[:2] / view.t[2] * view.K[0, 0]
    centre_from = source.K[:2, 2] + source.t[:2] / source.t[2] * source.K[0, 0]
    base = (pixels - centre_to) / scale + centre_from
    if not known.any():
        return base
    distance, (row, column) = distance_transform_edt(~known, return_indices=True)
    moved = (uv - base)[row, column]
    blurred = np.stack([gaussian_filter(moved[..., c], 6) for c in range(2)], -1)
    blend = np.clip(distance / 12, 0, 1)[..., None]
    moved = moved * (1 - blend) + blurred * blend
    place = base + moved * np.exp(-distance / (WARP_REACH * width))[..., None]
    return np.where(known[..., None], uv, place)


def harmonics(n: FloatArray) -> FloatArray:
    """Real spherical harmonics to second order [N, 9] (unnormalised polynomials) of unit vectors [N, 3]."""
    x, y, z = n.T
    return np.stack([np.ones_like(x), x, y, z, x * y, y * z, x * z, x * x - y * y, 3 * z * z - 1], 1)


def random_light(rng: np.random.Generator) -> FloatArray:
    """Coefficients [9] of a plausible light in the camera's frame: a broad key from the front or a side, some fill."""
    direction = rng.normal(size=3) * [1.0, 0.7, 0.35] + [0, -0.35, -0.9]
    direction /= np.linalg.norm(direction)
    ambient, key = rng.uniform(0.35, 0.8), rng.uniform(0.2, 0.8)
    x, y, z = direction
    linear = key * direction * 0.67
    second = 0.25 * key * np.array([x * y, y * z, x * z, (x * x - y * y) / 2, (3 * z * z - 1) / 6])
    return np.concatenate([[ambient + 0.25 * key], linear, second])


def sample(image: FloatArray, uv: FloatArray) -> NDArray[np.float32]:
    """Bilinear colours [N, C] of ``image`` [H, W, C] at pixels uv [N, 2] (centres at .5), edges replicated."""
    at = [uv[:, 1] - 0.5, uv[:, 0] - 0.5]
    return np.stack(
        [map_coordinates(image[..., c], at, order=1, mode="nearest") for c in range(image.shape[2])], 1
    ).astype(np.float32)


def _pixel_index(uv: FloatArray, size: tuple[int, int]) -> FloatArray:
    return np.clip(np.nan_to_num(uv[:, ::-1]).astype(int), 0, np.array(size[::-1]) - 1).T


def _fit_light(normals: FloatArray, luminance: FloatArray) -> FloatArray:
    """Harmonics [9] with mean shading 1 over the given skin points."""
    if len(normals) < 50:
        return np.eye(9)[0]
    basis = harmonics(normals)
    keep = np.abs(luminance - np.median(luminance)) < 2.5 * np.std(luminance) + 1e-6
    ridge = np.diag([0.0, 1, 1, 1, 4, 4, 4, 4, 4]) * 0.02 * keep.sum()
    a = np.linalg.solve(basis[keep].T @ basis[keep] + ridge, basis[keep].T @ luminance[keep])
    return a / max(float((basis[keep] @ a).mean()), 1e-3)
