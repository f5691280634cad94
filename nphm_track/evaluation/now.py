"""The NoW benchmark: neutral 3-D faces from single images against scans (RingNet, CVPR 2019).

Layout of the data set, as its evaluation code expects it; the parts may lie in the folder itself, in ``NoW_Dataset`` or
in ``final_release_version``:

    imagepathsvalidation.txt, imagepathstest.txt      a line an image: <subject>/<challenge>/<name>.jpg
    iphone_pictures/<subject>/<challenge>/<name>.jpg
    scans/<subject>/*.obj                             millimetres
    scans_lmks_onlypp/<subject>/*.pp                  seven points, MeshLab's PickedPoints, in NoW's order

Challenges are multiview_neutral, multiview_expressions, multiview_occlusions and selfie. Written are
``predictions/<subject>/<challenge>/<name>.ply`` and ``.npy`` (neutral mesh and seven points, metres), which the
benchmark's ``compute_error.py`` takes as they are with ``--predicted_mesh_unit m``, and this module's own numbers.

Assumed: ``detected_face`` (pickled boxes) is not read, the largest face of a picture is the subject. Distances of all
scan vertices of all images are pooled before median, mean and standard deviation are taken, as the benchmark does. The
alignment minimises the same objective with another solver. "Metrical" leaves the scale out of both its steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import InputError
from nphm_track.evaluation.points7 import UNITS, read_points7, unit_of
from nphm_track.evaluation.predict import ImagePredictor, Item, PredictionFolder, read_head
from nphm_track.evaluation.region import FaceRegion
from nphm_track.evaluation.results import provenance, provenance_text, table, write_results
from nphm_track.files.reading import Arrays, read_text, reading
from nphm_track.rendering.surface import Surface
from nphm_track.scans.reading import read_scan
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import replacing

Split = Literal["val", "test"]
LISTS: dict[Split, str] = {"val": "imagepathsvalidation.txt", "test": "imagepathstest.txt"}
PLACES = (".", "NoW_Dataset", "final_release_version", "NoW_Dataset/final_release_version")
MODES = ("similarity", "metrical")
Distances = dict[str, NDArray[np.float32]]
"""Mode to distances of an image's scan points, millimetres."""


@dataclass(frozen=True)
class NowData:
    """The images of a split and, where they are public, the scans.

    Raises InputError when the folder has no image list or lacks an image.
    """

    root: Path
    split: Split

    def items(self, predictions: Path) -> list[Item]:
        """Images in the order of the list."""
        listed = self._find(LISTS[self.split])
        pictures = self._find("iphone_pictures")
        if listed is None or pictures is None:
            lacking = LISTS[self.split] if listed is None else "iphone_pictures"
            raise InputError(f"{self.root} is not the NoW data set: it has no {lacking}")
        items = []
        with reading(listed, "a list of images"):
            lines = read_text(listed).split()
        for line in lines:
            relative = Path(*Path(line).parts[-3:])
            image = pictures / relative
            if len(relative.parts) != 3 or not image.is_file():
                raise InputError(f"{listed.name} names {line}, which is not in {pictures}")
            stem = predictions / relative
            files = stem.with_suffix(".ply"), stem.with_suffix(".npy")
            items.append(Item(relative.with_suffix("").as_posix(), image, {"neutral": files}))
        if not items:
            raise InputError(f"{listed} names no image")
        return items

    def region(self, subject: str) -> FaceRegion | None:
        """The subject's scan, or None when the data set has none (the test scans are not public)."""
        scans, points = self._find("scans"), self._find("scans_lmks_onlypp")
        meshes = sorted((scans / subject).glob("*.obj")) if scans else []
        picked = sorted((points / subject).glob("*.pp")) if points else []
        if not meshes or not picked:
            return None
        points7 = read_points7(picked[0]).points
        metres = UNITS[unit_of(points7)]
        return FaceRegion(read_scan(meshes[0]).vertices * metres, points7 * metres)

    def _find(self, name: str) -> Path | None:
        return next((found for place in PLACES if (found := self.root / place / name).exists()), None)


