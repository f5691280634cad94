"""The command line: ``nphm-track VIDEO`` and the commands beside it."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the ``nphm-track`` script; exit codes are those of ``nphm_track.errors``."""
    try:
        from nphm_track.cli.app import run

        run()
    except KeyboardInterrupt:
        print("nphm-track: interrupted", file=sys.stderr)
        sys.exit(130)
