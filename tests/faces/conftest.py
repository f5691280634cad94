"""Fixtures of the face tests."""

from __future__ import annotations

import numpy as np
import pytest

from nphm_track.faces.landmarker import FaceLandmarker


@pytest.fixture(scope="session")
def landmarker() -> FaceLandmarker:
    return FaceLandmarker.from_pretrained()


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    from skimage import data

    return data.astronaut()
