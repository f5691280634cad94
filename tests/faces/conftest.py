"""Fixtures of the face tests."""

from __future__ import annotations

import os
from pathlib import Path

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


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(os.environ.get("NPHM_TRACK_SHARED", Path(__file__).parents[3] / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}")
    return folder
