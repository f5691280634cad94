"""``nphm-track train``: from a recipe file to a finished run."""

from __future__ import annotations

from pathlib import Path

from nphm_track.errors import InputError
from nphm_track.training.recipe import Recipe, parse, read_recipe
from nphm_track.training.trainer import Task, Trainer, join_processes


def build_task(recipe: Recipe) -> Task:
    """The task a recipe names, with its data table checked. Raises InputError for an unknown task or key."""
    if recipe.task == "head":
        from nphm_track.training.head_task import HeadData, HeadTask

        return HeadTask(parse(HeadData, recipe.data))
    if recipe.task == "controlled-head":
        from nphm_track.training.controlled_task import ControlledData, ControlledTask

        return ControlledTask(parse(ControlledData, recipe.data))
    if recipe.task == "regressor":
        from nphm_track.training.regressor_task import RegressorData, RegressorTask

        return RegressorTask(parse(RegressorData, recipe.data))
    if recipe.task == "geometry":
        from nphm_track.training.geometry_task import GeometryData, GeometryTask

        return GeometryTask(parse(GeometryData, recipe.data))
    if recipe.task == "image-regressor":
        from nphm_track.training.image_regressor_task import ImageRegressorData, ImageRegressorTask

        return ImageRegressorTask(parse(ImageRegressorData, recipe.data))
    if recipe.task == "dense":
        from nphm_track.training.dense_task import DenseData, DenseTask

        return DenseTask(parse(DenseData, {"device": recipe.trainer.device, **recipe.data}))
    if recipe.task == "pix2nphm":
        from nphm_track.training.pix2nphm_task import Pix2NphmData, Pix2NphmTask

        return Pix2NphmTask(parse(Pix2NphmData, {"device": recipe.trainer.device, **recipe.data}))
    if recipe.task == "faces":
        from nphm_track.training.faces_task import FacesData, FacesTask

        return FacesTask(parse(FacesData, {"device": recipe.trainer.device, **recipe.data}))
    if recipe.task == "surface-points":
        from nphm_track.training.points_task import PointsData, PointsTask

        return PointsTask(parse(PointsData, {"device": recipe.trainer.device, **recipe.data}))
    known = "controlled-head, dense, faces, geometry, head, image-regressor, pix2nphm, regressor, surface-points"
    raise InputError(f"recipe: unknown task '{recipe.task}' (known: {known})")


def train(
    recipe_path: str | Path, out: str | Path, *, resume: bool = False, overrides: list[str] | None = None
) -> dict[str, float]:
    """Run a recipe in folder ``out``; returns the last held-out metrics."""
    import torch

    from nphm_track._runtime import prepare_torch

    recipe = read_recipe(recipe_path, overrides)
    prepare_torch()
    join_processes()  # a task that renders needs its own GPU
    torch.manual_seed(recipe.trainer.seed)
    return Trainer(build_task(recipe), recipe.trainer, recipe.losses, out).run(resume=resume)
