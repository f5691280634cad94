from __future__ import annotations

import numpy as np
import pytest
import torch

from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.carry import MeshCarrier
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.mesh import CanonicalMesh, extract_canonical
from nphm_track.regressor.image_regressor import ImageRegressor


@pytest.fixture(scope="module")
def model() -> NphmDecoder:
    return load_head_model()


@pytest.fixture(scope="module")
def mesh(model: NphmDecoder) -> CanonicalMesh:
    return extract_canonical(model, torch.zeros(model.config.identity_dim), detail=0.5)


def expression(model: NphmDecoder, **weights: float) -> torch.Tensor:
    e = torch.zeros(len(model.config.expression_names))
    for name, value in weights.items():
        e[model.config.expression_names.index(name)] = value
    return model.expression_basis @ e


def longest_edge(mesh: CanonicalMesh, points: torch.Tensor) -> float:
    v = points.numpy() * MODEL_UNIT
    edges = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]]])
    return float(np.linalg.norm(v[edges[:, 0]] - v[edges[:, 1]], axis=1).max())


def test_mesh_is_one_outward_surface_of_plausible_size(mesh: CanonicalMesh) -> None:
    v = mesh.vertices.astype(np.float64)[mesh.faces]
    volume = np.einsum("ij,ij->i", v[:, 0], np.cross(v[:, 1], v[:, 2])).sum() / 6
    assert 0.002 < volume < 0.006  # cubic metres; the neck is open, the mouth a pocket
    assert 0.13 < np.ptp(mesh.vertices[:, 0]) < 0.22
    assert mesh.open_vertices is not None and mesh.open_vertices.shape == mesh.vertices.shape


@pytest.mark.parametrize("weights", [{"jawOpen": 1.0}, {"mouthSmile_L": 0.8, "mouthSmile_R": 0.8, "jawOpen": 0.3}])
def test_open_mouth_has_no_bridge_between_the_lips(
    model: NphmDecoder, mesh: CanonicalMesh, weights: dict[str, float]
) -> None:
    carry = MeshCarrier(model, mesh, torch.zeros(model.config.identity_dim))
    assert longest_edge(mesh, carry(expression(model, **weights)).posed.points) < 0.03  # the mouth opens by 50 mm


def test_no_web_stands_in_the_corners_of_an_open_mouth(model: NphmDecoder) -> None:
    z_id = ImageRegressor.from_pretrained().identity_mean  # meshed with jaw and smile alone: 30 mm2
    mesh = extract_canonical(model, z_id)
    carry = MeshCarrier(model, mesh, z_id)
    about_lips = mesh.faces[np.isin(mesh.faces, carry.lips.index.numpy()).any(1)]
    rest, posed = (carry(expression(model, jawOpen=jaw)).posed.points.numpy() * MODEL_UNIT for jaw in (0.0, 0.5))
    edges = [np.linalg.norm(v[about_lips] - v[np.roll(about_lips, 1, 1)], axis=-1) for v in (rest, posed)]
    web = about_lips[(edges[1] > 4 * np.maximum(edges[0], 4e-4)).any(1)]
    a, b, c = posed[web].swapaxes(0, 1)
    assert np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2 < 10e-6  # square metres


def test_slow_opening_with_warm_starts_ends_where_a_cold_start_does(model: NphmDecoder, mesh: CanonicalMesh) -> None:
    carry = MeshCarrier(model, mesh, torch.zeros(model.config.identity_dim))
    last = None
    for jaw in np.linspace(0, 0.6, 7):
        last = carry(expression(model, jawOpen=float(jaw)), last)
    cold = carry(expression(model, jawOpen=0.6))
    assert last is not None
    distance = (last.posed.points - cold.posed.points).norm(dim=-1) * MODEL_UNIT
    assert (distance > 0.0005).float().mean() < 0.005


def test_a_jump_of_the_expression_starts_afresh(model: NphmDecoder, mesh: CanonicalMesh) -> None:
    carry = MeshCarrier(model, mesh, torch.zeros(model.config.identity_dim))
    z_ex = expression(model, jawOpen=0.6)
    cold, warm = carry(z_ex), carry(z_ex, carry(expression(model)))
    assert torch.equal(warm.posed.points, cold.posed.points)


