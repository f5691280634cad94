"""``nphm-track view``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def view(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    other: Annotated[Path | None, typer.Argument(metavar="[RUN_B]", help="Another run to compare it with.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port; the next free one when it is taken.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to serve on; 0.0.0.0 for other machines to see it.")] = "127.0.0.1",
) -> None:
    """View a run in the browser, or two side by side, until Ctrl-C. Needs the extra 'viewer'."""
    from nphm_track.tracking.run_folder import read_run
    from nphm_track.viewer.app import Viewer

    viewer = Viewer([read_run(path) for path in (run, other) if path is not None], host=host, port=port)
    try:
        typer.echo(f"{viewer.url}  (Ctrl-C ends)")
        viewer.wait()
    except KeyboardInterrupt:  # before or after it waits
        viewer.stop()
