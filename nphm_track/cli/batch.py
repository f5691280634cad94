"""``nphm-track batch``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from nphm_track.cli.export import FlameModel, Frames, GnmModel, Images, Overwrite, Textured, Unit, Up, frame_range
from nphm_track.cli.json_output import print_json
from nphm_track.cli.options import BREAK_LOCK_OPTION, with_track_options
from nphm_track.cli.signals import RESUMABLE, counted, interruptible
from nphm_track.errors import InputError, TakesFailedError
from nphm_track.files.names import text_of

if TYPE_CHECKING:
    from nphm_track.batch.manifest import Manifest
    from nphm_track.tracking.options import TrackOptions

DEFAULT_COMMAND = "run"
SESSION_OPTION = typer.Option("-o", "--output", metavar="OUT", help="The session's folder.")
SESSION_ARGUMENT = typer.Argument(metavar="OUT", help="A session's folder.")
JSON_OPTION = typer.Option("--json", help="Print one line of JSON and nothing else on stdout.")
QUIET_OPTION = typer.Option("-q", "--quiet", help="Print errors only.")
RAY_OPTION = typer.Option(
    metavar="ADDRESS", help="Work on a Ray cluster instead: its address, 'auto', or 'local' to start one here."
)

SLURM_OPTION = typer.Option(
    metavar="OPTIONS",
    help="Work as jobs of a Slurm cluster instead: options as in slurm_partition=cpu,timeout_min=60, or 'local'.",
)


class _BatchGroup(TyperGroup):
    """Sends ``batch FOLDER`` to ``batch run``. A folder called like a command is reached as ``./status``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_BatchGroup,
    no_args_is_help=True,
    help="Track all takes of a capture session: nphm-track batch FOLDER -o OUT (see: nphm-track batch run --help).",
)


@app.command("run")
@with_track_options
def run(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER|LIST", help="A folder of takes, or a .csv or .json list of them.")
    ],
    output: Annotated[Path, SESSION_OPTION],
    person: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="The person, as first group in the take's relative path. (default: first-level folder)",
        ),
    ] = None,
    photos: Annotated[
        bool, typer.Option("--photos", help="Images are photographs in no order: each is a take, and no folder is.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Local processes. (default: as many as threads and memory allow)")
    ] = None,
    ray: Annotated[str | None, RAY_OPTION] = None,
    slurm: Annotated[str | None, SLURM_OPTION] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of a worker; fixed when the session begins. (default: 1)")
    ] = None,
    update_identity: Annotated[
        bool,
        typer.Option(
            "--update-identity", help="Let added takes change a person's identity; tracks finished ones again."
        ),
    ] = False,
    break_lock: Annotated[bool, BREAK_LOCK_OPTION] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")] = False,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Write the session and track nothing: 'batch step' works on it.")
    ] = False,
    json: Annotated[bool, JSON_OPTION] = False,
    quiet: Annotated[bool, QUIET_OPTION] = False,
    **options: Any,
) -> None:
    """Track every take, each person with one identity; given again, the command goes on where it stopped.

    Ctrl-C ends after the frames in flight and saves; a second one stops at once.
    """
    from nphm_track.batch import driver, plan

    given = given_options(options)

    def planned() -> Manifest:
        return driver.planned(source, output, given, person=person, photos=photos, threads=threads)

    manifest = planned()
    if dry_run:
        _print_plan(manifest, plan.passed_over(source, output, photos=photos))
        typer.echo(driver.plan_line(manifest))
        return
    if plan_only:
        driver.save_plan(output, manifest, break_lock=break_lock)
        typer.echo(f"{driver.plan_line(manifest)}: nphm-track batch step {output} 0 to {len(manifest.jobs) - 1}")
        return
    again = ", and finished ones again where the identity changes" if update_identity else ""
    work(
        output,
        planned,
        driver.plan_line(manifest) + again,
        json,
        quiet,
        workers=workers,
        ray=ray,
        slurm=slurm,
        update_identity=update_identity,
        break_lock=break_lock,
    )


