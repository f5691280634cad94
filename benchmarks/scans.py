"""Heads against real scans: every picture tracked alone, or all pictures of a scan as one clip.

The posed mesh of a frame is compared with the scan after a similarity (``nphm_track.evaluation.scan``), beside the mean
head, which is what is known without a look at the person. Figures are millimetres, means over frontal and 25 degrees;
people count once, clay and painted scans apart.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.data import ScanCase, head_points7, mean_head_mm, scan_cases
from benchmarks.harness import Only, Out, Report, ScanError, records_table, table
from nphm_track._runtime import prepare_torch
from nphm_track.errors import NphmTrackError
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.loading import load_head_model
from nphm_track.tracking.pipeline import track

SCORED_VIEWS = ("r_front", "r_yawL25", "r_yawR25")
EVERY = {
    "case": "case", "views": "views", "camera": "camera", "focal px": "focal_px", "landmarks %": "landmark_percent",
    "median": "median", "mean": "mean", "rigid median": "rigid_median", "chamfer L1": "chamfer_l1",
    "normals": "normal_consistency", "complete": "completeness", "scale": "scale", "mean head": "mean_head",
}  # fmt: skip


class Camera(StrEnum):
    KNOWN, UNKNOWN = "known", "unknown"


def run(
    scan_error: ScanError, out: Out, only: Only = None,
    views: Annotated[list[str] | None, typer.Option(help="Name of a view.")] = None,
    cameras: list[Camera] = [Camera.KNOWN, Camera.UNKNOWN],  # noqa: B006
    refine: bool = False,
    together: Annotated[bool, typer.Option("--together", help="All views of a scan as one clip.")] = False,
) -> Report:  # fmt: skip
    """Failures are listed and count for nothing."""
    prepare_torch()
    model = load_head_model()
    rows: list[dict[str, Any]] = []
    for case in scan_cases(scan_error, only, views):
        about: dict[str, Any] = {"case": case.name, "person": case.person, "kind": case.kind}
        about["mean_head"] = mean_head_mm(model, case.scan)
        groups = [case.views] if together else [[view] for view in case.views]
        for camera in cameras:
            for group in groups:
                found = measure(model, case, [view.name for view in group], camera, out / "runs", refine)
                rows += [{**about, "camera": camera.value, **figures} for figures in found]
                print(rows[-1], flush=True)
    parts = ["Median, mm, by person:", summary(rows), "Every frame:", records_table(EVERY, rows)]
    parts += [f"{r['case']} {r['views']}, camera {r['camera']}: {r['failure']}" for r in rows if "failure" in r]
    return Report({"results": rows}, parts)


def measure(
    model: NphmDecoder, case: ScanCase, names: Sequence[str], camera: Camera, runs: Path, refine: bool
) -> list[dict[str, Any]]:
    """Track these views of a case as one input; the figures of every frame that has a mesh."""
    views = [view for view in case.views if view.name in names]
    place = runs / "_".join([case.name, *(names if len(names) == 1 else ["together"]), camera])
    known = views[0].write_intrinsics(place.with_suffix(".json")) if camera == Camera.KNOWN else None
    source = views[0].image
    if len(views) > 1:
        source = place.with_name(place.name + "_clip")
        source.mkdir(exist_ok=True)
        for k, view in enumerate(views):
            shutil.copyfile(view.image, source / f"{k:02d}{view.image.suffix}")
    try:
        found = track(source, place, intrinsics=known, overlay=False, refine=refine, overwrite=True)
    except NphmTrackError as error:
        return [{"views": ", ".join(names), "failure": str(error)}]
    result = found.track
    figures = []
    for row in np.flatnonzero(np.isfinite(result.t).all(1)).tolist():
        measured = case.scan.error(*found.mesh(row), head_points7(model, result.z_id, result.z_ex[row]))
        figures.append({
            "views": names[int(result.frame[row])], "focal_px": float(result.K[0, 0]), **asdict(measured.similarity),
            "rigid_median": measured.rigid.median, "landmark_percent": found.info.quality["landmark_error_percent"],
        })  # fmt: skip
    return figures


def summary(rows: list[dict[str, Any]]) -> str:
    """One line a person, kind of picture and camera, and their mean."""
    groups: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for r in rows:
        if "failure" not in r and r["views"] in SCORED_VIEWS:
            people = groups.setdefault((r["kind"], r["camera"]), {})
            people.setdefault(r["person"], []).append((r["median"], r["mean_head"]))
    lines: list[list[Any]] = []
    for (kind, camera), people in groups.items():
        means = {person: np.mean(pairs, 0).tolist() for person, pairs in people.items()}
        lines += [[person, kind, camera, ours, mean, ours / mean] for person, (ours, mean) in means.items()]
        ours, mean = np.mean(list(means.values()), 0).tolist()
        better = sum(a < b for a, b in means.values())
        lines.append([f"**mean, better for {better} of {len(means)}**", kind, camera, ours, mean, ours / mean])
    return table(["person", "picture", "camera", "median", "mean head", "ratio"], lines)
