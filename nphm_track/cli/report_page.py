"""``nphm-track report``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Page to write. (default: RUN/report.html)")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file called -o that this program did not make.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
) -> None:
    """Write report.html: the run on one page that needs no network, for any browser."""
    from nphm_track.export.report import write_report
    from nphm_track.tracking.run_folder import read_run, writing_into

    done = read_run(run)
    with writing_into(done) if output is None else nullcontext():
        written = write_report(done, output, overwrite=overwrite)
    if not quiet:
        typer.echo(written)
