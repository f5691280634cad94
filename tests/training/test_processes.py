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


@pytest.mark.skipif(not distributed.is_available() or not distributed.is_gloo_available(), reason="no gloo")
def test_two_processes_have_the_losses_and_weights_of_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for command, name in (([sys.executable], "one"), (launch, "two")):
        subprocess.run([*command, WORKER, str(tmp_path / name)], check=True, env=environment, timeout=120)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one, two = (read_weights(tmp_path / name / "model.safetensors")[0] for name in ("one", "two"))
    assert all(torch.allclose(one[k], two[k], atol=1e-6) for k in one)
