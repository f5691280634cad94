"""Adapt the head model to scans of your own.

    nphm-track fit-scan scans/ -o registered                             # codes and pose of each scan
    python examples/train_on_scans.py scans/ registered runs/mine        # goes on with --resume
    nphm-track fit-scan new_scan.ply --head-model runs/mine/model.safetensors

The codes that registration found stay; the local networks of the head learn to draw what is left over between their
surface and the scan. At the same time they are held to what they drew before for people who were not scanned, so that
the identity prior, the landmarks and the regressors keep their meaning. To track with the result, see docs/training.md.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from nphm_track._runtime import prepare_torch
from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import InputError, NphmTrackError
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.editing import random_identities
from nphm_track.heads.loading import load_head_model
from nphm_track.heads.registration import in_head
from nphm_track.rigid import Similarity
from nphm_track.scans.fitting import INDEX
from nphm_track.scans.reading import read_scan
from nphm_track.training.recipe import TrainerConfig, parse
from nphm_track.training.trainer import Share, Trainer

MM = 1e3 * MODEL_UNIT
"""Millimetres in a model unit."""
TRUSTED = 4.0
"""Scan points further from the registered head (mm) are hair, clothes or noise."""
SHELL = 3.0
"""Millimetres off the surface, along its normal, at which the distance is taught as well."""
HELD_OUT = 0.1
"""Share of each scan's points that is only measured."""


class ScanTask:
    """What the trainer needs to know (``nphm_track.training.trainer.Task``)."""

    share = Share()

    def __init__(self, scans: Path, registered: Path, points: int = 512) -> None:
        self.model = load_head_model()
        self.before = copy.deepcopy(self.model)
        self.model.ensemble.requires_grad_(True)  # deformation, landmarks, anchors and code maps stay
        self.points = points
        index = json.loads((registered / INDEX).read_text(encoding="utf-8"))
        rows = [row for row in index["scans"] if row["state"] == "done" and not row["outlier"]]
        if not rows:
            raise InputError(f"{registered / INDEX} lists no scan that was fitted")
        self.scans = [self._load(scans / row["scan"], registered / row["name"] / "codes.npz") for row in rows]

    def _load(self, scan: Path, codes: Path) -> dict[str, Tensor]:
        """Codes, and trusted surface points and normals [N, 3] in model units, of one scan; shuffled."""
        found = np.load(codes, allow_pickle=False)
        pose = Similarity(float(found["scale"]), found["R"], found["t"])
        points, normals = read_scan(scan).surface_points()
        if normals is None:
            raise InputError(f"{scan} is a point cloud without normals")
        head = pose.inverse(points)
        inside = in_head(head)
        z = {name: torch.from_numpy(found[name]) for name in ("z_id", "z_ex")}
        x = torch.from_numpy(head[inside] / MODEL_UNIT).float()
        with torch.inference_mode():
            distance = torch.cat([self.model.sdf(part, z["z_id"], z["z_ex"]) for part in x.split(4096)])
        near = distance.abs() * MM < TRUSTED
        normal = torch.from_numpy(normals[inside] @ pose.R).float()
        order = torch.randperm(int(near.sum()), generator=torch.Generator().manual_seed(0))
        return {**z, "points": x[near][order], "normals": normal[near][order]}

    def losses(self, step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        scan = self.scans[int(torch.randint(len(self.scans), (1,), generator=generator))]
        first = round(HELD_OUT * len(scan["points"]))
        drawn = torch.randint(first, len(scan["points"]), (self.points,), generator=generator)
        height = torch.randn(self.points, generator=generator) * SHELL / 2 / MM
        height[::2] = 0
        x = scan["points"][drawn] + height[:, None] * scan["normals"][drawn]
        surface = (self.model.sdf(x, scan["z_id"], scan["z_ex"]) - height).abs().mean()

        # Somebody else, about the anchors: as it was.
        z_id = random_identities(self.model, 1, seed=int(torch.randint(2**31, (1,), generator=generator)))[0]
        anchors = self.model.anchors(z_id).detach()
        chosen = torch.randint(len(anchors), (self.points,), generator=generator)
        x = anchors[chosen] + 0.05 * torch.randn(self.points, 3, generator=generator)
        with torch.no_grad():
            known = self.before.canonical_sdf(x, z_id)
        kept = (self.model.canonical_sdf(x, z_id) - known).abs().mean()
        return {"surface": surface, "kept": kept}

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Mean |F| (mm) at held-out points of the scans."""
        head = cast("NphmDecoder", model)
        errors = [
            head.sdf(scan["points"][: round(HELD_OUT * len(scan["points"]))], scan["z_id"], scan["z_ex"]).abs().mean()
            for scan in self.scans
        ]
        return {"surface_mm": float(torch.stack(errors).mean()) * MM}

    def config(self) -> dict[str, Any]:
        return {"kind": "nphm", "head": self.model.config.to_dict()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, help="the folder that was given to nphm-track fit-scan")
    parser.add_argument("registered", type=Path, help="the folder that it wrote")
    parser.add_argument("out", type=Path, help="the training run's folder")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    try:
        prepare_torch()
        task = ScanTask(arguments.scans, arguments.registered)
        before = task.evaluate(task.model)
        config = parse(TrainerConfig, {"steps": arguments.steps, "learning_rate": 3e-4, "warmup": 50})
        after = Trainer(task, config, {"surface": 1.0, "kept": 1.0}, arguments.out).run(resume=arguments.resume)
    except (NphmTrackError, OSError) as error:
        parser.exit(getattr(error, "exit_code", 2), f"{error}\n")
    print(f"{len(task.scans)} scans: {before['surface_mm']:.3f} mm before, {after['surface_mm']:.3f} mm after")
    print(arguments.out / "model.safetensors")


if __name__ == "__main__":
    main()
