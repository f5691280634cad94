"""The table of the paper's ablations."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from nphm_track.models import write_weights
from nphm_track.training.cli import read_recipe
from nphm_track.training.pix2nphm_task import Pix2NphmData
from nphm_track.training.recipe import parse

TRAINING = Path(__file__).parents[2] / "training"


@pytest.fixture
def ablations(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TRAINING))
    import ablations

    return ablations


def test_every_variant_is_a_valid_recipe() -> None:
    tables = tomllib.loads((TRAINING / "ablations.toml").read_text())
    for name in ("pix2nphm", "pix2nphm_standin"):
        for rows in tables.values():
            for changes in rows.values():
                recipe = read_recipe(TRAINING / "recipes" / f"{name}.toml", changes)
                parse(Pix2NphmData, recipe.data)


def test_variants_are_trained_once_and_printed(
    ablations: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    trained: list[list[str]] = []

    def train(recipe: Path, out: Path, *, resume: bool, overrides: list[str]) -> None:
        trained.append(overrides)
        metrics = {"steps": 1, "hours": 0.1, "sdf_mm": float(len(trained))}
        write_weights(out / "model.safetensors", {"w": torch.zeros(1)}, {"training": metrics})

    monkeypatch.setattr(ablations, "train", train)
    arguments = ["ablations.py", "recipe.toml", "-o", str(tmp_path), "--only", "encoders", "supervision"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--print"])
    ablations.main()
    assert not trained and "| encoders | E_n |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*arguments[:2], "trainer.steps=9", *arguments[2:]])
    ablations.main()
    assert len(trained) == 6 and trained[0] == ["trainer.steps=9"]  # the whole recipe is in both tables
    out = capsys.readouterr().out
    assert "| table | variant | sdf_mm |" in out and "| supervision | 3-D and 2-D | 1.000 |" in out
    assert "| encoders | E_n | 2.000 |" in out and "| supervision | 3-D only | 5.000 |" in out
