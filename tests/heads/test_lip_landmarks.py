"""Landmarks of the inner lips stay on their own lip."""

from __future__ import annotations

import numpy as np
import torch

from nphm_track.conventions import LIP_RIMS, MODEL_UNIT
from nphm_track.heads.landmarks import LandmarkCarrier
from nphm_track.heads.loading import load_head_model


def test_a_point_on_the_other_lip_goes_with_its_neighbours() -> None:
    model = load_head_model()
    carrier = LandmarkCarrier(model, torch.zeros(model.config.identity_dim), range(478))
    assert carrier.origin is not None
    start = carrier.origin[0]
    moved = start + torch.tensor([0.0, -0.01, 0.0])
    for jumped in (13, 415, 95):
        wrong = moved.clone()
        wrong[jumped, 1] += 0.007 / MODEL_UNIT
        torch.testing.assert_close(carrier._on_own_lips(start, wrong), moved)
    small = moved.clone()
    small[13, 1] += 0.001 / MODEL_UNIT  # lips are not rigid
    torch.testing.assert_close(carrier._on_own_lips(start, small), small)


def test_open_mouths_of_random_people_have_even_lips() -> None:
    """The opening grows towards the middle without a jump."""
    model = load_head_model()
    names = model.config.expression_names
    weights = torch.zeros(len(names))
    for name, value in (("jawOpen", 0.5), ("mouthSmile_L", 0.4), ("mouthSmile_R", 0.4)):
        weights[names.index(name)] = value
    z_ex = (model.expression_basis @ weights)[None]
    rng = np.random.default_rng(1)
    for _ in range(4):
        w = torch.from_numpy(rng.standard_normal(100).astype(np.float32))
        points = LandmarkCarrier(model, model.identity_basis[:, :100] @ w, range(478))(z_ex)[0].numpy()
        upper, lower = (points[list(rim)] for rim in LIP_RIMS)
        gap = upper[:, 1] - lower[:, 1]
        assert gap[2:7].min() > 0.008
        assert np.abs(np.diff(gap[2:7], 2)).max() < 0.003
