"""``nphm-track report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Page to write. (default: RUN/report.html)")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
) -> None:
    """Write report.html: the run on one page that needs no network, for any browser."""
    from nphm_track.export.report import write_report
    from nphm_track.tracking.run_folder import read_run

    written = write_report(read_run(run), output)
    if not quiet:
        typer.echo(written)
