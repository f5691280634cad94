from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from nphm_track.kd_tree import kd_tree


@pytest.mark.parametrize("flush", [False, True])
def test_points_that_are_mostly_0_are_found(flush: bool) -> None:
    points, queries = np.zeros((100, 3)), np.random.default_rng(0).random((20, 3))
    points[60:, 0] = np.linspace(0.1, 1, 40)
    expected = np.linalg.norm(queries[:, None] - points, axis=-1).min(1)
    was = sys.float_info.min / 2 == 0
    torch.set_flush_denormal(flush)
    try:
        found = kd_tree(points).query(queries)[0]
    finally:
        torch.set_flush_denormal(was)
    np.testing.assert_allclose(found, expected)
