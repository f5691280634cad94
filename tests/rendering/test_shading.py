from __future__ import annotations

import numpy as np
import pytest
import trimesh

from nphm_track.errors import InputError
from nphm_track.rendering.rasteriser import rasterise, vertex_normals
from nphm_track.rendering.shading import STYLES, backdrop, shade

K = np.array([[120.0, 0, 32], [0, 120, 32], [0, 0, 1]])
BALL = trimesh.creation.icosphere(subdivisions=4)
VERTICES = (BALL.vertices * 0.1 + (0, 0, 0.5)).astype(np.float32)
NORMALS = vertex_normals(VERTICES, BALL.faces)


def draw(style: str, supersampled: bool = False, faces: np.ndarray = BALL.faces):
    scale = 2 if supersampled else 1
    intrinsics = np.diag([scale, scale, 1.0]) @ K
    fragments = rasterise(VERTICES, faces, intrinsics, (64 * scale, 64 * scale))
    return shade(fragments, faces, VERTICES, NORMALS, style, supersampled=supersampled)


@pytest.mark.parametrize("style", STYLES)
def test_colours_and_coverage_are_in_range(style):
    rgb, alpha = draw(style)
    assert rgb.shape == (64, 64, 3) and rgb.dtype == alpha.dtype == np.float32
    assert rgb.min() >= 0 and rgb.max() <= 1 and alpha.min() == 0 and alpha.max() <= 1
    assert alpha[32, 32] > 0 and alpha[0, 0] == 0


def test_normals_point_to_the_viewer_and_up():
    rgb, alpha = draw("normals")
    np.testing.assert_allclose(rgb[32, 32], (0.5, 0.5, 1.0), atol=0.02)
    y, x = np.nonzero(alpha)
    assert rgb[y.min() + 1, 32, 1] > 0.8 and rgb[32, x.max() - 1, 0] > 0.8


def test_key_light_comes_from_the_upper_left():
    rgb, _ = draw("shaded")
    assert rgb[22, 22].mean() > rgb[42, 42].mean() + 0.1
    assert rgb[32, 32, 2] > rgb[32, 32, 0]  # a cool grey


def test_supersampling_softens_the_edge_only():
    rgb, alpha = draw("shaded")
    smooth_rgb, smooth_alpha = draw("shaded", supersampled=True)
    partial = (smooth_alpha > 0) & (smooth_alpha < 1)
    assert 20 < partial.sum() < 200
    inside = (alpha == 1) & (smooth_alpha == 1)
    assert abs(rgb - smooth_rgb)[inside].max() < 0.05
    disc = np.pi * (120 * 0.1 / np.sqrt(0.5**2 - 0.1**2)) ** 2
    assert smooth_alpha.sum() == pytest.approx(disc, rel=0.01)


def test_inside_of_an_open_mesh_is_darker():
    rgb, alpha = draw("shaded", faces=BALL.faces[BALL.triangles_center[:, 2] > 0.2])  # only the far side is left
    full, _ = draw("shaded")
    assert alpha[32, 32] == 1 and rgb[32, 32].mean() < 0.6 * full[32, 32].mean()


def test_wireframe_shows_more_background_than_the_surface():
    coarse = trimesh.creation.icosphere(subdivisions=1)
    vertices = (coarse.vertices * 0.1 + (0, 0, 0.5)).astype(np.float32)
    fragments = rasterise(vertices, coarse.faces, K, (64, 64))
    _, alpha = shade(fragments, coarse.faces, vertices, vertex_normals(vertices, coarse.faces), "wireframe")
    seen = fragments.face_id >= 0
    assert alpha[seen].max() > 0.9 and 0.2 < alpha[seen].mean() < 0.8


def test_unknown_style():
    with pytest.raises(InputError, match="toon"):
        draw("toon")


def test_backdrop_is_dark_and_neutral():
    image = backdrop((32, 20))
    assert image.shape == (20, 32, 3) and image.dtype == np.uint8
    assert image.max() < 64 and np.ptp(image.astype(int), axis=2).max() <= 5
