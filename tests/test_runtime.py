"""Settings of the process: those that the networks need last as long as their work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nphm_track import track
from nphm_track._runtime import prepare_torch
from nphm_track.tracking import pipeline


def flushed() -> bool:
    return sys.float_info.min / 2 == 0


@pytest.fixture(params=[False, True])
def before(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the process flushes denormal numbers already."""
    was = flushed()
    torch.set_flush_denormal(request.param)
    yield request.param
    torch.set_flush_denormal(was)


def test_tracking_flushes_denormals_and_leaves_the_arithmetic_of_its_caller(
    before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    within = []

    def fail(*_: object) -> None:
        within.append(flushed())
        raise RuntimeError("enough")

    monkeypatch.setattr(pipeline, "open_input", fail)
    with pytest.raises(RuntimeError, match="enough"):
        track(tmp_path / "clip.mp4")
    assert within == [True] and flushed() == before


def test_a_program_flushes_them_for_good(before: bool) -> None:
    prepare_torch()
    assert flushed()


def test_run_folders_and_sessions_are_read_without_loading_torch() -> None:
    """Their commands and worker processes begin seconds sooner."""
    code = "import sys, nphm_track.tracking.run_folder, nphm_track.batch.driver; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
