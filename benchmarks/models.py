"""Held-out quality of the released models, as their cards state it.

    python benchmarks/models.py --ict FOLDER [--heads data/heads_heldout] [--landmarks data/landmarks_heldout]
        [--faces data/faces_heldout]

The folders are those of ``training/README.md`` with held-out seeds (900000 and above); each adds the models it is for.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from nphm_track._runtime import prepare_torch
from nphm_track.geometry.networks import GeometryNet
from nphm_track.heads.loading import load_head_model
from nphm_track.models import resolve
from nphm_track.regressor.landmark_regressor import LandmarkRegressor
from nphm_track.training.geometry_task import FaceShards, GeometryData, GeometryTask
from nphm_track.training.head_task import HeadData, HeadTask
from nphm_track.training.image_regressor_task import ImageRegressorData, ImageRegressorTask, encode_shards
from nphm_track.training.regressor_task import RegressorData, RegressorTask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ict", required=True)
    parser.add_argument("--heads", help="nphm-small")
    parser.add_argument("--landmarks", help="landmark-regressor")
    parser.add_argument("--faces", help="geometry and image-regressor; the latter as trained, before identity_trust")
    args = parser.parse_args()
    prepare_torch()
    torch.manual_seed(0)
    if args.heads:
        head = HeadTask(HeadData(ict=args.ict, shards=args.heads, heldout=args.heads))
        _print("nphm-small", head.evaluate(load_head_model()))
    if args.landmarks:
        data = RegressorData(ict=args.ict, head_model="nphm-small", shards=args.landmarks, heldout=args.landmarks)
        _print("landmark-regressor", RegressorTask(data).evaluate(LandmarkRegressor.from_pretrained()))
    if args.faces:
        net = GeometryNet.from_pretrained()
        _print("geometry", GeometryTask(GeometryData(shards=args.faces, heldout=args.faces)).evaluate(net))
        _print("image-regressor", _image_regressor(args.ict, args.faces, net))


def _image_regressor(ict: str, faces: str, net: GeometryNet) -> dict[str, float]:
    released = "image-regressor"
    names = {"ict": ict, "head_model": "nphm-small", "geometry": "geometry", "init": str(resolve(released))}
    data = ImageRegressorData(**names, shards=faces, heldout=faces)
    table = encode_shards(FaceShards(Path(faces)), net, (*data.encoders, "d"))
    task = ImageRegressorTask(data, (table, table))
    return task.evaluate(task.model.eval())


def _print(name: str, metrics: dict[str, float]) -> None:
    print(f"| {name} | |\n|---|---|")
    for key, value in metrics.items():
        print(f"| {key} | {value:.3f} |")


if __name__ == "__main__":
    main()
