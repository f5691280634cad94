"""``nphm-track train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file of training/.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace the recipe's.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder of the run. (default: ./runs/<recipe>)")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
) -> None:
    """Train one of the models from its recipe."""
    from nphm_track.training import cli

    metrics = cli.train(recipe, output or Path("runs") / recipe.stem, resume=resume, overrides=overrides or [])
    for name, value in metrics.items():
        typer.echo(f"{name}: {value:.6g}")
