"""``nphm-track fit-scan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nphm_track.cli.export import FlameModel, GnmModel
from nphm_track.cli.json_output import print_json


def fit_scan(
    scan: Annotated[
        Path,
        typer.Argument(metavar="SCAN", help="A mesh or point cloud (PLY, OBJ, GLB, STL, OFF), or a folder of them."),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT", help="Folder to write. (default: ./<name>_fit)")
    ] = None,
    landmarks: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Known landmarks: JSON of named points, or 68 or 478 rows. (default: detected)"
        ),
    ] = None,
    head_model: Annotated[str, typer.Option(metavar="NAME", help="Head model to fit.")] = "nphm-small",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimisation.")] = 300,
    to: Annotated[
        str | None, typer.Option(metavar="flame|gnm", help="Fit a model of yours too, as --format of export does.")
    ] = None,
    flame_model: FlameModel = None,
    gnm_model: GnmModel = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace fits of the same scans that were made with other options.")
    ] = False,
    device: Annotated[str, typer.Option(help="Torch device, such as cpu or cuda.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON and nothing else on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
) -> None:
    """Fit a head to a 3-D scan: codes, pose, mesh and error map; a folder of scans makes a registration set.

    Unit and orientation of the scan are free. The mesh is written in the scan's own coordinates.
    """
    from nphm_track.cli.progress import show_progress
    from nphm_track.scans import fitting

    options = fitting.FitOptions(head_model, landmarks, steps, device, to, flame_model, gnm_model)
    out = output or Path(f"{scan.resolve().stem}_fit")
    with show_progress(quiet) as progress:
        run = fitting.fit_folder if scan.is_dir() else fitting.fit_scan
        result = run(scan, out, options=options, overwrite=overwrite, progress=progress)
    if json:
        print_json(result)
        return
    for row in [] if quiet else result.get("scans", [result]):
        if row.get("state") == "failed":
            typer.echo(f"{row['scan']}: failed: {row['message']}")
            continue
        unit = "unknown unit" if row["unit"] == "unknown" else row["unit"]
        fit = f"median {row['median_mm']:.2f} mm, mean {row['mean_mm']:.2f} mm; scale {row['scale']:.5g} ({unit})"
        typer.echo(f"{row['scan']}: {fit}" + (", outlier" if row.get("outlier") else ""))
    if not quiet:
        typer.echo(out)
