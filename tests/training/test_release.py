from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from nphm_track.models import read_weights, write_weights

RELEASE = Path(__file__).parents[2] / "training" / "release.py"


def release(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    run = folder / "run.safetensors"
    write_weights(run, {"w": torch.full((3,), 1.1), "faces": torch.arange(4, dtype=torch.int32)}, {"kind": "net"})
    return subprocess.run([sys.executable, RELEASE, run, "net", *arguments], cwd=folder, capture_output=True, text=True)


def test_a_release_is_rounded_to_half_precision(tmp_path: Path) -> None:
    assert release(tmp_path).returncode == 0
    tensors, config = read_weights(tmp_path / "models" / "net" / "model.safetensors")
    torch.testing.assert_close(tensors["w"].float(), torch.full((3,), 1.1).half().float())
    assert tensors["faces"].dtype == torch.int32 and tensors["faces"].tolist() == [0, 1, 2, 3]
    assert config["kind"] == "net"


def test_identities_are_not_drawn_towards_an_unknown_mean(tmp_path: Path) -> None:
    done = release(tmp_path, "--identity-trust", ".75")
    assert done.returncode == 2 and "--photos and --fits" in done.stderr
    assert not (tmp_path / "models").exists()


def test_the_weights_of_several_runs_are_averaged(tmp_path: Path) -> None:
    for name, value, steps in (("a", 1.0, 10), ("b", 3.0, 5)):
        training = {"steps": steps, "hours": 0.5, "loss": value}
        tensors = {"w": torch.full((2,), value), "faces": torch.arange(4, dtype=torch.int32)}
        write_weights(tmp_path / name, tensors, {"kind": "net", "training": training})
    command = [sys.executable, RELEASE, "a", "b", "net", "--shares", ".75", ".25"]
    assert subprocess.run(command, cwd=tmp_path).returncode == 0
    tensors, config = read_weights(tmp_path / "models" / "net" / "model.safetensors")
    assert tensors["w"].tolist() == [1.5, 1.5] and tensors["faces"].tolist() == [0, 1, 2, 3]
    assert config["training"] == {"hours": 1.0, "steps": 15}
    done = subprocess.run([*command[:-1], ".2"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "--shares" in done.stderr
