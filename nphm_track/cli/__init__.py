"""The command line: ``nphm-track VIDEO`` and the commands beside it."""

from __future__ import annotations

import io
import sys
from typing import NoReturn

from nphm_track.cli import json_output
from nphm_track.errors import UNWRITABLE, NphmTrackError, OutputError


def main() -> None:
    """Entry point of the ``nphm-track`` script.

    Expected errors, and requests to end, become one line on stderr and their exit code (``nphm_track.errors``); bugs
    keep their traceback.
    """
    from nphm_track.cli import signals
    from nphm_track.files.names import PRINTABLE

    json_output.told = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=PRINTABLE)
    with signals.raised():
        try:
            with signals.interruptible():
                from nphm_track.cli.app import app

                app()
        except SystemExit as end:
            _explain(end)
            raise
        except NphmTrackError as error:
            _fail(error)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in UNWRITABLE:
                _fail(OutputError(f"cannot write {error.filename or 'the output'} ({error.strerror})"))
            json_output.print_failure(f"{type(error).__name__}: {error}", 1)
            raise


def _fail(error: NphmTrackError) -> NoReturn:
    print(f"nphm-track: {error}", file=sys.stderr)
    json_output.print_failure(str(error), error.exit_code)
    sys.exit(error.exit_code)


def _explain(end: SystemExit) -> None:
    """Typer has told the user what is wrong with the arguments; programs are told, too."""
    message = getattr(end.__context__, "format_message", None)
    if end.code and message:
        json_output.print_failure(message(), int(end.code))
