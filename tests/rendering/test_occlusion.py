"""Ambient occlusion against shapes whose open sky is known."""

import trimesh

from nphm_track.rendering.occlusion import ambient_occlusion


def test_a_convex_body_sees_the_whole_sky() -> None:
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.1)
    assert ambient_occlusion(ball.vertices, ball.faces).min() > 0.97


def test_inside_of_a_closed_box_is_dark() -> None:
    inner = trimesh.creation.box(extents=[0.1] * 3).subdivide().subdivide()
    outer = trimesh.creation.box(extents=[0.14] * 3).subdivide().subdivide()
    inner.invert()
    both = trimesh.util.concatenate([outer, inner])
    seen = ambient_occlusion(both.vertices, both.faces)
    assert seen[: len(outer.vertices)].min() > 0.9
    assert seen[len(outer.vertices) :].max() < 0.05
