from __future__ import annotations

from pathlib import Path

import pytest

from nphm_track.errors import InputError
from nphm_track.training.cli import build_task
from nphm_track.training.recipe import Strict, parse, read_recipe

RECIPE = """
task = "head"
[trainer]
steps = 100
learning_rate = 1e-3
[losses]
neutral = 100.0
[data]
shards = "somewhere"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def test_values_and_defaults(recipe: Path) -> None:
    read = read_recipe(recipe)
    assert (read.task, read.trainer.steps, read.trainer.learning_rate, read.trainer.seed) == ("head", 100, 1e-3, 0)
    assert read.data == {"shards": "somewhere"}


def test_overrides_are_toml_values_or_plain_text(recipe: Path) -> None:
    data = ["data.shards=/a/b c", "data.heads=4", "data.on=true", 'data.name="x"']
    read = read_recipe(recipe, ["trainer.steps=7", "trainer.ema=0.5", *data])
    assert (read.trainer.steps, read.trainer.ema) == (7, 0.5)
    assert read.data == {"shards": "/a/b c", "heads": 4, "on": True, "name": "x"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.stepz=7", r"trainer\.stepz: Extra inputs"),
        ("colour=3", "colour: Extra inputs"),
        ("trainer.steps=0", r"trainer\.steps: .*greater than 0"),
        ("trainer.steps=many", r"trainer\.steps: .*valid integer"),
        ("trainer.checkpoint_minutes=11", r"trainer\.checkpoint_minutes"),
        ("trainer.steps", "'trainer.steps' is not key=value"),
        ("losses.neutral=-1", r"losses\.neutral: .*greater than or equal to 0"),
        ("losses.neutrel=1", r"\[losses\] has no neutrel"),
    ],
)
def test_bad_values_are_refused_by_name(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_recipe(recipe, [override])


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('task = "head"\n[trainer]\nsteps = 3\n')
    with pytest.raises(InputError, match=r"trainer\.learning_rate: Field required"):
        read_recipe(path)


def test_unreadable_files_are_input_errors(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("task = [")
    for path in (broken, tmp_path / "missing.toml", tmp_path):
        with pytest.raises(InputError, match=r"cannot be read|is not a recipe"):
            read_recipe(path)


def test_tables_of_a_task_are_strict(recipe: Path) -> None:
    class Table(Strict):
        shards: str

    assert parse(Table, read_recipe(recipe).data).shards == "somewhere"
    with pytest.raises(InputError, match="shard: Extra inputs"):
        parse(Table, {"shards": "x", "shard": "y"})


def test_an_unknown_task_is_named(recipe: Path) -> None:
    with pytest.raises(InputError, match="unknown task 'hair'"):
        build_task(read_recipe(recipe, ["task=hair"]))


def test_shipped_recipes_are_valid() -> None:
    recipes = sorted((Path(__file__).parents[2] / "training" / "recipes").glob("*.toml"))
    assert recipes
    for path in recipes:
        assert read_recipe(path).trainer.steps > 0
