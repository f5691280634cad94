"""Held-out quality of the released models, as their cards state it.

    python benchmarks/models.py --ict FOLDER --heads data/heads_heldout --landmarks data/landmarks_heldout

The folders are those of ``training/README.md`` with held-out seeds (900000 and above).
"""

from __future__ import annotations

import argparse

import torch

from nphm_track._runtime import prepare_torch
from nphm_track.heads.loading import load_head_model
from nphm_track.regressor.landmark_regressor import LandmarkRegressor
from nphm_track.training.head_task import HeadData, HeadTask
from nphm_track.training.regressor_task import RegressorData, RegressorTask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ict", required=True)
    parser.add_argument("--heads", required=True)
    parser.add_argument("--landmarks", required=True)
    args = parser.parse_args()
    prepare_torch()
    torch.manual_seed(0)
    head = HeadTask(HeadData(ict=args.ict, shards=args.heads, heldout=args.heads))
    _print("nphm-small", head.evaluate(load_head_model()))
    data = RegressorData(ict=args.ict, head_model="nphm-small", shards=args.landmarks, heldout=args.landmarks)
    _print("landmark-regressor", RegressorTask(data).evaluate(LandmarkRegressor.from_pretrained()))


def _print(name: str, metrics: dict[str, float]) -> None:
    print(f"| {name} | |\n|---|---|")
    for key, value in metrics.items():
        print(f"| {key} | {value:.3f} |")


if __name__ == "__main__":
    main()
