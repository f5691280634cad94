"""The template and its wrapping on the surface of a head model."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from nphm_track.errors import ModelError
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.editing import random_identities
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.template import LIP_COLOUR, Template, load_template, sphere
from nphm_track.heads.wrap import WrappedHead, fit_prior, wrap
from nphm_track.models import write_weights
from nphm_track.rendering.shading import PORCELAIN


@pytest.fixture(scope="module")
def template() -> Template:
    return load_template()


@pytest.fixture(scope="module")
def model() -> NphmDecoder:
    return load_head_model()


@pytest.fixture(scope="module")
def person(template: Template, model: NphmDecoder) -> tuple[torch.Tensor, WrappedHead]:
    z_id = random_identities(model, 2, seed=7)[1]
    return z_id, wrap(template, model, z_id)


def test_parts_follow_each_other_and_cover_all_vertices(template: Template) -> None:
    spans = list(template.parts.values())
    assert spans[0][0] == 0 and spans[-1][1] == len(template.neutral)
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert template.parts["gums"][0] == template.skin_size == len(template.trust)


def test_skin_is_one_surface_and_faces_stay_within_parts(template: Template) -> None:
    edges = template.edges[(template.edges < template.skin_size).all(1)]
    n = template.skin_size
    assert connected_components(coo_matrix((np.ones(len(edges)), edges.T), (n, n)), directed=False)[0] == 1
    beyond = template.faces[(template.faces >= n).any(1)]
    part = template.part_of_vertex[beyond]
    assert (part == part[:, :1]).all()


def test_what_is_drawn_leaves_out_lashes_and_the_inside_of_eyes(template: Template) -> None:
    drawn = np.zeros(len(template.neutral), bool)
    drawn[template.faces] = True
    assert not drawn[template.part("lashes_left")].any() and not drawn[template.part("lashes_right")].any()
    for side in ("left", "right"):
        eye = drawn[template.part(f"eye_{side}")]
        assert eye[: template.eye_shell].all() and not eye[template.eye_shell :].any()


def test_heads_drawn_over_frames_end_in_a_straight_line_at_the_neck(template: Template) -> None:
    drawn = np.unique(template.head_faces)
    long_neck = template.neutral - np.array([0, 0.01, 0], np.float32) * (template.neutral[:, 1:2] < -0.07)
    for head in (template.neutral, long_neck):
        height = (template.cut_at_neck(head)[drawn] - [0, -0.1, 0]) @ [0, 0.94, 0.34]
        assert height.min() > -1e-5 and (np.abs(height) < 1e-5).sum() > 40


def test_lips_are_red_to_their_rims_and_skin_is_not(template: Template) -> None:
    skin, red = template.colours[: template.skin_size], np.array(LIP_COLOUR, np.float32)
    corners = template.landmark_corners
    for point in (0, 37, 267):  # a little below the upper rim, which the points lie on
        below = template.landmarks(template.neutral)[point] - [0, 0.003, 0]
        nearest = np.linalg.norm(template.neutral[: template.parts["face"][1]] - below, axis=1).argmin()
        np.testing.assert_allclose(skin[nearest], red, atol=0.02)
    for point in (2, 152, 50, 280, 10):  # below the nose, chin, cheeks, forehead
        np.testing.assert_allclose(skin[corners[point]], np.tile(PORCELAIN, (3, 1)), atol=1e-6)


def test_left_is_the_persons_left_and_the_mean_head_is_symmetric(template: Template) -> None:
    left, right = (sphere(template.neutral[template.part(f"eye_{s}")][: template.eye_shell]) for s in ("left", "right"))
    assert left[0][0] > 0.025
    np.testing.assert_allclose(left[0] * [-1, 1, 1], right[0], atol=2e-4)


def test_landmarks_lie_where_the_head_model_has_them(template: Template, model: NphmDecoder) -> None:
    own = template.landmarks(template.person(np.zeros(100)))
    network = model.landmarks(torch.zeros(model.config.identity_dim)).numpy() * 0.25
    off = np.linalg.norm(own - network, axis=1)[:468]
    assert np.median(off) < 5e-4


def test_prior_finds_the_weights_a_code_was_made_of(template: Template, model: NphmDecoder) -> None:
    w = np.random.default_rng(3).standard_normal(100).clip(-2, 2)
    z_id = torch.from_numpy(np.pad(w, (0, model.config.identity_basis - 100))).float() @ model.identity_basis.T
    found = template.person(fit_prior(template, model, z_id.detach()))
    face = template.part("face")
    off = np.linalg.norm(found[face] - template.person(w)[face], axis=1)
    spread = np.linalg.norm(template.person(w)[face] - template.neutral[face], axis=1)
    assert off.mean() < 0.15 * spread.mean()


def test_wrapped_face_lies_on_the_surface_of_the_network(
    template: Template, person: tuple[torch.Tensor, WrappedHead]
) -> None:
    _, head = person
    off = np.abs(head.distance[template.trust > 0.99]) * 1000
    assert off.mean() < 0.08 and np.quantile(off, 0.99) < 0.3


def test_lids_and_lips_keep_the_shape_of_the_prior(
    template: Template, person: tuple[torch.Tensor, WrappedHead]
) -> None:
    _, head = person
    prior = template.person(head.weights)
    for edge in template.lid_edges:
        change = head.vertices[edge] - prior[edge]
        assert np.linalg.norm(change - change.mean(0), axis=1).max() < 0.0012


def test_displacements_are_smooth(template: Template, person: tuple[torch.Tensor, WrappedHead]) -> None:
    _, head = person
    edges = template.edges[(template.edges < template.skin_size).all(1)]
    length = np.linalg.norm(template.neutral[edges[:, 0]] - template.neutral[edges[:, 1]], axis=1)
    step = np.linalg.norm(head.moved[edges[:, 0]] - head.moved[edges[:, 1]], axis=1)
    assert np.quantile(step / np.maximum(length, 5e-4), 0.99) < 0.3


def test_eyeballs_are_spheres_behind_the_lids(template: Template, person: tuple[torch.Tensor, WrappedHead]) -> None:
    _, head = person
    for side, eye, edge in zip(("left", "right"), head.eyes, template.lid_edges, strict=True):
        centre, radius = sphere(head.vertices[template.part(f"eye_{side}")][: template.eye_shell])
        np.testing.assert_allclose(centre, eye.centre, atol=1e-5)
        assert radius == pytest.approx(eye.radius, abs=1e-5) and 0.013 < radius < 0.019
        clear = np.linalg.norm(head.vertices[edge] - eye.centre, axis=1) - eye.radius
        assert clear.min() > -0.0015 and np.median(clear) < 0.002


def test_a_code_without_a_surface_is_refused(template: Template, model: NphmDecoder) -> None:
    with pytest.raises(ModelError, match="no surface"):
        wrap(template, model, torch.full((model.config.identity_dim,), 30.0))


def test_another_models_file_is_no_template(tmp_path) -> None:  # type: ignore[no-untyped-def]
    write_weights(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, {"kind": "nphm"})
    with pytest.raises(ModelError, match="is not a template"):
        load_template(tmp_path / "model.safetensors")
    write_weights(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, {"kind": "template"})
    with pytest.raises(ModelError, match="is damaged"):
        load_template(tmp_path / "model.safetensors")
