from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from nphm_track.models import read_weights, write_weights

RELEASE = Path(__file__).parents[2] / "training" / "release.py"


def test_the_mean_with_the_weights_released_before(tmp_path: Path) -> None:
    released, run = tmp_path / "models" / "net" / "model.safetensors", tmp_path / "run.safetensors"
    released.parent.mkdir(parents=True)
    for path, value in ((released, 1.0), (run, 2.0)):
        write_weights(
            path, {"w": torch.full((3,), value), "faces": torch.arange(4, dtype=torch.int32)}, {"kind": "net"}
        )
    subprocess.run([sys.executable, RELEASE, run, "net", "--mean", "net"], cwd=tmp_path, check=True)
    tensors, config = read_weights(released)
    torch.testing.assert_close(tensors["w"].float(), torch.full((3,), 1.5))
    assert tensors["faces"].dtype == torch.int32 and tensors["faces"].tolist() == [0, 1, 2, 3]
    assert config["kind"] == "net"
