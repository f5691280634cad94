"""Run the product on every clip of a folder, measure it, and make a picture of each for a person to judge.

python benchmarks/clips.py --videos FOLDER --out FOLDER [--only d01 d02] [--end SECONDS]

Each clip is tracked twice, whole job and without meshes and overlay. Speeds are frames over wall-clock seconds of the
whole call, hashing and loading of the models included. Writes clips.json, clips.md and <clip>.png, and the runs under
runs/.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from report import machine, machine_line, save, table

from nphm_track._runtime import prepare_torch
from nphm_track.cameras.intrinsics import fov_from_focal
from nphm_track.errors import NphmTrackError
from nphm_track.heads.loading import load_head_model
from nphm_track.tracking.fit import head_landmarks, landmark_carrier
from nphm_track.tracking.pipeline import track
from nphm_track.tracking.records import Status, Track
from nphm_track.tracking.run_folder import Run
from nphm_track.video.reader import open_video

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi"}
NO_FACE_FROM = {"d02": 2.4}
"""Seconds from which on a clip, named by the beginning of its file name, shows no face."""
SHEET_FRAMES, SHEET_COLUMNS, SHEET_WIDTH = 8, 4, 360


def measure(clip: Path, out: Path, end: float | None) -> dict[str, Any]:
    """Both runs of one clip and what can be said of them."""
    facts: dict[str, Any] = {"clip": clip.stem}
    full, whole = _timed(clip, out / "runs" / clip.stem, end=end)
    _, tracking = _timed(clip, out / "runs" / f"{clip.stem}_tracking", end=end, meshes=False, overlay=False)
    result = full.track
    K, width = result.K, int(result.image_size[0])
    facts |= full.info.quality
    facts |= {
        "fps_whole": len(result) / whole,
        "fps_tracking": len(result) / tracking,
        "seconds": full.info.timings,
        "focal_px": float(K[0, 0]),
        "fov_deg": fov_from_focal(float(K[0, 0]), width),
        **jitter(result),
        **no_face(clip, full),
    }
    contact_sheet(clip, full, end).save(out / f"{clip.stem}.png")
    return facts


def _timed(clip: Path, output: Path, **options: Any) -> tuple[Run, float]:
    start = time.perf_counter()
    run = track(clip, output, overwrite=True, **options)
    return run, time.perf_counter() - start


def jitter(result: Track) -> dict[str, float]:
    """RMS second differences over three tracked frames in a row: place (mm), rotation (degrees), and the fitted head's
    iBUG-68 points in head space (mm). Real motion and hard cuts are in them; compare runs of one clip."""
    ok = result.status == Status.TRACKED
    middle = np.flatnonzero(ok[:-2] & ok[1:-1] & ok[2:]) + 1
    if not len(middle):
        return {"jitter_t_mm": np.nan, "jitter_r_deg": np.nan, "jitter_landmarks_mm": np.nan}
    points = np.zeros((len(result), 68, 3))
    points[ok] = head_landmarks(landmark_carrier(load_head_model(), result.z_id), result.z_ex[ok])[:, :68]
    step = result.R[1:] @ result.R[:-1].swapaxes(-1, -2)
    bend = step[middle] @ step[middle - 1].swapaxes(-1, -2)
    angle = np.degrees(np.arccos(np.clip((np.trace(bend, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    return {
        "jitter_t_mm": 1e3 * _rms(_second_difference(result.t, middle)),
        "jitter_r_deg": float(np.sqrt((angle**2).mean())),
        "jitter_landmarks_mm": 1e3 * _rms(_second_difference(points, middle)),
    }


def _second_difference(values: NDArray[np.floating], middle: NDArray[np.integer]) -> NDArray[np.floating]:
    return values[middle + 1] - 2 * values[middle] + values[middle - 1]


def _rms(vectors: NDArray[np.floating]) -> float:
    """Root mean squared length of vectors [..., 3]."""
    return float(np.sqrt((vectors**2).sum(-1).mean()))


def no_face(clip: Path, run: Run) -> dict[str, Any]:
    """For a clip with a part without a face: whether all of it is lost and has no mesh."""
    start = next((second for name, second in NO_FACE_FROM.items() if clip.name.startswith(name)), None)
    if start is None:
        return {}
    rows = np.flatnonzero(run.track.time >= start)
    heads = sum(bool(run.track.status[row] != Status.LOST or run.mesh_path(int(row)).exists()) for row in rows)
    return {"no_face_frames": len(rows), "no_face_with_head": heads}


def contact_sheet(clip: Path, run: Run, end: float | None) -> Image.Image:
    """Frames spread over the clip, four in a row: the original above, the overlay below."""
    result = run.track
    rows = sorted(set(np.linspace(0, len(result) - 1, SHEET_FRAMES).round().astype(int).tolist()))
    width, height = (int(n) for n in result.image_size)
    size = SHEET_WIDTH, round(SHEET_WIDTH * height / width)
    bands = -(-len(rows) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (size[0] * SHEET_COLUMNS, 2 * size[1] * bands))
    with open_video(clip, end=end) as source, open_video(run.path / "overlay.mp4") as overlay:
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


def markdown(facts: dict[str, Any]) -> str:
    columns = [
        ("clip", "clip"), ("frames", "frames"), ("tracked", "tracked"), ("filled", "filled"), ("lost", "lost"),
        ("error px", "landmark_error_px"), ("error %", "landmark_error_percent"),
        ("frames/s whole", "fps_whole"), ("frames/s tracking", "fps_tracking"),
        ("focal px", "focal_px"), ("fov deg", "fov_deg"),
        ("t mm", "jitter_t_mm"), ("R deg", "jitter_r_deg"), ("points mm", "jitter_landmarks_mm"),
    ]  # fmt: skip
    done = [c for c in facts["clips"] if "error" not in c]
    rows = [[c[key] for _, key in columns] for c in done]
    parts = [machine_line(facts["machine"]), table([title for title, _ in columns], rows)]
    stages = list(dict.fromkeys(stage for c in done for stage in c["seconds"]))
    parts.append("Milliseconds a frame of each stage, whole job:")
    per_frame = [[c["clip"], *(1e3 * c["seconds"].get(s, 0.0) / c["frames"] for s in stages)] for c in done]
    parts.append(table(["clip", *stages], per_frame))
    for c in facts["clips"]:
        if "error" in c:
            parts.append(f"{c['clip']}: {c['error']}")
        if c.get("no_face_frames"):
            frames = f"{c['no_face_with_head']} of {c['no_face_frames']}"
            parts.append(f"{c['clip']}: {frames} frames without a face have a head or a mesh")
    parts.append(
        "error: the fitted head's iBUG-68 points against the observed ones, % of the distance between the outer "
        "eye corners; t, R, points: RMS second difference from frame to frame of place, rotation and landmarks in head "
        "space."
    )
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="folder of clips")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of the names of the clips to run")
    parser.add_argument("--end", type=float, help="seconds of each clip")
    args = parser.parse_args()
    videos = (p for p in args.videos.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES)
    clips = sorted(p for p in videos if p.name.startswith(tuple(args.only)))
    if not clips:
        raise SystemExit(f"no clip in {args.videos}")
    prepare_torch()
    args.out.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"machine": machine(), "end": args.end, "clips": []}
    for clip in clips:
        try:
            facts["clips"].append(measure(clip, args.out, args.end))
        except NphmTrackError as error:
            facts["clips"].append({"clip": clip.stem, "error": str(error)})
        save(args.out, "clips", facts, markdown(facts))


if __name__ == "__main__":
    main()
