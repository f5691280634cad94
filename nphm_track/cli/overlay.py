"""``nphm-track render-overlay``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nphm_track.tracking.options import TrackOptions

_FIELDS = TrackOptions.model_fields


def render_overlay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Video or image to write. (default: the overlay of RUN)"),
    ] = None,
    style: Annotated[str, typer.Option(help=_FIELDS["style"].description)] = "shaded",
    opacity: Annotated[float | None, typer.Option(min=0, max=1, help=_FIELDS["opacity"].description)] = None,
    size: Annotated[float, typer.Option(min=0.05, max=8, help="Size relative to the original frame.")] = 1.0,
    side_by_side: Annotated[bool, typer.Option("--side-by-side", help=_FIELDS["side_by_side"].description)] = False,
    renderer: Annotated[str, typer.Option(help=_FIELDS["renderer"].description)] = "numba",
    clip: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the run's clip is now. (default: found by itself)")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file called -o that this program did not make.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
) -> None:
    """Draw the overlay of a run again, with another look."""
    from nphm_track.cli.progress import show_progress
    from nphm_track.tracking import render

    with show_progress(quiet) as progress:
        written = render.render_overlay(
            run,
            output=output,
            style=style,
            opacity=opacity,
            scale=size,
            side_by_side=side_by_side,
            renderer=renderer,
            clip=clip,
            overwrite=overwrite,
            progress=progress,
        )
    if not quiet:
        typer.echo(written)