def test_interpolated_vertices_stay_on_the_surface_through_speech_and_a_blink(model: NphmDecoder) -> None:
    z_id = torch.zeros(model.config.identity_dim)
    mesh = extract_canonical(model, z_id, detail=0.7)
    carry = MeshCarrier(model, mesh, z_id)
    last, off = None, []
    for k in range(3, 13):
        blink, jaw = max(0.0, 1 - abs(k - 8) / 4), 0.15 + 0.15 * float(np.sin(0.8 * k))
        z_ex = expression(model, jawOpen=jaw, eyeBlink_L=blink, eyeBlink_R=blink, mouthSmile_L=0.05 * k)
        last = carry(z_ex, last)
        posed = last.posed.points[carry.skin]
        back = posed + model.deform(posed, z_id, z_ex)[0]
        off.append((back - carry.canonical[carry.skin]).norm(dim=-1) * MODEL_UNIT)
    after = torch.stack(off[1:])
    assert (after > 5e-5).float().mean() < 0.03 and (after > 2e-4).float().mean() < 5e-4 and after.max() < 1.5e-3


def test_finer_levels_go_with_linear_motions_of_coarser_ones(model: NphmDecoder, mesh: CanonicalMesh) -> None:
    carry = MeshCarrier(model, mesh, torch.zeros(model.config.identity_dim))
    assert carry.opened is not None
    stretch = torch.tensor([[0.1, 0.02, 0.0], [0.0, -0.1, 0.03], [0.05, 0.0, 0.02]])
    moved = carry.opened @ stretch + 0.01
    known: set[int] = set()
    for level in carry.levels:
        assert known.issuperset(level.near.flatten().tolist())
        known |= set(level.index.tolist())
        if level.near.numel():
            error = (level.interpolate(moved) - moved[level.index]).norm(dim=-1)
            assert error.quantile(0.99) < 1e-3 and error.median() < 1e-4
    assert known == set(carry.skin.tolist())


def test_jaw_and_lids_move_as_named(model: NphmDecoder, mesh: CanonicalMesh) -> None:
    carry = MeshCarrier(model, mesh, torch.zeros(model.config.identity_dim))
    rest = carry(expression(model)).posed.points
    chin = int(np.linalg.norm(mesh.vertices - [0, -0.07, 0.045], axis=1).argmin())
    drop = (carry(expression(model, jawOpen=1.0)).posed.points - rest)[chin, 1] * MODEL_UNIT
    assert drop < -0.02
    lid = int(np.linalg.norm(mesh.vertices - [0.0315, 0.042, 0.032], axis=1).argmin())  # the face's left is +x
    left = (carry(expression(model, eyeBlink_L=1.0)).posed.points - rest)[lid, 1] * MODEL_UNIT
    right = (carry(expression(model, eyeBlink_R=1.0)).posed.points - rest)[lid, 1] * MODEL_UNIT
    assert left < -0.001 and abs(right) < 0.001


@pytest.mark.parametrize("seed", range(2))
def test_no_lip_vertex_ends_on_the_other_lip(model: NphmDecoder, seed: int) -> None:
    """Random people in smiles, speech and a cry: no edge of the lips is torn between upper and lower lip."""
    rng = np.random.default_rng(seed)
    z_id = model.identity_basis[:, :100] @ torch.from_numpy(rng.standard_normal(100).astype(np.float32))
    mesh = extract_canonical(model, z_id, detail=0.7)
    carry = MeshCarrier(model, mesh, z_id)
    assert mesh.open_vertices is not None
    edges = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    before = np.linalg.norm(mesh.open_vertices[edges[:, 0]] - mesh.open_vertices[edges[:, 1]], axis=1)
    for weights in (
        {"mouthSmile_L": 0.9, "mouthSmile_R": 0.9, "mouthUpperUp_L": 0.4, "mouthUpperUp_R": 0.4, "jawOpen": 0.1},
        {"mouthFunnel": 0.5, "jawOpen": 0.3},
        {"mouthLowerDown_L": 0.8, "mouthLowerDown_R": 0.8, "mouthFrown_L": 0.5, "mouthFrown_R": 0.5},
    ):
        v = carry(expression(model, **weights)).posed.points.numpy() * MODEL_UNIT
        length = np.linalg.norm(v[edges[:, 0]] - v[edges[:, 1]], axis=1)
        assert (length > np.maximum(4 * before, 0.005)).sum() <= 4
