"""``nphm-track VIDEO``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nphm_track.cli.json_output import print_json
from nphm_track.cli.options import BREAK_LOCK_OPTION, with_track_options
from nphm_track.cli.signals import RESUMABLE, interruptible
from nphm_track.errors import InputError


@with_track_options
def track(
    input: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video, an image, or a folder of images.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="RUN", help="Run folder. (default: ./<name>_nphm)")
    ] = None,
    people: Annotated[
        str | None,
        typer.Option(metavar="all", help="Everybody in the shot, of one pass over it: a run folder each, in RUN."),
    ] = None,
    photos: Annotated[
        bool,
        typer.Option(
            "--photos",
            help="VIDEO is a folder of photographs of one person, in no order: one identity, and a camera and a run "
            "folder for each. RUN becomes a session, as of nphm-track batch.",
        ),
    ] = False,
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

    if people not in (None, "all"):
        raise InputError(f"--people {people}: the only choice is 'all'; --face and --face-at choose one person")
    if photos:
        if people or overwrite:
            raise InputError(f"--photos does not go with {'--people' if people else '--overwrite'}")
        return _track_photos(input, output, options, break_lock=break_lock, json=json, quiet=quiet)
    settings = TrackOptions.build(**options)
    with interruptible(RESUMABLE):
        from nphm_track import tracker

        arguments: dict[str, Any] = {"options": settings, "overwrite": overwrite, "break_lock": break_lock}
        with show_progress(quiet) as progress:
            if people:
                runs = tracker.track_people(input, output, **arguments, progress=progress)
            else:
                runs = [tracker.track(input, output, **arguments, progress=progress)]
    if json:
        print_json({"people": [summary(run) for run in runs]} if people else summary(runs[0]))
    elif not quiet:
        for run in runs:
            print_summary(run)


def _track_photos(
    folder: Path, output: Path | None, options: dict[str, Any], *, break_lock: bool, json: bool, quiet: bool
) -> None:
    """A session of one person, whose takes are the photographs of a folder."""
    from nphm_track.batch import driver
    from nphm_track.batch.manifest import Manifest
    from nphm_track.cli.batch import given_options, work
    from nphm_track.tracking.run_folder import default_output

    if not folder.is_dir():
        raise InputError(f"{folder}: --photos is for a folder of photographs")
    session, given = output or default_output(folder), given_options(options)

    def planned() -> Manifest:
        return driver.planned(folder, session, given, photos=True)

    work(session, planned, driver.plan_line(planned()), json, quiet, break_lock=break_lock)
