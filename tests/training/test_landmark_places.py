"""Where the 478 landmarks lie on ICT heads: lips and lids must move as ICT's own 68 landmarks say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nphm_track.conventions import LIDS, LIP_RIMS
from nphm_track.training.ict import IctHeads, load_ict

PLACES = Path(__file__).parents[2] / "training" / "assets" / "ict_landmarks478.npz"
OWN_RIMS = ((60, 61, 62, 63, 64), (60, 67, 66, 65, 64))
"""ICT's landmarks of the inner rims, from the face's right to its left."""
AGREE_MM, AGREE_SHARE = 2.0, 0.5
"""How much a point may move otherwise than the line between its neighbours of the 68, which themselves move
differently: so many mm, and that share of their difference."""


@pytest.fixture(scope="module")
def heads(shared_data: Path) -> IctHeads:
    return load_ict(shared_data / "ict_facekit")


@pytest.fixture(scope="module")
def own68(shared_data: Path, heads: IctHeads) -> NDArray[np.int64]:
    """Vertices [68] of ICT's landmarks."""
    table = json.loads((shared_data / "ict_facekit" / "vertex_indices.json").read_text())
    return np.searchsorted(heads.source, table["idx_to_landmark_verts"])


def carried(heads: IctHeads, values: NDArray[np.float32], points: tuple[int, ...]) -> NDArray[np.float32]:
    """Vertex values [..., V, 3] at landmarks, mm [..., P, 3]."""
    with np.load(PLACES) as where:
        face, bary = where["face"][list(points)], where["bary"][list(points)]
    return 1000 * (values[..., heads.faces[face], :] * bary[..., None]).sum(-2)


def test_inner_lips_move_as_the_heads_own_landmarks_under_every_expression(
    heads: IctHeads, own68: NDArray[np.int64]
) -> None:
    for rim, own in zip(LIP_RIMS, OWN_RIMS, strict=True):
        place, motion = carried(heads, heads.neutral, rim), carried(heads, heads.expression, rim)
        known = own68[list(own)]
        x = 1000 * heads.neutral[known, 0]
        for name, found, true in zip(heads.expression_names, motion, 1000 * heads.expression[:, known], strict=True):
            expected = np.stack([np.interp(place[:, 0], x, true[:, i]) for i in range(3)], 1)
            error = np.linalg.norm(found - expected, axis=1)
            between = np.searchsorted(x, place[:, 0]).clip(1, len(x) - 1)
            allowed = AGREE_MM + AGREE_SHARE * np.linalg.norm(true[between] - true[between - 1], axis=1)
            assert (error < allowed).all(), f"{name}: {error.round(1)} mm, {allowed.round(1)} allowed"


def test_an_open_jaw_parts_every_pair_of_inner_lip_points(heads: IctHeads) -> None:
    jaw = heads.expression[heads.expression_names.index("jawOpen")]
    upper, lower = (carried(heads, jaw, rim)[:, 1] for rim in LIP_RIMS)
    assert (upper - lower > 12).all()


def test_lid_points_lie_on_lids_not_on_eyeballs(heads: IctHeads) -> None:
    with np.load(PLACES) as where:
        faces = heads.faces[where["face"][list(LIDS)]]
    assert not heads.is_eye[faces].any()
    assert not heads.is_pocket[faces].any()