def given_options(options: dict[str, Any]) -> TrackOptions:
    """Those of a command's options that are not the defaults, which a session's manifest keeps."""
    from nphm_track.tracking.options import TrackOptions

    fields = TrackOptions.model_fields
    return TrackOptions.build(**{k: v for k, v in options.items() if v != fields[k].default})


def work(session: Path, manifest: Callable[[], Manifest], line: str, json: bool, quiet: bool, **settings: Any) -> None:
    """Work on a session with the progress on the terminal, after a first ``line``; settings as ``driver.work`` has."""
    from nphm_track.batch import driver
    from nphm_track.cli.progress import show_progress

    with _interrupts() as interrupted, show_progress(quiet) as progress:
        if line:
            progress.note(line)
        driver.work(session, manifest, progress=progress, interrupted=interrupted, **settings)
    _finish(session, json, quiet)


@app.command("status")
def status(
    session: Annotated[Path, SESSION_ARGUMENT],
    json: Annotated[bool, typer.Option("--json", help="Print the manifest.")] = False,
) -> None:
    """Say how far a session is, also while it runs."""
    from nphm_track.batch.manifest import Manifest

    manifest = Manifest.load(session)
    if json:
        print_json(manifest.model_dump(mode="json"))
    else:
        _print_status(manifest)


@app.command("step")
def step(
    session: Annotated[Path, SESSION_ARGUMENT],
    index: Annotated[int, typer.Argument(min=0, metavar="INDEX", help="Number of the take, from 0.")],
    json: Annotated[bool, JSON_OPTION] = False,
    quiet: Annotated[bool, QUIET_OPTION] = False,
) -> None:
    """Do the next step of one take, for the array jobs of a scheduler: observe it or, the second time, track it.

    'batch run --plan' writes the session before, 'batch run' takes in what the steps have left.
    """
    from nphm_track.batch import array
    from nphm_track.cli.progress import show_progress

    with interruptible(RESUMABLE), show_progress(quiet) as progress:
        job = array.step(session, index, progress)
    if json:
        print_json({"take": job.output, "state": job.state.value, "observed": job.observed})
    elif not quiet:
        typer.echo(f"{job.output}: {'observed' if job.state.value == 'queued' else job.state.value}")


@app.command("export")
def export(
    session: Annotated[Path, SESSION_ARGUMENT],
    format: Annotated[str, typer.Option("-f", "--format", metavar="FORMAT", help="As of nphm-track export.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FOLDER", help="Write PERSON/TAKE into it. (default: into each run folder)"
        ),
    ] = None,
    unit: Unit = "m",
    up: Up = "y",
    images: Images = False,
    frames: Frames = ":",
    textured: Textured = False,
    flame_model: FlameModel = None,
    gnm_model: GnmModel = None,
    overwrite: Overwrite = False,
    json: Annotated[bool, JSON_OPTION] = False,
    quiet: Annotated[bool, QUIET_OPTION] = False,
) -> None:
    """Export every take that is done, as 'nphm-track export' does. One that cannot be stops no other."""
    from nphm_track.batch.manifest import Manifest, State, output_path
    from nphm_track.cli.progress import show_progress
    from nphm_track.errors import NphmTrackError
    from nphm_track.export import formats
    from nphm_track.export.options import ExportOptions
    from nphm_track.tracking.run_folder import read_run

    options = ExportOptions(
        unit=unit, up=up, images=images, frames=frame_range(frames), textured=textured, flame_model=flame_model,
        gnm_model=gnm_model,
    )  # fmt: skip
    kind = formats.known(format)
    name = kind.suffixes[0] if kind.suffixes else f"/{kind.name}"
    written, failed = [], []
    with interruptible(), show_progress(quiet) as progress:
        for job in Manifest.load(session).jobs:
            if job.state is State.DONE:
                try:
                    run = read_run(output_path(session, job))
                    place = output and output / (job.output + name)
                    written.append(text_of(formats.export(run, format, place, options, progress, overwrite)))
                except NphmTrackError as error:
                    failed.append({"take": job.output, "error": str(error)})
                    progress.note(f"{job.output}: {error}")
    if json:
        print_json({"written": written, "failed": failed})
    elif not quiet:
        typer.echo("\n".join(written))
    if failed:
        raise TakesFailedError(f"{len(failed)} of {len(written) + len(failed)} takes could not be exported")


