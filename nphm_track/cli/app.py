"""The application: commands and the default command."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from nphm_track.cli.commands import LazyGroup
from nphm_track.cli.signals import interruptible
from nphm_track.errors import InputError
from nphm_track.version import __version__

DEFAULT_COMMAND = "track"
GROUP_OPTIONS = ("--help", "-h", "--version", "--install-completion", "--show-completion")


class DefaultCommandGroup(LazyGroup):
    """Sends ``nphm-track clip.mp4`` to the default command. A file called like a command is reached as ``./train``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in GROUP_OPTIONS:
            self._refuse_misspelt_command(args[0])
            args = [DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with interruptible():  # typer would end with 130, whatever the signal was
            return super().invoke(ctx)

    def _refuse_misspelt_command(self, word: str) -> None:
        """A command with a slip in it would otherwise be reported as a missing video."""
        looks_like_command = word.replace("-", "").isalpha() and not word.startswith("-") and not Path(word).exists()
        close = get_close_matches(word, self.commands, n=1, cutoff=0.7) if looks_like_command else []
        if close:
            raise InputError(f"there is no command or file '{word}'; did you mean '{close[0]}'?")


app = typer.Typer(
    cls=DefaultCommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"nphm-track {__version__}")
        raise typer.Exit


@app.callback()
def _nphm_track(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Show the version."),
) -> None:
    """Track a face through a video: per-frame NPHM head meshes, cameras, parameters and an overlay video.

    nphm-track VIDEO is short for nphm-track track VIDEO; nphm-track track --help lists its options.
    """
