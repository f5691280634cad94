"""Landmarks that are followed from step to step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nphm_track.refine.landmarks import POINTS, LandmarkRows


@pytest.fixture(scope="module")
def rows(person: Any) -> LandmarkRows:
    """Of heads with closed lips, on which two points of the skin fit a point of an inner rim."""
    z_id = person.truth.z_id
    z_ex = 0.3 * person.truth.z_ex
    rows: LandmarkRows = person.landmarks.linearise(person.landmarks.carry(z_id, z_ex), z_id, z_ex, identity=False)
    return rows


def test_a_step_that_differs_in_its_last_bits_moves_no_landmark_elsewhere(person: Any, rows: LandmarkRows) -> None:
    code = 0.02 * torch.randn(3, rows.by_code.shape[-1], generator=torch.Generator().manual_seed(0))
    one, other = (person.landmarks.ahead(rows, code * (1 + k * 1e-6)) for k in (0, 1))
    assert (one - other).norm(dim=-1).max() < 1e-6


def test_a_point_that_strays_to_the_other_lip_is_put_back(person: Any, rows: LandmarkRows) -> None:
    no_step = torch.zeros(3, rows.by_code.shape[-1])
    place = POINTS.index(13)  # the middle of the upper lip's inner rim
    strayed = rows.points.clone()
    strayed[:, place, 1] -= 0.008
    kept = person.landmarks.ahead(rows, no_step)
    found = person.landmarks.ahead(replace(rows, points=strayed), no_step)
    assert (found - kept)[:, place].norm(dim=-1).max() < 0.0015
    others = torch.arange(len(POINTS)) != place
    assert (found - kept)[:, others].norm(dim=-1).max() < 0.001
