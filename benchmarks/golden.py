"""Golden runs: five short jobs whose results must not change when the code is only rearranged.

python benchmarks/golden.py --data SHARED --folder FOLDER [--write] [--only d01 p05]

``--write`` keeps the results of the code as it is: ``FOLDER/<job>.npz``, the arrays of track.npz. Without it the jobs
run again, every array is compared with what was kept, and the exit status is 1 when a number differs by more than
``TOLERANCE`` (relative to 1 or to the array's largest value). Threads are held to one, since sums depend on their
number; references made on one machine are not meant for another.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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


def differences(found: dict[str, NDArray[Any]], kept: dict[str, NDArray[Any]]) -> list[str]:
    """One line for each array that is not what it was."""
    lines = [f"{name}: only on one side" for name in sorted(found.keys() ^ kept.keys())]
    for name in sorted(found.keys() & kept.keys()):
        a, b = found[name], kept[name]
        if a.shape != b.shape:
            lines.append(f"{name}: shape {a.shape}, was {b.shape}")
            continue
        off = np.abs(a.astype(np.float64) - b.astype(np.float64))
        scale = max(1.0, float(np.nan_to_num(np.abs(b.astype(np.float64))).max(initial=0)))
        if (np.isnan(a.astype(np.float64)) != np.isnan(b.astype(np.float64))).any():
            lines.append(f"{name}: NaN elsewhere")
        elif np.nanmax(off, initial=0) > TOLERANCE * scale:
            lines.append(f"{name}: off by {np.nanmax(off, initial=0):.3g}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with videos/ and photos/")
    parser.add_argument("--folder", type=Path, required=True, help="where the kept results are")
    parser.add_argument("--write", action="store_true", help="keep the results of this code")
    parser.add_argument("--only", nargs="+", default=list(JOBS), choices=JOBS, metavar="JOB")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    changed = False
    for job in args.only:
        clip, options = JOBS[job]
        kept = args.folder / f"{job}.npz"
        with TemporaryDirectory(prefix="nphm-track-") as folder:
            run = track(args.data / clip, Path(folder) / job, overlay=False, report=False, **options)
            if args.write:
                shutil.copyfile(run.path / "track.npz", kept)
                continue
            with np.load(run.path / "track.npz") as found, np.load(kept) as reference:
                lines = differences(dict(found), dict(reference))
        changed |= bool(lines)
        print(f"{job}: {'; '.join(lines) or 'equal'}", flush=True)
    raise SystemExit(int(changed))


if __name__ == "__main__":
    main()
