"""Frames called lost because no head fits them: how near clean footage comes to the bounds, and what maps would add.

Each clip is tracked as people do, which counts the frames lost, and without smoothing, which gives the landmark errors
that ``tracking.fit_check`` judges. With ``--maps`` every ``--every``-th frame is refined, too: as it is, squeezed more
and more, and with a lens of 140 degrees. What normals and points say of those frames stands beside what landmarks say.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from benchmarks.data import find_clips
from benchmarks.harness import End, Only, Out, Report, Videos, records_table, table
from nphm_track._runtime import prepare_torch
from nphm_track.errors import NoFaceError
from nphm_track.tracking.fit_check import MISFIT, WRITTEN_MISFIT
from nphm_track.tracking.pipeline import track
from nphm_track.tracking.records import Track
from nphm_track.video.reader import open_video
from nphm_track.video.writer import VideoWriter

SQUEEZED = (0.9, 0.8, 0.7)
LOST_SHARE = 1e-3
"""Of good frames that may be lost."""
PLAIN: dict[str, Any] = {"meshes": False, "overlay": False, "report": False, "overwrite": True}
COLUMNS = {
    "clip": "clip", "frames with a face": "seen", "lost": "misfit", "median": "median", "99 %": "high",
    "worst": "worst", "worst as written": "written",
}  # fmt: skip


def run(
    videos: Videos,
    out: Out,
    only: Only = None,
    end: End = None,
    maps: Annotated[bool, typer.Option("--maps", help="Compare with normals and points; minutes a clip.")] = False,
    every: Annotated[int, typer.Option(help="Of how many frames one is refined.")] = 12,
) -> Report:
    """Errors are mean distances of landmarks over the spread of the face's landmarks, as the check has them."""
    prepare_torch()
    records, compared = [], []
    for clip in find_clips(videos, only):
        records.append(of_clip(clip, out / clip.stem, end))
        print(records[-1], flush=True)
        if maps:
            compared += list(by_maps(clip, out / clip.stem, end, every))
            print(compared[-len(SQUEEZED) - 2 :], flush=True)
    seen, lost = (sum(record[name] for record in records) for name in ("seen", "misfit"))
    worst = max(record["worst"] for record in records)
    parts = [
        records_table(COLUMNS, records),
        f"{lost} of {seen} frames with a face lost ({lost / seen:.2%}); worst error {worst:.4f}, bound {MISFIT}; as "
        f"written {max(record['written'] for record in records):.4f}, bound {WRITTEN_MISFIT}.",
    ]
    if compared:
        header = [
            "clip",
            "lost by landmarks",
            "normals, degrees",
            "beyond the clip's",
            "points, mm",
            "beyond the clip's",
        ]
        parts += ["Heads that fit, and others:", table(header, compared)]
    facts = {"clips": records, "seen": seen, "lost": lost, "worst": worst, "maps": compared}
    return Report(facts, parts, lost <= LOST_SHARE * seen)


def of_clip(clip: Path, out: Path, end: float | None) -> dict[str, Any]:
    """How near the frames of a clip come to the bounds, and how many are lost."""
    written = track(clip, out / "smoothed", end=end, **PLAIN).track
    found = error_of(track(clip, out / "single", end=end, smooth=0, **PLAIN).track)
    return {
        "clip": clip.stem, "seen": len(found), "misfit": int(written.misfit.sum()), "median": float(np.median(found)),
        "high": float(np.quantile(found, 0.99)), "worst": float(found.max()), "written": float(error_of(written).max()),
    }  # fmt: skip


def error_of(found: Track) -> NDArray[np.floating]:
    """Landmark error of the frames in which a face was seen, of the spread of its landmarks."""
    points = found.landmarks[np.isfinite(found.landmarks[:, 0, 0])].astype(np.float64)
    spread = np.sqrt(np.square(points - points.mean(1, keepdims=True)).sum(-1).mean(-1))
    return np.asarray(found.landmark_error_px[np.isfinite(found.landmarks[:, 0, 0])] / spread)


def by_maps(clip: Path, out: Path, end: float | None, every: int) -> Iterator[list[Any]]:
    """Rows of the comparison: the clip as it is, and in ways of fitting less and less."""
    cases: list[tuple[str, Path, dict[str, Any]]] = [("as it is", clip, {"end": end, "every": every})]
    for share in SQUEEZED:
        narrow = out / f"squeezed_{share}.mp4"
        with open_video(clip, end=end, every=every) as source:
            size = round(source.info.width * share / 2) * 2, source.info.height
            with VideoWriter(narrow, size) as writer:
                for frame in source:
                    writer.write(np.asarray(Image.fromarray(frame.image).resize(size)), frame.time)
        cases.append((f"{share} as wide", narrow, {}))
    cases.append(("140 degrees", clip, {"end": end, "every": every, "fov": 140}))
    worst = np.full(2, np.inf)
    for name, file, options in cases:
        try:
            found = track(file, out / name.replace(" ", "_"), refine=True, smooth=0, **options, **PLAIN).track
        except NoFaceError:
            yield [f"{clip.stem}, {name}", "all", "-", "-", "-", "-"]
            continue
        seen = np.isfinite(found.landmarks[:, 0, 0])
        maps = found.refine_after[seen, :2]
        if file == clip and name == "as it is":
            worst = np.nanmax(maps, 0)
        medians = np.nanmedian(maps, 0)
        beyond = [f"{count} of {len(maps)}" for count in (maps > worst).sum(0)]
        yield [
            f"{clip.stem}, {name}",
            f"{found.misfit.sum()} of {len(maps)}",
            medians[0],
            beyond[0],
            medians[1],
            beyond[1],
        ]
