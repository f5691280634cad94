"""One identity across cuts: two shots of a person as one clip, and each by itself.

python benchmarks/cuts.py --videos FOLDER --out FOLDER [--only d01 d04] [--refine]

The second shot is another part of the same video, cropped to three quarters, as after a cut to a longer lens; both
one after the other are a folder of images. Distances are means over the 478 neutral landmarks after a similarity, mm,
also between different people. Writes cuts.json and cuts.md.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clips import VIDEO_SUFFIXES
from numpy.typing import NDArray
from PIL import Image
from report import machine, machine_line, save, table

from nphm_track._runtime import prepare_torch
from nphm_track.conventions import MODEL_UNIT
from nphm_track.evaluation.alignment import fit_points
from nphm_track.heads.decoder import NphmDecoder
from nphm_track.heads.loading import load_head_model
from nphm_track.tracking.pipeline import track
from nphm_track.tracking.records import Status, Track
from nphm_track.video.reader import open_video

SHOTS = ((0.0, 1.0), (2.0, 3.0))
"""Seconds of the video."""
ZOOM = 0.75
SHOWN = ("d01", "d03", "d04", "d05", "d06", "d07", "d08", "d10")
"""One person each, who is seen all the time."""


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


def neutral(model: NphmDecoder, result: Track) -> NDArray[np.float64]:
    """The person's neutral landmarks [478, 3], mm."""
    return model.landmarks(torch.from_numpy(result.z_id)).numpy().astype(np.float64) * MODEL_UNIT * 1000


def distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Mean distance of corresponding points [N, 3] after a similarity."""
    return float(np.linalg.norm(fit_points(a, b, scaled=True)(a) - b, axis=1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=SHOWN, metavar="NAME", help="beginnings of file names")
    parser.add_argument("--refine", action="store_true")
    args = parser.parse_args()
    prepare_torch()
    model = load_head_model()
    videos = [
        p for p in sorted(args.videos.iterdir()) if p.suffix in VIDEO_SUFFIXES and p.name.startswith(tuple(args.only))
    ]
    heads: dict[str, list[NDArray[np.float64]]] = {}
    results: list[dict[str, Any]] = []
    for video in videos:
        folder = args.out / "shots" / video.stem
        options = {"overlay": False, "meshes": False, "refine": args.refine, "overwrite": True}
        runs = [track(path, folder / f"{path.name}_run", **options) for path in write_shots(video, folder)]
        heads[video.stem] = [neutral(model, run.track) for run in runs]
        first, second, both = heads[video.stem]
        lost = int((runs[2].track.status == Status.LOST).sum())
        results.append(
            {
                "clip": video.stem,
                "frames": len(runs[2].track),
                "lost": lost,
                "apart": distance(first, second),
                "to_first": distance(both, first),
                "to_second": distance(both, second),
                "landmarks": runs[2].info.quality["landmark_error_percent"],
            }
        )
        print(results[-1], flush=True)
    people = [
        distance(one, other) for a, b in combinations(heads.values(), 2) for one, other in ((a[0], b[1]), (a[1], b[0]))
    ]
    facts = {"machine": machine(), "results": results, "different_people": float(np.mean(people)) if people else None}
    columns = ["clip", "frames", "lost", "shots one by one", "both to the first", "both to the second", "landmarks %"]
    rows = [[r[k] for k in ("clip", "frames", "lost", "apart", "to_first", "to_second", "landmarks")] for r in results]
    between = f"Different people: {facts['different_people']:.2f} mm." if people else ""
    save(
        args.out,
        "cuts" + "_refined" * args.refine,
        facts,
        "\n\n".join([machine_line(facts["machine"]), table(columns, rows), between]),
    )


if __name__ == "__main__":
    main()
