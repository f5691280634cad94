"""What the recipes of the paper's size take, counted on the meta device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from nphm_track.errors import InputError
from nphm_track.training.describe import describe, measure, table
from nphm_track.training.recipe import read_recipe

RECIPES = Path(__file__).parents[2] / "training" / "recipes"


def test_a_linear_layer_is_counted_as_on_paper() -> None:
    with torch.device("meta"):
        net, x = nn.Linear(8, 16), torch.zeros(4, 8)
    flop, kept = measure(net, lambda: net(x), half=False)
    assert flop == 2 * (2 * 4 * 8 * 16)  # forward, and backward to the weights; the input needs no gradient
    assert kept == 4 * 8 * 4  # the input
    net.requires_grad_(False)
    assert measure(net, lambda: net(x), half=False) == (2 * 4 * 8 * 16, 0)


def test_the_papers_sizes() -> None:
    costs = {name: describe(read_recipe(RECIPES / f"{name}.toml")) for name in ("e_n", "e_p", "pix2nphm")}
    encoder, _, regressor = costs["pix2nphm"].parts
    assert 85e6 < encoder.parameters < 88e6 and encoder.trained == 0  # ViT-B
    assert 8 * 12 * 1024**2 < regressor.parameters < 1.1 * 8 * 12 * 1024**2
    assert "2116 tokens of 1024" in regressor.shapes and "2176 + 100" in regressor.shapes
    assert costs["e_n"].batch == 32 and costs["e_n"].flop() == pytest.approx(costs["e_p"].flop(), rel=0.01)
    text = table(costs, 150, 8)
    assert text.count("| pix2nphm |") == 4 and "ViT, points (frozen)" in text


def test_checkpointing_takes_memory_down_and_time_up() -> None:
    plain, frugal = (describe(read_recipe(RECIPES / "e_n.toml", o)) for o in ([], ["data.recompute=true"]))
    assert frugal.parts[0].kept < 0.5 * plain.parts[0].kept
    assert 1.1 * plain.flop() < frugal.flop() < 1.4 * plain.flop()


def test_other_recipes_are_refused() -> None:
    with pytest.raises(InputError, match="no recipe of the paper's size"):
        describe(read_recipe(RECIPES / "nphm_small.toml"))
