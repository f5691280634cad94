"""Heads fitted to real scans: the cases of cases.json and the twelve faces of MeshMonk's simpop.

Landmarks are found on renderings, as ``nphm-track fit-scan`` does, or are the cases' own seven points (--seven). A
fitted head is measured after a similarity, scan to mesh. The fits' own pictures are written by ``fit-scan``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.data import Array, scan_cases
from benchmarks.harness import Only, Out, Report, ScanError, records_table
from nphm_track._runtime import prepare_torch
from nphm_track.conventions import POINTS7_478
from nphm_track.evaluation.scan import NAMES7, Scan
from nphm_track.heads.loading import DEFAULT
from nphm_track.kd_tree import kd_tree
from nphm_track.rendering.rasteriser import vertex_normals
from nphm_track.scans.fitting import FitOptions, ScanFitter
from nphm_track.scans.landmarks import ScanLandmarks
from nphm_track.scans.reading import ScanGeometry, read_scan

INDEX7 = [POINTS7_478[name] for name in NAMES7]
NOSE_TIP = 4
COLUMNS = {"case": "case", "median": "median", "mean": "mean", "explained": "explained", "seconds": "seconds"}
Case = tuple[str, ScanGeometry, Scan]


def run(
    scan_error: ScanError, out: Out, only: Only = None, head_model: str = DEFAULT,
    simpop: Annotated[Path | None, typer.Option(help="meshmonk_simpop.npz.")] = None,
    seven: Annotated[bool, typer.Option("--seven", help="Give the fit the seven points only.")] = False,
) -> Report:  # fmt: skip
    """Distances in mm, the share of the scan that the head explains, and seconds."""
    prepare_torch()
    fitter = ScanFitter(FitOptions(head_model=head_model))
    cases: list[Case] = [(case.name, read_scan(case.file), case.scan) for case in scan_cases(scan_error, only)]
    if simpop is not None:
        cases += [case for case in faces12(simpop, fitter) if case[0].startswith(tuple(only or [""]))]
    rows: list[dict[str, Any]] = []
    for name, geometry, scan in cases:
        start = perf_counter()
        marks = ScanLandmarks(np.array(INDEX7), scan.points7) if seven else fitter.landmarks(geometry)
        fitted = fitter.fit(geometry, marks)
        result = fitted.registration
        error = scan.error(fitted.vertices, fitted.faces, fitter.head_landmarks(result, INDEX7)).similarity
        about = {"median": error.median, "mean": error.mean, "explained": float(np.mean(result.trusted))}
        rows.append({"case": name, **about, "seconds": perf_counter() - start})
        print(rows[-1], flush=True)
    mean = {key: float(np.mean([row[key] for row in rows])) for key in list(COLUMNS)[1:]}
    head = f"Scan-to-mesh distance, mm, after a similarity; head model {head_model} {fitter.model_sha256[:8]}."
    return Report({"results": rows}, [head, records_table(COLUMNS, [*rows, {"case": "**mean**", **mean}])])


def faces12(file: Path, fitter: ScanFitter) -> Iterator[Case]:
    """The faces of simpop; their seven points are found on the mean face and carried by the common vertices."""
    with np.load(file) as stored:
        shapes, faces = stored["vertices"].astype(np.float64) / 1e3, stored["faces"].astype(np.int64)
    average = shapes.mean(0)
    marks = fitter.landmarks(_geometry(average, faces))
    place = {i: int(kd_tree(average).query(p)[1]) for i, p in zip(marks.index, marks.points, strict=True)}
    for k, shape in enumerate(shapes):
        scan = Scan(shape, faces, shape[[place[i] for i in INDEX7]], shape[place[NOSE_TIP]])
        yield f"simpop{k:02d}", _geometry(shape, faces), scan


def _geometry(vertices: Array, faces: NDArray[np.int64]) -> ScanGeometry:
    return ScanGeometry(vertices, faces, vertex_normals(vertices, faces).astype(np.float64))
