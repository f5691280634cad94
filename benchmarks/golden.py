"""Golden runs: five short jobs whose results must not change when the code is only rearranged.

--write keeps the results of the code as it is: ``OUT/<job>.npz``, the arrays of track.npz. Without it the jobs run
again and every array is compared with what was kept; it may be off by 1e-6 (relative to 1 or to the array's largest
value). Threads are held to one, since sums depend on their number; references made on one machine are not meant for
another.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from benchmarks.harness import Only, Report, table
from nphm_track.tracking.pipeline import track

TOLERANCE = 1e-6
JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "d01": ("videos/d01_frontal_smile_man.mp4", {"end": 2.0, "meshes": False}),
    "d07": ("videos/d07_man_mouth_wide_open.mp4", {"end": 2.0, "meshes": False}),
    "p01": ("photos/p01_man_smile.jpg", {"meshes": False}),
    "p05": ("photos/p05_obama.jpg", {"meshes": False}),
    "d01_refined": ("videos/d01_frontal_smile_man.mp4", {"end": 0.8, "refine": True, "meshes": False}),
}
"""Input within the data folder, and options."""


def run(
    data: Annotated[Path, typer.Option(help="Folder with videos/ and photos/.")],
    out: Annotated[Path, typer.Option(help="Folder of the kept results.")],
    only: Only = None,
    write: Annotated[bool, typer.Option("--write", help="Keep the results of this code.")] = False,
) -> Report:
    """One row a job."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for job, (clip, options) in JOBS.items():
        if not job.startswith(tuple(only or [""])):
            continue
        with TemporaryDirectory(prefix="nphm-track-") as folder:
            found = track(data / clip, Path(folder) / job, overlay=False, report=False, **options)
            if write:
                shutil.copyfile(found.path / "track.npz", out / f"{job}.npz")
            with np.load(found.path / "track.npz") as new, np.load(out / f"{job}.npz") as kept:
                rows.append([job, "; ".join(differences(dict(new), dict(kept))) or "equal"])
        print(*rows[-1], flush=True)
    return Report(dict(rows), [table(["job", "against what was kept"], rows)], all(row[1] == "equal" for row in rows))


def differences(found: dict[str, NDArray[Any]], kept: dict[str, NDArray[Any]]) -> list[str]:
    """One line for each array that is not what it was."""
    lines = [f"{name}: only on one side" for name in sorted(found.keys() ^ kept.keys())]
    for name in sorted(found.keys() & kept.keys()):
        a, b = found[name], kept[name]
        if a.shape != b.shape:
            lines.append(f"{name}: shape {a.shape}, was {b.shape}")
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        off = float(np.nanmax(np.abs(a - b), initial=0))
        if (np.isnan(a) != np.isnan(b)).any():
            lines.append(f"{name}: NaN elsewhere")
        elif off > TOLERANCE * max(1.0, float(np.nan_to_num(np.abs(b)).max(initial=0))):
            lines.append(f"{name}: off by {off:.3g}")
    return lines
