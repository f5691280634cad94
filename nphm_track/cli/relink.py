"""``nphm-track relink``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def relink(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="Where its video, image or folder of images is now.")],
) -> None:
    """Tell a run where its clip is now, after either was moved.

    The clip is known by its SHA-256, whatever it is called.
    """
    from nphm_track.tracking import clip as clips
    from nphm_track.tracking.run_folder import read_run

    clips.relink(read_run(run), clip)
    typer.echo(f"{run}: its clip is {clip.absolute()}")