@app.command("retry")
def retry(
    session: Annotated[Path, SESSION_ARGUMENT],
    failed: Annotated[bool, typer.Option("--failed", help="The takes that failed.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Local processes.")] = None,
    ray: Annotated[str | None, RAY_OPTION] = None,
    slurm: Annotated[str | None, SLURM_OPTION] = None,
    break_lock: Annotated[bool, BREAK_LOCK_OPTION] = False,
    json: Annotated[bool, JSON_OPTION] = False,
    quiet: Annotated[bool, QUIET_OPTION] = False,
) -> None:
    """Track failed takes again. Runs of clips that have changed are set aside, not deleted."""
    from nphm_track.batch import driver

    if not failed:
        raise InputError("say which takes: nphm-track batch retry OUT --failed")
    pools = {"workers": workers, "ray": ray, "slurm": slurm}
    work(session, lambda: driver.retried(session), "", json, quiet, **pools, break_lock=break_lock)


def _finish(session: Path, json: bool, quiet: bool) -> None:
    """The closing line. Raises TakesFailedError when a take failed."""
    from nphm_track.batch.manifest import INDEX_HTML, Manifest, State

    manifest = Manifest.load(session)
    failed = [job for job in manifest.jobs if job.state is State.FAILED]
    done = manifest.count(State.DONE)
    if json:
        errors = [{"take": job.output, "error": job.error} for job in failed]
        print_json({"session": text_of(session), "takes": len(manifest.jobs), "done": done, "failed": errors})
    elif not quiet:
        typer.echo(f"{done} of {len(manifest.jobs)} takes done; see {session / INDEX_HTML}")
    if failed:
        count = f"{len(failed)} take{'s' * (len(failed) > 1)}"
        raise TakesFailedError(f"{count} failed; nphm-track batch status {session} says why")


def _print_plan(manifest: Any, passed_over: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("take", "state", "clip", "options", box=None, pad_edge=False)
    for job in manifest.jobs:
        options = " ".join(f"{key}={value}" for key, value in job.options.items())
        table.add_row(job.output, job.state.value, job.input, options)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    for job in manifest.jobs:
        if job.error:
            console.print(f"{job.output}: {job.error}")
    for path, reason in passed_over:
        console.print(f"passed over: {path}: {reason}")


def _print_status(manifest: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("take", "state", "attempts", "frames", "lost", "landmark error", "seconds", box=None, pad_edge=False)
    for job in manifest.jobs:
        percent = job.quality.get("landmark_error_percent")
        table.add_row(
            job.output,
            job.state.value + (" (observed)" if job.observed and job.state.value == "queued" else ""),
            str(job.attempts or ""),
            str(job.quality.get("frames") or ""),
            str(job.quality.get("lost", "")),
            "" if percent is None else f"{percent:.2f} %",
            f"{sum(job.seconds.values()):.0f}" if job.seconds else "",
        )
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    for job in manifest.jobs:
        if job.error:
            console.print(f"{job.output}: {job.error}")
    from nphm_track.batch.manifest import State
    from nphm_track.batch.summary import identity_line

    for person, identity in manifest.identities.items():
        console.print(f"{person}: {identity_line(identity)}")
    console.print(", ".join(f"{manifest.count(state)} {state.value}" for state in State if manifest.count(state)))


@contextmanager
def _interrupts() -> Iterator[Callable[[], int]]:
    """Counts requests to end; a run that ends on one says that it goes on."""

    def tell(count: int) -> None:
        line = "stopping after the frames in flight; once more stops now" if count == 1 else "stopping now"
        print(f"\nnphm-track: {line}", file=sys.stderr)

    with interruptible(RESUMABLE), counted(tell) as interrupted:
        yield interrupted
