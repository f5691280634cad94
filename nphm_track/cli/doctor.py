"""``nphm-track doctor``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from nphm_track.cli.json_output import print_json
from nphm_track.errors import InputError, ModelError, NphmTrackError
from nphm_track.files.names import text_of


def doctor(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A run folder to validate.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")] = False,
) -> None:
    """Check this installation, or validate a run folder (exit code 2 when something is wrong with it)."""
    if run is None:
        _check_installation(json)
    else:
        _check_run(run, json)


def _check_run(path: Path, json: bool) -> None:
    from nphm_track.tracking.records import RunInfo, lost_words
    from nphm_track.tracking.run_folder import RUN_JSON
    from nphm_track.tracking.validate import validate_run

    problems = validate_run(path)
    if json:
        print_json({"run": text_of(path), "problems": problems})
    for problem in [] if json else problems:
        typer.echo(problem)
    if problems:
        raise InputError(f"{path}: {len(problems)} problem{'s' * (len(problems) > 1)}")
    if not json:
        quality = RunInfo.load(path / RUN_JSON).quality
        typer.echo(f"{path} is a valid run" + (f"; {lost_words(quality)}" if quality.get("lost") else ""))


def _check_installation(json: bool) -> None:
    from nphm_track import doctor

    report = doctor.report()
    if not json:
        _print_report(report)
    models = doctor.check_models()
    checks = models + doctor.self_test()
    if json:
        print_json({**report, "checks": [asdict(check) for check in checks]})
    for check in [] if json else checks:
        typer.echo(f"  {'ok    ' if check.ok else 'FAILED'}  {check.name}: {check.detail}")
    if not all(check.ok for check in models):
        raise ModelError("a model file is missing or damaged")
    if not all(check.ok for check in checks):
        raise NphmTrackError("the self-test failed")


def _print_report(report: Mapping[str, Sequence[tuple[str, ...]]]) -> None:
    """The sections, and the title of the checks that follow."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False, markup=False)
    for title, rows in report.items():
        console.print(title, style="bold")
        table = Table.grid(padding=(0, 2))
        for row in rows:
            table.add_row("", *row)
        console.print(table)
    console.print("checks", style="bold")
