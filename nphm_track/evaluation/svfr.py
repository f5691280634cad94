"""NeRSemble-SVFR: posed and neutral 3-D faces from single images (Pixel3DMM, 2025; the NeRSemble benchmark).

Layout of the images, as the benchmark's download tool leaves it, in the folder itself or in its ``svfr``:

    <participant>/<sequence>_<timestep>_<serial>/rgb.png

Written are ``predictions/<participant>/<sequence>_<timestep>_<serial>/mesh_{posed,neutral}.ply`` and
``landmarks_{posed,neutral}.npy`` (the timestep in three digits, the seven NoW points, metres) and
``svfr_submission.zip`` with the same, for the benchmark's server.

The benchmark keeps its point clouds to itself. Where scans are at hand, numbers are computed here:

    <participant>/<image>/scan_posed.ply    with landmarks_posed.npy (or .json, .txt, .pp)    beside rgb.png
    <participant>/<image>/scan_neutral.ply  with landmarks_neutral.npy, or one for the person in <participant>/

A scan is a mesh or a point cloud in m, cm or mm. Assumed, since the server's code is not public: crop and alignment are
NoW's (seven points, then least squares with scale); distances go from the scan to the mesh; L1 and L2 are the means of
the L1 and L2 norm of the vector to the closest point, in mm (published pairs have the ratio 1.5 that these norms have);
NC is the mean cosine of the normals; recall is the share of scan points within 2.5 mm; images weigh the same.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from nphm_track.errors import InputError
from nphm_track.evaluation.points7 import UNITS, read_points7, unit_of
from nphm_track.evaluation.predict import ImagePredictor, Item, Kind, PredictionFolder, read_head
from nphm_track.evaluation.region import FaceRegion
from nphm_track.evaluation.results import provenance, provenance_text, table, write_results
from nphm_track.rendering.surface import Surface
from nphm_track.scans.reading import SUFFIXES, estimated_normals, read_scan
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import replacing

KINDS: tuple[Kind, ...] = get_args(Kind)
IMAGE = "rgb.png"
SUBMISSION_ZIP = "svfr_submission.zip"
RECALL = 0.0025
"""Metres."""
POINT_SUFFIXES = (".npy", ".json", ".txt", ".pp")
_KEY = re.compile(r"(.+)_(\d+)_(\d+)")


@dataclass(frozen=True)
class SvfrMeasures:
    """Error of one prediction; lengths are millimetres."""

    l1: float
    l2: float
    normal_consistency: float
    recall_2p5mm: float
    scale: float


def list_items(dataset: Path, predictions: Path) -> list[Item]:
    """The images of the benchmark. Raises InputError when there are none."""
    root = dataset / "svfr" if (dataset / "svfr").is_dir() else dataset
    items = []
    for image in sorted(root.glob(f"*/*/{IMAGE}")):
        participant, name = image.parts[-3:-1]
        parsed = _KEY.fullmatch(name)
        if not participant.isdigit() or parsed is None:
            continue
        sequence, timestep, serial = parsed.groups()
        folder = predictions / f"{int(participant):03d}" / f"{sequence}_{int(timestep):03d}_{serial}"
        files = {kind: (folder / f"mesh_{kind}.ply", folder / f"landmarks_{kind}.npy") for kind in KINDS}
        items.append(Item(f"{participant}/{name}", image, files))
    if not items:
        raise InputError(f"{dataset} is not the SVFR data set: no <participant>/<sequence>_<timestep>_<serial>/{IMAGE}")
    return items


def evaluate_svfr(
    dataset: Path, out: Path, predictor: ImagePredictor, progress: Progress, *, command: str = ""
) -> dict[str, Any]:
    """Predict every image, pack the submission, measure against the scans that are there, write the results to ``out``.

    Raises InputError when ``dataset`` is another, OutputError when ``out`` holds something else.
    """
    folder = PredictionFolder(out, predictor, protocol="NeRSemble-SVFR")
    items = list_items(dataset, out / "predictions")
    folder.fill(items, progress)
    _pack(items, out / "predictions", out / SUBMISSION_ZIP)
    progress.stage("distances", len(items))
    measured: dict[str, dict[str, SvfrMeasures]] = {kind: {} for kind in KINDS}
    for item in items:
        for kind in KINDS:
            region = _region(item, kind)
            if region is not None:
                measured[kind][item.key] = _measures(region, item, kind)
        progress.advance()
    facts = {
        "protocol": "NeRSemble-SVFR",
        **provenance(command, predictor.models),
        "images": len(items),
        "failures": folder.failures,
        "results": [_mean(kind, measured[kind], folder.failures) for kind in KINDS if measured[kind]],
        "each": {kind: {key: asdict(m) for key, m in some.items()} for kind, some in measured.items()},
    }
    write_results(out, facts, _markdown(facts))
    return facts


def _region(item: Item, kind: Kind) -> FaceRegion | None:
    """The scan of an image, or None when there is none. Raises InputError when it lacks its points."""
    folders = [item.image.parent] + ([item.image.parents[1]] if kind == "neutral" else [])
    scan = next((p for f in folders for s in SUFFIXES if (p := f / f"scan_{kind}{s}").exists()), None)
    if scan is None:
        return None
    stem = scan.with_name(f"landmarks_{kind}")
    points = next((p for s in POINT_SUFFIXES if (p := stem.with_suffix(s)).exists()), None)
    if points is None:
        raise InputError(f"{scan} lacks its seven points, {stem.name}.npy")
    points7, geometry = read_points7(points).points, read_scan(scan)
    metres = UNITS[unit_of(points7)]
    normals = estimated_normals(geometry.vertices) if geometry.normals is None else geometry.normals
    if geometry.normals is None:  # they have no sign: out of the face, as seen from its middle
        inside = points7.mean(0) - 2 * np.linalg.norm(points7[0] - points7[3]) * _outward(points7)
        normals *= np.sign(((geometry.vertices - inside) * normals).sum(1, keepdims=True))
    return FaceRegion(geometry.vertices * metres, points7 * metres, normals)


def _outward(points7: np.ndarray) -> np.ndarray:
    """Unit direction [3] out of the face, from the eyes and the mouth."""
    right = points7[3] - points7[0]
    up = points7[:4].mean(0) - points7[5:].mean(0)
    out = np.cross(right, up)
    return np.asarray(out / np.linalg.norm(out))


def _measures(region: FaceRegion, item: Item, kind: Kind) -> SvfrMeasures:
    head = read_head(item.files[kind])
    d = region.compare(Surface(head.vertices, head.faces), head.points7, scaled=True)
    assert d.cosine is not None
    return SvfrMeasures(
        l1=1e3 * float(np.abs(d.offset).sum(1).mean()),
        l2=1e3 * float(d.distance.mean()),
        normal_consistency=float(d.cosine.mean()),
        recall_2p5mm=float((d.distance < RECALL).mean()),
        scale=d.scale,
    )


def _mean(kind: Kind, measured: dict[str, SvfrMeasures], failures: dict[str, str]) -> dict[str, Any]:
    rows = [asdict(m) for m in measured.values()]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return {"task": kind, "count": len(rows), "failed": sum(key in failures for key in measured), **means}


def _pack(items: Sequence[Item], root: Path, path: Path) -> None:
    with replacing(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for item in items:
            for file in (file for files in item.files.values() for file in files):
                archive.write(file, file.relative_to(root).as_posix())


def _markdown(facts: dict[str, Any]) -> str:
    header = ["task", "images", "failed", "L1 mm", "L2 mm", "NC", "recall 2.5 mm"]
    names = ("task", "count", "failed", "l1", "l2", "normal_consistency", "recall_2p5mm")
    rows = [[row[name] for name in names] for row in facts["results"]]
    text = [
        "# NeRSemble-SVFR",
        provenance_text(facts),
        f"{facts['images']} images, {len(facts['failures'])} failed; a failed image is given the model's mean head. "
        f"`{SUBMISSION_ZIP}` is what the benchmark's server takes.",
        table(header, rows) if rows else "There are no scans beside the images: predictions only.",
    ]
    failed = [f"- {key}: {message}" for key, message in facts["failures"].items()]
    return "\n\n".join(text + (["Failed:\n\n" + "\n".join(failed)] if failed else []))
