"""Control points of ICT-FaceKit heads in closed form, few of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nphm_track.conventions import MODEL_UNIT
from nphm_track.heads.config import NPHM_SMALL
from nphm_track.heads.controlled import ControlledDecoder
from nphm_track.heads.loading import DEFAULT
from nphm_track.models import read_weights
from nphm_track.training.controls import new_model, place
from nphm_track.training.ict import IctHeads, edge_vertices, load_ict

SPARSE = 4.0


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "ict_facekit"


@pytest.fixture(scope="module")
def heads(folder: Path) -> IctHeads:
    return load_ict(folder, eyeballs=False)


@pytest.fixture(scope="module")
def model(heads: IctHeads, folder: Path) -> ControlledDecoder:
    codes = {k: v.float() for k, v in read_weights(DEFAULT)[0].items()}
    columns, rank = codes["identity_basis"].shape[1], codes["landmark_down.weight"].shape[0]
    names = heads.expression_names
    config = replace(NPHM_SMALL, expression_names=names, identity_basis=columns, landmark_rank=rank, nearest=4)
    return new_model(heads, folder, config, codes, SPARSE)


def test_control_points_are_vertices_of_the_posed_head(model: ControlledDecoder, heads: IctHeads, folder: Path) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal(100).astype(np.float32)
    e = np.isin(heads.expression_names, ["jawOpen", "eyeBlink_L", "browDown_R"]).astype(np.float32)
    z_id = torch.from_numpy(w) @ model.identity_basis[:, :100].T
    z_ex = torch.from_numpy(e) @ model.expression_basis.T
    found = model.controls_of(z_id[None], z_ex[None]).position[0].numpy() * MODEL_UNIT
    true = heads.vertices(w, e)[place(heads, folder, SPARSE).vertices]
    assert np.linalg.norm(found - true, axis=1).max() < 1e-4
    back = found + model.deform(torch.from_numpy(found / MODEL_UNIT), z_id, z_ex)[0].numpy() * MODEL_UNIT
    neutral = heads.vertices(w)[place(heads, folder, SPARSE).vertices]
    assert np.linalg.norm(back - neutral, axis=1).mean() < 0.2 * np.linalg.norm(true - neutral, axis=1).mean()


def test_the_mirrored_code_draws_the_mirrored_head(model: ControlledDecoder, heads: IctHeads) -> None:
    torch.manual_seed(0)
    c = model.config
    model.ensemble.weights[-1].data.normal_()
    model.ensemble.weights[-1].data[c.n_pairs : c.n_pairs + c.n_middle] = 0  # members off the pairs have no mirror
    z_id, z_ex = (
        torch.randn(1, 100) @ model.identity_basis[:, :100].T,
        0.2 * torch.rand(1, 51) @ model.expression_basis.T,
    )
    x = torch.from_numpy(heads.neutral[:: len(heads.neutral) // 400] / MODEL_UNIT)[None]
    mirrored = model.sdf(x * torch.tensor([-1.0, 1, 1]), *model.mirror(z_id, z_ex))
    own = model.sdf(x, z_id, z_ex)
    assert (mirrored - own).abs().mean() < 0.1 * (model.sdf(x, *model.mirror(z_id, z_ex)) - own).abs().mean()


def test_anchors_come_first_and_edges_have_most(model: ControlledDecoder, heads: IctHeads, folder: Path) -> None:
    places = place(heads, folder, SPARSE)
    torch.testing.assert_close(model.anchors(torch.zeros(model.config.identity_dim)), model.mean_anchors)
    lids, lips = edge_vertices(heads, folder)
    rest = np.setdiff1d(np.arange(len(heads.neutral)), np.union1d(lids, lips))
    assert max(places.spacing[lids].max(), places.spacing[lips].max()) < 0.5 * np.median(places.spacing[rest])
