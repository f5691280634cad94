from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nphm_track.models import read_weights, write_weights

RELEASE = Path(__file__).parents[2] / "training" / "release.py"
Release = Callable[..., int]


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """Runs the script in a folder with the weights of a run; returns its exit status."""
    run = {"w": torch.full((3,), 1.1), "faces": torch.arange(4, dtype=torch.int32)}
    write_weights(tmp_path / "run.safetensors", run, {"kind": "net"})
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [str(RELEASE), *arguments])
        try:
            runpy.run_path(str(RELEASE), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return call


def test_a_release_is_rounded_to_half_precision(release: Release, tmp_path: Path) -> None:
    assert release("run.safetensors", "net") == 0
    tensors, config = read_weights(tmp_path / "models" / "net" / "model.safetensors")
    torch.testing.assert_close(tensors["w"].float(), torch.full((3,), 1.1).half().float())
    assert tensors["faces"].dtype == torch.int32 and tensors["faces"].tolist() == [0, 1, 2, 3]
    assert config["kind"] == "net"


def test_identities_are_not_drawn_towards_an_unknown_mean(
    release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release("run.safetensors", "net", "--identity-trust", ".75") == 2
    assert "--photos and --fits" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_the_weights_of_several_runs_are_averaged(
    release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value, steps in (("a", 1.0, 10), ("b", 3.0, 5)):
        training = {"steps": steps, "hours": 0.5, "loss": value}
        tensors = {"w": torch.full((2,), value), "faces": torch.arange(4, dtype=torch.int32)}
        write_weights(tmp_path / name, tensors, {"kind": "net", "training": training})
    assert release("a", "b", "net", "--shares", ".75", ".25") == 0
    tensors, config = read_weights(tmp_path / "models" / "net" / "model.safetensors")
    assert tensors["w"].tolist() == [1.5, 1.5] and tensors["faces"].tolist() == [0, 1, 2, 3]
    assert config["training"] == {"hours": 1.0, "steps": 15}
    assert release("a", "b", "net", "--shares", ".75", ".2") == 2
    assert "--shares" in capsys.readouterr().err
