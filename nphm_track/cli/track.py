"""``nphm-track VIDEO``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nphm_track.cli.json_output import print_json
from nphm_track.cli.options import BREAK_LOCK_OPTION, with_track_options
from nphm_track.cli.signals import RESUMABLE, interruptible


@with_track_options
def track(
    input: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video, an image, or a folder of images.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="RUN", help="Run folder. (default: ./<name>_nphm)")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over in a run folder made of the same input with other options.")
    ] = False,
    break_lock: Annotated[bool, BREAK_LOCK_OPTION] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON and nothing else on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
    **options: Any,
) -> None:
    """Track the face of VIDEO (the default command).

    Writes a run folder: meshes, cameras, parameters and an overlay video. An interrupted run goes on where it stopped
    when the same command is given again.
    """
    from nphm_track.cli.progress import show_progress
    from nphm_track.cli.report import print_summary, summary
    from nphm_track.tracking.options import TrackOptions

    settings = TrackOptions.build(**options)
    with interruptible(RESUMABLE):
        from nphm_track import tracker

        with show_progress(quiet) as progress:
            run = tracker.track(
                input, output, options=settings, overwrite=overwrite, break_lock=break_lock, progress=progress
            )
    if json:
        print_json(summary(run))
    elif not quiet:
        print_summary(run)
