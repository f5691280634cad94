"""What the image regressor gains from its inputs and losses: small equal trainings, measured on held-out renders.

    python benchmarks/ablation.py --ict FOLDER --shards FOLDER --heldout FOLDER --out FOLDER

Shards as in ``training/README.md``. Every row is trained from scratch on the same samples for as many steps; tokens are
computed once. A row's figures are its own after a short training: they compare rows, not released models.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import machine, machine_line, save, table

from nphm_track._runtime import prepare_torch
from nphm_track.geometry.networks import GeometryNet
from nphm_track.training.geometry_task import FaceShards
from nphm_track.training.image_regressor_task import (
    RAYS_KEPT,
    ImageRegressorData,
    ImageRegressorTask,
    encode_shards,
)
from nphm_track.training.trainer import Trainer, TrainerConfig

ROWS: dict[str, dict[str, Any]] = {
    "E_n, E_p, details and landmarks, 3-D and 2-D (released)": {},
    "without details": {"details": False},
    "3-D only": {"losses": ("3d",)},
    "2-D only": {"losses": ("2d",)},
    "3-D and normals by the surface renderer": {"losses": ("3d", "surface")},
    "3-D and normals by the volume renderer": {"losses": ("3d", "volume")},
    "2-D and normals by the surface renderer": {"losses": ("2d", "surface")},
    "2-D and normals by the volume renderer": {"losses": ("2d", "volume")},
    "E_n and landmarks": {"encoders": ("n",), "details": False},
    "E_p and landmarks": {"encoders": ("p",), "details": False},
    "landmark network's trunk and landmarks": {"encoders": ("t",), "details": False},
    "E_n, E_p without landmarks": {"use_landmarks": False, "details": False},
    "details and landmarks": {"encoders": ()},
    "landmarks only": {"encoders": (), "details": False},
}
FIGURES = ("shape_mm", "neutral_mm", "posed_mm", "sdf_mm", "corr_jawOpen", "corr_mouthSmile_L", "corr_eyeBlink_L")


class Some(FaceShards):
    """The first ``count`` samples of a folder."""

    def __init__(self, folder: Path, count: int) -> None:
        super().__init__(folder)
        keep = int(np.searchsorted(self.start, count))
        self.parts, self.start = self.parts[:keep], self.start[: keep + 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("ict", "shards", "heldout"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help="some of them")
    args = parser.parse_args()
    prepare_torch()
    net = GeometryNet.from_pretrained()
    tables = tuple(
        encode_shards(Some(Path(folder), count), net, ("n", "p", "t", "d"), RAYS_KEPT)
        for folder, count in ((args.shards, args.samples), (args.heldout, 500))
    )
    common = {"ict": args.ict, "head_model": "nphm-small", "geometry": "geometry", "token_dropout": 0.05}
    rates = {"learning_rate": 1e-3, "matrix_learning_rate": 1e-2}
    config = TrainerConfig(steps=args.steps, warmup=20, ema=0.97, evaluate_every=10**9, **rates)
    results: dict[str, Any] = {}
    for name in args.rows:
        changes = ROWS[name]
        torch.manual_seed(0)
        data = ImageRegressorData(**{**common, "shards": args.shards, "heldout": args.heldout, "batch": 32, **changes})
        task = ImageRegressorTask(data, tables)  # type: ignore[arg-type]
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            results[name] = Trainer(task, config, folder).run()
        results[name]["seconds"] = time.monotonic() - start
        print(name, {k: round(results[name][k], 3) for k in (*FIGURES, "seconds")}, flush=True)
    rows = [[name, *(found[k] for k in (*FIGURES, "seconds"))] for name, found in results.items()]
    facts = machine()
    figures = table(["", *FIGURES, "seconds"], rows)
    text = f"{args.samples} samples, {args.steps} steps of 32. {machine_line(facts)}\n\n{figures}\n"
    save(args.out, "ablation", {"machine": facts, "rows": results}, text)


if __name__ == "__main__":
    main()
