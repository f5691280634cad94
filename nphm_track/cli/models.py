"""``nphm-track models``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="List the released models, check their files, or convert a public one.", no_args_is_help=True)


@app.command("list")
def list_models() -> None:
    """Name, size, licence and training recipe of each released model."""
    from rich.console import Console
    from rich.table import Table

    from nphm_track.models import released_models

    table = Table("model", "size", "licence", "sha256", "recipe", box=None, pad_edge=False)
    for model in released_models():
        recipes = model.recipe.replace(", ", "\n")
        table.add_row(model.name, f"{model.size / 1e6:.1f} MB", model.licence, model.sha256[:12], recipes)
    Console(width=max(Console().width, 110), highlight=False).print(table)  # nothing is cut off


@app.command("verify")
def verify_models() -> None:
    """Compare size and SHA-256 of every model file with the index; exit code 4 when one differs."""
    from nphm_track.doctor import model_problem
    from nphm_track.errors import ModelError
    from nphm_track.models import released_models

    damaged = []
    for model in released_models():
        problem = model_problem(model)
        typer.echo(f"{model.name}: {problem or 'ok'}")
        damaged += [model.name] * bool(problem)
    if damaged:
        raise ModelError(f"missing or damaged: {', '.join(damaged)}")


@app.command("import-mononphm")
def import_mononphm(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Public model folder: configs.yaml, checkpoints/, anchors_65.npy.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Model folder to write. (default: beside the released models)"
        ),
    ] = None,
    anchors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="anchors_65.npy, when it lies neither in FOLDER nor beside it."),
    ] = None,
) -> None:
    """Convert the public MonoNPHM checkpoint to a model folder. Code pickled into it is refused, never run."""
    from nphm_track.heads.import_mononphm import import_mononphm as convert

    typer.echo(convert(folder, output, anchors))
