"""Several processes train as one with the same global batch does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

from nphm_track.models import read_weights

WORKER = str(Path(__file__).parent / "worker.py")


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["total"] for row in rows if "total" in row]


pytestmark = pytest.mark.skipif(not distributed.is_available() or not distributed.is_gloo_available(), reason="no gloo")
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def work(folder: Path, *arguments: str, processes: int) -> int:
    """The worker's exit status."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable] if processes == 1 else LAUNCH
    return subprocess.run([*command, WORKER, str(folder), *arguments], env=environment, timeout=120).returncode


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    folder = tmp_path_factory.mktemp("one")
    assert work(folder, processes=1) == 0
    return folder


def test_two_processes_have_the_losses_and_weights_of_one(one: Path, tmp_path: Path) -> None:
    assert work(tmp_path, processes=2) == 0
    assert losses(tmp_path) == pytest.approx(losses(one), rel=1e-5)
    mine, theirs = (read_weights(folder / "model.safetensors")[0] for folder in (one, tmp_path))
    assert all(torch.allclose(mine[k], theirs[k], atol=1e-6) for k in mine)


def test_a_request_to_end_leaves_what_another_number_of_processes_goes_on_from(one: Path, tmp_path: Path) -> None:
    """SIGTERM to one process ends both behind the same step, with a checkpoint of it."""
    assert work(tmp_path, "12", processes=2) != 0
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 13
    assert work(tmp_path, processes=1) == 0
    mine, theirs = (read_weights(folder / "model.safetensors")[0] for folder in (one, tmp_path))
    assert all(torch.allclose(mine[k], theirs[k], atol=1e-6) for k in mine)
