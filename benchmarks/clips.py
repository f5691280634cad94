"""The product on real clips: quality, speed, jitter, and a sheet of frames a clip for a person to judge.

Each clip is tracked twice, whole job and without meshes and overlay, with --refine a third time. Speeds are frames over
wall-clock seconds of the whole call, hashing and loading of the models included. The landmark error compares the fitted
head's iBUG-68 points with the observed ones, in percent of the distance between the outer eye corners.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.data import find_clips, jitter
from benchmarks.harness import End, Only, Out, Report, Videos, records_table, table
from nphm_track._runtime import prepare_torch
from nphm_track.cameras.intrinsics import fov_from_focal
from nphm_track.errors import NphmTrackError
from nphm_track.heads.loading import load_head_model
from nphm_track.tracking.pipeline import track
from nphm_track.tracking.records import Status
from nphm_track.tracking.run_folder import Run
from nphm_track.video.reader import open_video

SHEET_FRAMES, SHEET_COLUMNS, SHEET_WIDTH = 8, 4, 360
COLUMNS = {
    "clip": "clip", "frames": "frames", "tracked": "tracked", "filled": "filled", "lost": "lost",
    "do not fit": "misfit", "error px": "landmark_error_px", "error %": "landmark_error_percent",
    "frames/s whole": "fps_whole", "frames/s tracking": "fps_tracking", "focal px": "focal_px", "fov deg": "fov_deg",
    "t mm": "jitter_t_mm", "R deg": "jitter_r_deg", "points mm": "jitter_landmarks_mm",
}  # fmt: skip
REFINED = {"clip": "clip", "frames": "frames", "rolled back": "rolled_back"} | {
    f"{title} {when}": f"refine_{term}_{when}"
    for title, term in {"normals deg": "normal_deg", "points mm": "point_mm", "landmarks px": "landmark_px"}.items()
    for when in ("before", "after")
} | {"t mm": "jitter_t_mm", "R deg": "jitter_r_deg", "points mm": "jitter_landmarks_mm"}  # fmt: skip


def run(videos: Videos, out: Out, only: Only = None, end: End = None, refine: bool = False) -> Report:
    """Clips that cannot be tracked are listed with their error."""
    prepare_torch()
    results: list[dict[str, Any]] = []
    for clip in find_clips(videos, only):
        try:
            results.append(measure(clip, out, end, refine))
        except NphmTrackError as error:
            results.append({"clip": clip.stem, "error": str(error)})
        print(results[-1], flush=True)
    done = [r for r in results if "error" not in r]
    stages = list(dict.fromkeys(stage for r in done for stage in r["seconds"]))
    per_frame = [[r["clip"], *(1e3 * r["seconds"].get(s, 0.0) / r["frames"] for s in stages)] for r in done]
    parts = [
        records_table(COLUMNS, done),
        "t, R, points: RMS second difference from frame to frame of place, rotation and landmarks in head space.",
        "Milliseconds a frame of each stage, whole job:",
        table(["clip", *stages], per_frame),
    ]
    if refine:
        parts += ["Refined:", records_table(REFINED, [r["refined"] for r in done])]
    parts += [f"{r['clip']}: {r['error']}" for r in results if "error" in r]
    return Report({"end": end, "clips": results}, parts)


def measure(clip: Path, out: Path, end: float | None, refine: bool) -> dict[str, Any]:
    """The runs of one clip and what can be said of them."""
    whole, seconds = timed(clip, out / "runs" / clip.stem, end=end)
    _, tracking = timed(clip, out / "runs" / f"{clip.stem}_tracking", end=end, meshes=False, overlay=False)
    contact_sheet(clip, whole, end).save(out / f"{clip.stem}.png")
    frames = len(whole.track)
    facts = described(clip, whole) | {"fps_whole": frames / seconds, "fps_tracking": frames / tracking}
    if refine:
        refined, _ = timed(
            clip, out / "runs" / f"{clip.stem}_refined", end=end, refine=True, meshes=False, overlay=False
        )
        facts["refined"] = described(clip, refined)
    return facts


def timed(clip: Path, output: Path, **options: Any) -> tuple[Run, float]:
    start = time.perf_counter()
    found = track(clip, output, overwrite=True, **options)
    return found, time.perf_counter() - start


def described(clip: Path, found: Run) -> dict[str, Any]:
    """What a run says of itself."""
    result = found.track
    focal, width = float(result.K[0, 0]), int(result.image_size[0])
    camera = {"focal_px": focal, "fov_deg": fov_from_focal(focal, width)}
    seconds = {"seconds": found.info.timings}
    return {"clip": clip.stem, **found.info.quality, **camera, **seconds, **jitter(load_head_model(), result)}


def contact_sheet(clip: Path, found: Run, end: float | None) -> Image.Image:
    """Frames spread over the clip, four in a row: the original above, the overlay below."""
    result = found.track
    rows = sorted(set(np.linspace(0, len(result) - 1, SHEET_FRAMES).round().astype(int).tolist()))
    width, height = (int(n) for n in result.image_size)
    size = SHEET_WIDTH, round(SHEET_WIDTH * height / width)
    bands = -(-len(rows) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (size[0] * SHEET_COLUMNS, 2 * size[1] * bands))
    with open_video(clip, end=end) as source, open_video(found.overlay) as overlay:
        for row, pair in enumerate(zip(source, overlay, strict=False)):
            if row not in rows:
                continue
            band, column = divmod(rows.index(row), SHEET_COLUMNS)
            left, top = column * size[0], 2 * band * size[1]
            for line, frame in enumerate(pair):
                picture = Image.fromarray(frame.image).crop((0, 0, width, height)).resize(size)
                sheet.paste(picture, (left, top + line * size[1]))
            status, error = Status(result.status[row]).name.lower(), result.landmark_error_px[row]
            label = f"{result.time[row]:.2f} s {status}" + (f" {error:.1f} px" if np.isfinite(error) else "")
            ImageDraw.Draw(sheet).text((left + 4, top + 2), label, fill=(255, 220, 90), stroke_fill=0, stroke_width=1)
    return sheet
