"""Recipes: one TOML file describes one training run; unknown keys are refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat

from nphm_track import config_file
from nphm_track.config_file import Model, Strict
from nphm_track.errors import InputError


class TrainerConfig(Strict):
    """How long and how fast to train; the same for every task."""

    steps: int = Field(gt=0, description="optimiser steps")
    minutes: float | None = Field(None, gt=0, description="end after this time; the schedule then follows the clock")
    device: str = Field("cpu", description="torch device to train on; tasks that render train on any")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the networks' products (autocast)")
    learning_rate: float = Field(gt=0, description="peak of the one-cycle cosine schedule")
    matrix_learning_rate: float = Field(0.0, ge=0, description="peak for linear layers, by Muon; 0: AdamW for all")
    warmup: int = Field(200, ge=0, description="steps of linear warm-up")
    final_fraction: float = Field(0.01, ge=0, le=1, description="last learning rate as a fraction of the peak")
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0, description="gradient norm limit")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights, which are evaluated and released")
    seed: int = 0
    evaluate_every: int = Field(1000, gt=0, description="steps")
    checkpoint_minutes: float = Field(5.0, gt=0, le=10, description="a checkpoint at least this often")


class Recipe(Strict):
    """A whole recipe file: which task, its trainer settings and the task's own typed table."""

    task: str
    trainer: TrainerConfig
    losses: dict[str, NonNegativeFloat] = Field(
        default_factory=dict, description="weight of each loss, by its name in the log"
    )
    data: dict[str, Any] = Field(default_factory=dict, description="checked by the task")


def read_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a TOML recipe; ``overrides`` are ``table.key=value`` in TOML. Raises InputError with the offending key."""
    values = config_file.read_toml(path, "recipe")
    for item in overrides or []:
        key, separator, text = item.partition("=")
        if not separator:
            raise InputError(f"override '{item}' is not key=value")
        try:
            value = tomllib.loads(f"v = {text}")["v"]
        except (tomllib.TOMLDecodeError, RecursionError):
            value = text
        table = values
        *parents, leaf = key.split(".")
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise InputError(f"override '{item}': {parent} is not a table")
        if parents == ["losses"] and leaf not in table:
            raise InputError(f"override '{item}': [losses] has no {leaf}")
        table[leaf] = value
    return parse(Recipe, values)


def parse(model: type[Model], values: dict[str, Any]) -> Model:
    """``values`` of a recipe as a model. Raises InputError with one line for the first that is wrong."""
    return config_file.parse(model, values, "recipe")
