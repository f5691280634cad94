"""Held-out quality of the released networks, as their cards state it.

The folders are those of ``training/README.md`` with held-out seeds (900000 and above); each adds the models it is for.
The image regressor is measured as trained, before identity_trust, by one view of each crop.
"""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from benchmarks.harness import Ict, Out, Report, table
from nphm_track._runtime import prepare_torch
from nphm_track.geometry.networks import GeometryNet
from nphm_track.heads.loading import load_head_model
from nphm_track.models import resolve
from nphm_track.regressor.landmark_regressor import LandmarkRegressor
from nphm_track.training.geometry_task import GeometryData, GeometryTask
from nphm_track.training.head_task import HeadData, HeadTask
from nphm_track.training.image_regressor_task import ImageRegressorData, ImageRegressorTask
from nphm_track.training.regressor_task import RegressorData, RegressorTask


def run(
    ict: Ict, out: Out,
    heads: Annotated[str | None, typer.Option(help="Shards for nphm-small.")] = None,
    landmarks: Annotated[str | None, typer.Option(help="Shards for landmark-regressor.")] = None,
    faces: Annotated[str | None, typer.Option(help="Shards for geometry and image-regressor.")] = None,
) -> Report:  # fmt: skip
    """The figures of every model whose samples are given."""
    prepare_torch()
    torch.manual_seed(0)
    common = {"ict": str(ict), "head_model": "nphm-small"}
    found: dict[str, dict[str, float]] = {}
    if heads:
        head = HeadTask(HeadData.model_validate({"ict": str(ict), "shards": heads, "heldout": heads}))
        found["nphm-small"] = head.evaluate(load_head_model())
    if landmarks:
        data = RegressorData.model_validate({**common, "shards": landmarks, "heldout": landmarks})
        found["landmark-regressor"] = RegressorTask(data).evaluate(LandmarkRegressor.from_pretrained())
    if faces:
        shards = {"shards": faces, "heldout": faces}
        found["geometry"] = GeometryTask(GeometryData.model_validate(shards)).evaluate(GeometryNet.from_pretrained())
        start = {"geometry": "geometry", "init": str(resolve("image-regressor"))}
        task = ImageRegressorTask(ImageRegressorData.model_validate({**common, **start, **shards}))
        found["image-regressor"] = task.evaluate(task.model.eval())
    parts = [table([name, ""], list(figures.items())) for name, figures in found.items()]
    return Report(found, parts)
