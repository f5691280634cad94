from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import trimesh

from nphm_track.errors import InputError
from nphm_track.rendering.overlay import OverlayRenderer, compose, thin_faces
from nphm_track.rendering.shading import STYLES

K = np.array([[150.0, 0, 60], [0, 150, 40], [0, 0, 1]])
SIZE = (120, 80)
BALL = trimesh.creation.icosphere(subdivisions=4, radius=0.1)
HEAD_TO_CAMERA = np.diag([1.0, -1.0, -1.0])
FRAME = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)


def draw(style="shaded", t=(0, 0, 0.6), image=FRAME, vertices=BALL.vertices, **options):
    return OverlayRenderer(BALL.faces, K, SIZE, style, **options).draw(image, vertices, HEAD_TO_CAMERA, np.array(t))


def changed(out, image=FRAME):
    return (out != image).any(-1)


@pytest.mark.parametrize("style", [s for s in STYLES if s != "mesh"])
def test_only_the_head_is_drawn_over(style):
    untouched = FRAME.copy()
    out = draw(style)
    y, x = np.nonzero(changed(out))
    radius = 150 * 0.1 / np.sqrt(0.6**2 - 0.1**2)
    assert np.hypot(x + 0.5 - 60, y + 0.5 - 40).max() < radius + 1.5
    assert x.min() == pytest.approx(60 - radius, abs=2) and y.max() == pytest.approx(40 + radius, abs=2)
    assert np.array_equal(FRAME, untouched) and out.dtype == np.uint8


def test_mesh_style_leaves_the_frame_out():
    np.testing.assert_array_equal(draw("mesh"), draw("mesh", image=255 - FRAME))


def test_opacity():
    assert not changed(draw(opacity=0.0)).any()
    flat = np.full_like(FRAME, 100)
    half, full = draw(opacity=0.5, image=flat), draw(opacity=1.0, image=flat)
    np.testing.assert_allclose(half[40, 60], (100 + full[40, 60].astype(float)) / 2, atol=1)


def test_head_outside_or_at_the_border_of_the_picture():
    assert not changed(draw(t=(5, 0, 0.6))).any()
    assert not changed(draw(t=(0, 0, -0.6))).any()
    assert 0 < changed(draw(t=(0.24, 0.15, 0.6))).sum() < changed(draw()).sum()


def test_vertices_that_are_not_numbers():
    vertices = BALL.vertices.copy()
    vertices[:10] = np.nan
    assert changed(draw(vertices=vertices)).sum() > 500
    assert changed(draw("wireframe", vertices=vertices)).sum() > 300
    assert not changed(draw(vertices=np.full_like(vertices, np.nan))).any()


def test_side_by_side_and_scale():
    renderer = OverlayRenderer(BALL.faces, K, SIZE, side_by_side=True)
    out = renderer.draw(FRAME, BALL.vertices, HEAD_TO_CAMERA, np.array([0, 0, 0.6]))
    assert out.shape == (80, 240, 3) and renderer.output_size == (240, 80)
    np.testing.assert_array_equal(out[:, :120], FRAME)
    np.testing.assert_array_equal(out[:, 120:], draw())
    small = draw("mesh", scale=0.5)
    assert small.shape == (40, 60, 3)
    blocks = draw("mesh").reshape(40, 2, 60, 2, 3).mean((1, 3))
    assert abs(blocks - small).mean() < 3  # the same picture, camera and all


def test_lost_frames_carry_a_small_mark():
    renderer = OverlayRenderer(BALL.faces, K, SIZE)
    mark = changed(renderer.draw_lost(FRAME))
    assert 0 < mark.sum() < 0.02 * mark.size and not mark[20:].any() and not mark[:, 20:].any()
    assert OverlayRenderer(BALL.faces, K, SIZE, side_by_side=True).draw_lost(FRAME).shape == (80, 240, 3)
    assert OverlayRenderer(BALL.faces, K, SIZE, scale=0.02).draw_lost(FRAME).shape == (2, 2, 3)


def test_compose_side_by_side():
    rgb, alpha = np.ones((80, 120, 3), np.float32), np.zeros((80, 120), np.float32)
    alpha[:, 60:] = 1
    out = compose(FRAME, rgb, alpha, 1.0, side_by_side=True)
    np.testing.assert_array_equal(out[:, :180], np.hstack([FRAME, FRAME[:, :60]]))
    assert (out[:, 180:] == 255).all()


def test_thinned_faces_keep_to_the_surface():
    faces = thin_faces(BALL.vertices.astype(np.float32), BALL.faces.astype(np.int32), 0.03)
    assert 50 < len(faces) < len(BALL.faces) / 10
    assert (faces[:, [0, 1, 2]] != faces[:, [1, 2, 0]]).all()
    ball = trimesh.Trimesh(BALL.vertices, faces)
    assert ball.area == pytest.approx(BALL.area, rel=0.1) and ball.face_normals.shape == faces.shape


def test_refusals():
    with pytest.raises(InputError, match="toon"):
        OverlayRenderer(BALL.faces, K, SIZE, "toon")
    with pytest.raises(InputError, match="crayon"):
        OverlayRenderer(BALL.faces, K, SIZE, renderer="crayon")
    with pytest.raises(InputError, match="wireframe"):
        OverlayRenderer(BALL.faces, K, SIZE, "wireframe", renderer="pyrender")
    if importlib.util.find_spec("pyrender") is None:
        with pytest.raises(InputError, match=r"nphm-track\[pyrender\]"):
            OverlayRenderer(BALL.faces, K, SIZE, renderer="pyrender")


def test_pyrender_agrees_where_it_is_installed():
    try:
        theirs = draw("normals", renderer="pyrender")
    except InputError as error:  # not installed, or no OpenGL driver
        pytest.skip(str(error))
    assert abs(theirs.astype(int) - draw("normals")).mean() < 1.5
