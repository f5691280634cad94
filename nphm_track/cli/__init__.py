"""The command line: ``nphm-track VIDEO`` and the commands beside it."""

from __future__ import annotations


def main() -> None:
    """Entry point of the ``nphm-track`` script; exit codes are those of ``nphm_track.errors``."""
    from nphm_track.cli.app import run

    run()
