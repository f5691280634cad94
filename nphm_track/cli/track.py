"""``nphm-track VIDEO``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nphm_track.cli.options import with_track_options


@with_track_options
def track(
    input: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video, an image, or a folder of images.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="RUN", help="Run folder. (default: ./<name>_nphm)")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over in a run folder made of the same input with other options.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON and nothing else on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
    **options: Any,
) -> None:
    """Track the face of VIDEO (the default command).

    Writes a run folder: meshes, cameras, parameters and an overlay video. An interrupted run goes on where it stopped
    when the same command is given again.
    """
    from nphm_track.cli.progress import show_progress
    from nphm_track.cli.report import print_summary, summary_json
    from nphm_track.tracking.options import TrackOptions

    settings = TrackOptions.build(**options)
    try:
        from nphm_track import tracker

        with show_progress(quiet) as progress:
            run = tracker.track(input, output, options=settings, overwrite=overwrite, progress=progress)
    except KeyboardInterrupt:
        print("nphm-track: interrupted; the same command goes on where it stopped", file=sys.stderr)
        raise typer.Exit(130) from None
    if json:
        print(summary_json(run))
    elif not quiet:
        print_summary(run)
