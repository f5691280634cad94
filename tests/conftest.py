from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # torch's threads would fight for the cores that the workers share
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """``data/`` of the folder NPHM_TRACK_SHARED, or of ``shared`` beside the checkout; skips when there is none."""
    shared = Path(os.environ.get("NPHM_TRACK_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (shared / "data").is_dir():
        pytest.skip("development data not present")
    return shared / "data"


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for the public MonoNPHM checkpoint, imported: a model folder."""
    from nphm_track.heads.import_mononphm import import_mononphm

    public = Path(__file__).parents[1] / "training" / "assets" / "mononphm_standin"
    return import_mononphm(public, tmp_path_factory.mktemp("models") / "standin").parent
