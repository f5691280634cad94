"""The command line: ``nphm-track VIDEO`` and the commands beside it."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Entry point of the ``nphm-track`` script.

    Expected errors, and requests to end, become one line on stderr and their exit code (``nphm_track.errors``); bugs
    keep their traceback.
    """
    from nphm_track.cli import signals
    from nphm_track.errors import UNWRITABLE, NphmTrackError, OutputError
    from nphm_track.files.names import PRINTABLE

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=PRINTABLE)
    with signals.raised():
        try:
            with signals.interruptible():
                from nphm_track.cli.app import app

                app()
        except NphmTrackError as error:
            _fail(error)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            _fail(OutputError(f"cannot write {error.filename or 'the output'} ({error.strerror})"))


def _fail(error: Exception) -> None:
    print(f"nphm-track: {error}", file=sys.stderr)
    sys.exit(getattr(error, "exit_code", 1))
