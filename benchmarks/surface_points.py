"""How true the network of surface points is on held-out renders, and how much identity its points tell.

Millimetres after a similarity in the image or in space, all views and frontal ones, beside the found landmarks; heads
without a photo apart, whose texture is exact. chi2 is the mean squared error of seen points over their variance: 1 when
the network knows how wrong it is. R2 of a linear reading of the identity, cross-validated, by shape component.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.harness import Ict, Out, Report, table
from nphm_track._runtime import prepare_torch
from nphm_track.geometry.surface_points import SurfacePointNet
from nphm_track.training.faces_task import HELDOUT_SEED
from nphm_track.training.ict import load_ict
from nphm_track.training.points_task import PointBatch, PointsData, PointStream, in_pixels, point_errors
from nphm_track.training.recipe import parse, read_recipe
from nphm_track.training.template_points import SPACING, point_spacing

GROUPS = {"0": (0, 1), "1": (1, 2), "2": (2, 3), "3-4": (3, 5), "5-9": (5, 10), "10-19": (10, 20), "20-39": (20, 40)}
FOLDS, COMPONENTS, RIDGE = 5, 100, 20.0
BATCH = 50
FIRST = 1000
"""Batches behind ``HELDOUT_SEED`` at which these renders begin; training evaluates on the first ones."""


def run(
    out: Out,
    model: Annotated[str, typer.Option(help="model.safetensors of the network.")],
    photos: Annotated[Path, typer.Option(help="Folder of face photos.")],
    fits: Annotated[Path, typer.Option(help="File of training/build_photo_fits.py.")],
    ict: Ict,
    renders: Annotated[int, typer.Option(help="Held-out renders.")] = 500,
) -> Report:
    prepare_torch()
    heads = load_ict(ict)
    net = SurfacePointNet.from_pretrained(model)
    vertex = np.searchsorted(heads.source, net.vertex.numpy())
    recipe = parse(PointsData, read_recipe("training/recipes/surface_points.toml").data)
    stream = PointStream.open(ict, photos, fits, heldout=True, renders=recipe.renders)
    rows = torch.from_numpy(vertex)
    batches = [stream.draw_points(HELDOUT_SEED + FIRST + k, BATCH, rows, None) for k in range(max(1, renders // BATCH))]
    with torch.no_grad():
        errors = point_errors(net, batches, torch.from_numpy(point_spacing(heads)[vertex] < SPACING["around"]))
        evidence = readings(net, batches)
    true = torch.cat([b.w[b.valid > 0] for b in batches]).numpy()
    told = {name: explained(points, true) for name, points in evidence.items()}
    titles = {"": "all views", "frontal_": "frontal", "painted_": "frontal, painted"}
    places = [
        [
            title,
            frame,
            *(errors[f"{kind}{what}{at}mm_{how}"] for what in ("", "landmark_") for how in ("median", "rms")),
        ]
        for kind, title in titles.items()
        for at, frame in (("plane_", "image"), ("", "space"))
    ]
    seen = f"Seen points: {errors['px']:.2f} px RMS, chi2 {errors['chi2']:.2f}, of depth {errors['depth_chi2']:.2f}."
    header = ["mm", "in", "points, median", "RMS", "landmarks, median", "RMS"]
    parts = [table(header, places), seen, table(["R2", *GROUPS], [[n, *r.values()] for n, r in told.items()])]
    return Report({"errors": errors, "r2": told, "renders": len(true)}, parts)


def readings(net: SurfacePointNet, batches: list[PointBatch]) -> dict[str, NDArray[np.float64]]:
    """Evidence of identity [B, features]: found landmarks, the network's points, and true ones."""
    found: dict[str, list[Tensor]] = {"landmarks": [], "points": [], "true points": []}
    for b in batches:
        good = b.valid > 0
        last = net(b.crop, b.features, b.landmarks)[-1]
        own = torch.cat([last.xy, last.depth[..., None]], -1)
        for name, points in zip(found, (b.landmarks[:, :468], own, in_pixels(b.camera, b.K)), strict=True):
            found[name].append(points[good])
    return {name: upright(torch.cat(parts).double().numpy()) for name, parts in found.items()}


def upright(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points [B, N, 3] turned, moved and scaled like the mean of all, flat: generalised Procrustes analysis."""
    points = points - points.mean(1, keepdims=True)
    points /= np.sqrt((points**2).sum((1, 2)))[:, None, None]
    mean = points[0]
    for _ in range(4):
        u, _, vh = np.linalg.svd(mean.T @ points)
        u[:, :, 2] *= np.linalg.det(u @ vh)[:, None]
        points = points @ (u @ vh).swapaxes(1, 2)
        mean = points.mean(0) / np.linalg.norm(points.mean(0))
    return points.reshape(len(points), -1)


def explained(evidence: NDArray[np.float64], true: NDArray[np.floating]) -> dict[str, float]:
    """R2 of each group of shape components of true [B, 100], read linearly from principal parts of the evidence."""
    guess = np.zeros(true.shape)
    fold = np.arange(len(true)) % FOLDS
    for k in range(FOLDS):
        train = fold != k
        mean, middle = evidence[train].mean(0), true[train].mean(0)
        _, size, axes = np.linalg.svd(evidence[train] - mean, full_matrices=False)
        axes = axes[:COMPONENTS] / size[:COMPONENTS, None] * np.sqrt(train.sum())
        code = (evidence - mean) @ axes.T
        inverse = np.linalg.inv(code[train].T @ code[train] + RIDGE * np.eye(len(axes)))
        guess[~train] = middle + code[~train] @ inverse @ code[train].T @ (true[train] - middle)
    left, spread = ((guess - true) ** 2).mean(0), true.var(0)
    return {name: 1 - float(left[a:b].sum() / spread[a:b].sum()) for name, (a, b) in GROUPS.items()}
