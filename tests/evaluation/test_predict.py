"""Seven points of heads whose model does not place all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nphm_track.conventions import MODEL_UNIT, POINTS7_478
from nphm_track.evaluation.predict import HeadReader


def test_they_are_the_wrapped_templates(standin: Path) -> None:
    reader = HeadReader(str(standin))
    points = reader.mean()["neutral"].points7
    known = [k for k, p in enumerate(POINTS7_478.values()) if p in reader.model.known_landmarks]  # type: ignore[operator]
    own = reader.model.landmarks(reader.model.mean_identity).detach().numpy() * MODEL_UNIT
    anchors = own[[list(POINTS7_478.values())[k] for k in known]]
    assert points.shape == (7, 3) and not reader.places_all
    assert np.linalg.norm(points[known] - anchors, axis=1).max() < 0.008
