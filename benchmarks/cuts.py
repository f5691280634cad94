"""One identity across cuts: two shots of a person as one clip, and each by itself.

The second shot is another part of the same video, cropped to three quarters, as after a cut to a longer lens; both
one after the other are a folder of images. Distances are means over the 478 neutral landmarks after a similarity, mm;
those between different people, seen in different shots, are what they are to be compared with.
"""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.data import Array, find_clips, neutral_landmarks
from benchmarks.harness import Only, Out, Report, Videos, table
from nphm_track._runtime import prepare_torch
from nphm_track.heads.loading import load_head_model
from nphm_track.rigid import fit_similarity
from nphm_track.tracking.pipeline import track
from nphm_track.tracking.records import Status
from nphm_track.video.reader import open_video

SHOTS = ((0.0, 1.0), (2.0, 3.0))
"""Seconds of the video."""
ZOOM = 0.75


def run(videos: Videos, out: Out, only: Only = None, refine: bool = False) -> Report:
    """Name with --only clips of one person each, who is seen all the time."""
    prepare_torch()
    model = load_head_model()
    heads, rows = [], []
    for video in find_clips(videos, only):
        folders = write_shots(video, out / "runs" / video.stem)
        options: dict[str, Any] = {"meshes": False, "overlay": False, "refine": refine, "overwrite": True}
        runs = [track(path, path.with_name(f"{path.name}_run"), **options) for path in folders]
        first, second, both = (neutral_landmarks(model, found.track) for found in runs)
        heads.append((first, second))
        lost = int((runs[2].track.status == Status.LOST).sum())
        apart = [distance(*pair) for pair in ((first, second), (both, first), (both, second))]
        rows.append([video.stem, len(runs[2].track), lost, *apart])
    strangers = [distance(a[0], b[1]) for a, b in permutations(heads, 2)]
    between = f"Different people: {np.mean(strangers):.2f} mm." if strangers else ""
    columns = ["clip", "frames", "lost", "shots one by one, mm", "both to the first", "both to the second"]
    facts = {"rows": rows, "different_people": float(np.mean(strangers)) if strangers else None}
    return Report(facts, [table(columns, rows), between])


def write_shots(video: Path, folder: Path) -> list[Path]:
    """Folders of the shots' pictures: first, second, both."""
    folders = [folder / name for name in ("first", "second", "both")]
    for path in folders:
        path.mkdir(parents=True, exist_ok=True)
    for k, (start, end) in enumerate(SHOTS):
        with open_video(video, start=start, end=end) as source:
            for frame in source:
                picture = Image.fromarray(frame.image)
                if k:
                    w, h = picture.size
                    edge = (w * (1 - ZOOM) / 2, h * (1 - ZOOM) / 2)
                    picture = picture.resize((w, h), Image.Resampling.BICUBIC, (*edge, w - edge[0], h - edge[1]))
                for path in (folders[k], folders[2]):
                    picture.save(path / f"{k}{frame.index:06d}.png", compress_level=1)
    return folders


def distance(a: Array, b: Array) -> float:
    """Mean distance of corresponding points [N, 3] after a similarity."""
    return float(np.linalg.norm(fit_similarity(a, b, scaled=True)(a) - b, axis=1).mean())