def evaluate_now(
    dataset: Path, out: Path, predictor: ImagePredictor, progress: Progress, *, split: Split = "val", command: str = ""
) -> dict[str, Any]:
    """Predict every image, measure those whose scan is there, write ``results.json`` and ``results.md`` to ``out``.

    Raises InputError when ``dataset`` is not NoW's, OutputError when ``out`` holds something else.
    """
    data = NowData(dataset, split)
    folder = PredictionFolder(out, predictor, protocol="NoW", split=split)
    items = data.items(out / "predictions")
    folder.fill(items, progress)
    distances = _measure(data, items, out / "distances", progress)
    facts = {
        "protocol": "NoW",
        "split": split,
        **provenance(command, predictor.models),
        "images": len(items),
        "measured": len(distances),
        "failures": folder.failures,
        "results": _statistics(distances, folder.failures),
    }
    write_results(out, facts, _markdown(facts))
    return facts


def _measure(data: NowData, items: Sequence[Item], cache: Path, progress: Progress) -> dict[str, Distances]:
    """Distances of each image that has a scan, by key; those on disk already are read."""
    by_subject: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_subject[item.key.split("/")[0]].append(item)
    progress.stage("distances", len(items))
    measured: dict[str, Distances] = {}
    for subject, some in by_subject.items():
        region = data.region(subject)
        for item in some:
            if region is not None:
                measured[item.key] = _distances(region, item, cache / f"{item.key}.npz")
            progress.advance()
    return measured


def _distances(region: FaceRegion, item: Item, path: Path) -> Distances:
    files = item.files["neutral"]
    if path.exists() and path.stat().st_mtime >= files[1].stat().st_mtime:
        try:
            with reading(path, "a file of distances"), Arrays(path) as stored:
                return {mode: stored[mode] for mode in MODES}
        except InputError:
            pass
    head = read_head(files)
    mesh = Surface(head.vertices, head.faces)
    found = {mode: 1e3 * region.compare(mesh, head.points7, scaled=mode == "similarity").distance for mode in MODES}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez(file, similarity=found["similarity"], metrical=found["metrical"])
    return found


def _statistics(distances: dict[str, Distances], failures: dict[str, str]) -> list[dict[str, Any]]:
    """Rows of the table: all images, those without failures, each challenge."""
    challenges = list(dict.fromkeys(key.split("/")[1] for key in distances))
    groups = {"all": list(distances), "all without failures": [key for key in distances if key not in failures]}
    groups |= {name: [key for key in distances if key.split("/")[1] == name] for name in challenges}
    rows = []
    for name, keys in groups.items():
        if not keys:
            continue
        row: dict[str, Any] = {"images": name, "count": len(keys), "failed": sum(key in failures for key in keys)}
        for mode in MODES:
            pooled = np.concatenate([distances[key][mode] for key in keys]).astype(np.float64)
            row[mode] = {
                name: float(f(pooled)) for name, f in (("median", np.median), ("mean", np.mean), ("std", np.std))
            }
        rows.append(row)
    return rows


def _markdown(facts: dict[str, Any]) -> str:
    header = ["images", "count", "failed"]
    header += [f"{mode} {name}" for mode in MODES for name in ("median", "mean", "std")]
    rows = [
        [row["images"], row["count"], row["failed"]]
        + [row[mode][name] for mode in MODES for name in ("median", "mean", "std")]
        for row in facts["results"]
    ]
    text = [
        f"# NoW, {'validation' if facts['split'] == 'val' else 'test'} set",
        provenance_text(facts),
        f"{facts['images']} images, {len(facts['failures'])} failed; a failed image is given the model's mean head. "
        "Scan-to-mesh distance in mm, pooled over scan vertices; `similarity` is the benchmark's standard alignment.",
        table(header, rows) if rows else "The scans of these images are not here: predictions only.",
    ]
    failed = [f"- {key}: {message}" for key, message in facts["failures"].items()]
    return "\n\n".join(text + (["Failed:\n\n" + "\n".join(failed)] if failed else []))
