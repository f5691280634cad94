"""``nphm-track batch``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nphm_track.cli.options import BREAK_LOCK_OPTION, with_track_options
from nphm_track.cli.signals import RESUMABLE, counted, interruptible
from nphm_track.errors import InputError

DEFAULT_COMMAND = "run"
SESSION_OPTION = typer.Option("-o", "--output", metavar="OUT", help="The session's folder.")
RAY_OPTION = typer.Option(
    metavar="ADDRESS", help="Work on a Ray cluster instead: its address, 'auto', or 'local' to start one here."
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
    workers: Annotated[
        int | None, typer.Option(min=1, help="Local processes. (default: as many as threads and memory allow)")
    ] = None,
    ray: Annotated[str | None, RAY_OPTION] = None,
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
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
    **options: Any,
) -> None:
    """Track every take, each person with one identity; given again, the command goes on where it stopped.

    Ctrl-C ends after the frames in flight and saves; a second one stops at once.
    """
    from nphm_track.batch import driver, plan
    from nphm_track.cli.progress import show_progress
    from nphm_track.tracking.options import TrackOptions

    fields = TrackOptions.model_fields
    given = TrackOptions.build(**{k: v for k, v in options.items() if v != fields[k].default})
    manifest = driver.planned(source, output, given, person=person, threads=threads)
    if dry_run:
        _print_plan(manifest, plan.passed_over(source, output))
        typer.echo(driver.plan_line(manifest))
        return
    with _interrupts() as interrupted, show_progress(quiet) as progress:
        again = ", and finished ones again where the identity changes" if update_identity else ""
        progress.note(driver.plan_line(manifest) + again)
        driver.work(
            output,
            lambda: driver.planned(source, output, given, person=person, threads=threads),
            workers=workers,
            ray=ray,
            update_identity=update_identity,
            break_lock=break_lock,
            progress=progress,
            interrupted=interrupted,
        )
    _finish(output, quiet)


@app.command("status")
def status(
    session: Annotated[Path, typer.Argument(metavar="OUT", help="A session's folder.")],
    json: Annotated[bool, typer.Option("--json", help="Print the manifest.")] = False,
) -> None:
    """Say how far a session is, also while it runs."""
    from nphm_track.batch.manifest import Manifest

    manifest = Manifest.load(session)
    if json:
        typer.echo(manifest.model_dump_json())
    else:
        _print_status(manifest)


@app.command("retry")
def retry(
    session: Annotated[Path, typer.Argument(metavar="OUT", help="A session's folder.")],
    failed: Annotated[bool, typer.Option("--failed", help="The takes that failed.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Local processes.")] = None,
    ray: Annotated[str | None, RAY_OPTION] = None,
    break_lock: Annotated[bool, BREAK_LOCK_OPTION] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
) -> None:
    """Track failed takes again. Runs of clips that have changed are set aside, not deleted."""
    from nphm_track.batch import driver
    from nphm_track.cli.progress import show_progress

    if not failed:
        raise InputError("say which takes: nphm-track batch retry OUT --failed")
    with _interrupts() as interrupted, show_progress(quiet) as progress:
        driver.work(
            session,
            lambda: driver.retried(session),
            workers=workers,
            ray=ray,
            break_lock=break_lock,
            progress=progress,
            interrupted=interrupted,
        )
    _finish(session, quiet)


def _finish(session: Path, quiet: bool) -> None:
    """The closing line; exit code 2 when a take failed."""
    from nphm_track.batch.manifest import INDEX_HTML, Manifest, State

    manifest = Manifest.load(session)
    failed = manifest.count(State.FAILED)
    if not quiet:
        typer.echo(f"{manifest.count(State.DONE)} of {len(manifest.jobs)} takes done; see {session / INDEX_HTML}")
    if failed:
        raise InputError(f"{failed} take{'s' * (failed > 1)} failed; nphm-track batch status {session} says why")


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
