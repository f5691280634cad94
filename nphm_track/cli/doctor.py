"""``nphm-track doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nphm_track.errors import InputError, ModelError, NphmTrackError


def doctor(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A run folder to validate.")] = None,
) -> None:
    """Check this installation, or validate a run folder (exit code 2 when something is wrong with it)."""
    if run is None:
        _check_installation()
    else:
        _check_run(run)


def _check_run(path: Path) -> None:
    from nphm_track.tracking.validate import validate_run

    problems = validate_run(path)
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise InputError(f"{path}: {len(problems)} problem{'s' * (len(problems) > 1)}")
    typer.echo(f"{path} is a valid run")


def _check_installation() -> None:
    from rich.console import Console
    from rich.table import Table

    from nphm_track import doctor

    console = Console(soft_wrap=True, highlight=False)
    for title, rows in doctor.report().items():
        console.print(title, style="bold")
        table = Table.grid(padding=(0, 2))
        for row in rows:
            table.add_row("", *row)
        console.print(table)
    models = doctor.check_models()
    checks = models + doctor.self_test()
    console.print("checks", style="bold")
    for check in checks:
        console.print(f"  {'ok    ' if check.ok else 'FAILED'}  {check.name}: {check.detail}", markup=False)
    if not all(check.ok for check in models):
        raise ModelError("a model file is missing or damaged")
    if not all(check.ok for check in checks):
        raise NphmTrackError("the self-test failed")
