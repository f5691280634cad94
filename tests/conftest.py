from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """``data/`` of the folder NPHM_TRACK_SHARED, or of ``shared`` beside the checkout; skips when there is none."""
    shared = Path(os.environ.get("NPHM_TRACK_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (shared / "data").is_dir():
        pytest.skip("development data not present")
    return shared / "data"
