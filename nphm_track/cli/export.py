"""``nphm-track export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nphm_track.export.formats import FORMATS

_FORMATS = "; ".join(f"{name}: {format.about}" for name, format in FORMATS.items())


def _formats(begun: str) -> list[str]:
    """For shell completion."""
    return [name for name in FORMATS if name.startswith(begun)]


Unit = Annotated[str, typer.Option(metavar="mm|cm|m", help="Unit of lengths.")]
Up = Annotated[str, typer.Option(metavar="y|z", help="Axis that points up.")]
Images = Annotated[
    bool, typer.Option("--images", help="Write the clip's frames too, and masks and meshes where they belong.")
]
Frames = Annotated[
    str, typer.Option(metavar="FIRST:LAST", help="Frames of the clip to write, as in 100:199, 100: or :199.")
]
Textured = Annotated[bool, typer.Option("--textured", help="Colour a GLB's skin from the clip.")]
FlameModel = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Your FLAME 2020 or 2023 (.npz, .pkl), for flame.")
]
GnmModel = Annotated[Path | None, typer.Option(metavar="FILE", help="Your gnm_head.npz (GNM Head 3), for gnm.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a file called -o that this program did not make.")
]


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    format: Annotated[
        str,
        typer.Option("-f", "--format", metavar="FORMAT", help=f"What to write. {_FORMATS}.", autocompletion=_formats),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT", help="File or folder to write. (default: in RUN/export)"),
    ] = None,
    unit: Unit = "m",
    up: Up = "y",
    images: Images = False,
    frames: Frames = ":",
    clip: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the run's clip is now. (default: found by itself)")
    ] = None,
    textured: Textured = False,
    flame_model: FlameModel = None,
    gnm_model: GnmModel = None,
    overwrite: Overwrite = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
) -> None:
    """Write a run's heads, cameras or parameters in the format of another program."""
    from nphm_track.cli.progress import show_progress
    from nphm_track.export import formats
    from nphm_track.export.options import ExportOptions
    from nphm_track.tracking.run_folder import read_run

    with show_progress(quiet) as progress:
        options = ExportOptions(
            unit=unit, up=up, images=images, frames=frame_range(frames), clip=clip, textured=textured,
            flame_model=flame_model, gnm_model=gnm_model,
        )  # fmt: skip
        written = formats.export(read_run(run), format, output, options, progress, overwrite)
    if not quiet:
        typer.echo(written)


def frame_range(text: str) -> tuple[int | None, int | None]:
    """``"100:199"`` to (100, 199); what is left out is None."""
    first, colon, last = text.partition(":")
    try:
        if colon:
            return int(first) if first else None, int(last) if last else None
        return int(first), int(first)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is no range of frames; write FIRST:LAST, as in 100:199") from None
