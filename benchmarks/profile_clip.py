"""Where the milliseconds of a frame go: the real job on one clip with a stopwatch around each of its steps.

python benchmarks/profile_clip.py CLIP [--end SECONDS] [--out FOLDER] [--tracking-only]

Times are exclusive (a step does not count the steps it calls) and wall-clock; what no stopwatch covers is "the rest".
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

from report import machine, machine_line, save, table

from nphm_track._runtime import prepare_torch
from nphm_track.faces import follower, landmarker, networks
from nphm_track.regressor.landmark_regressor import LandmarkRegressor
from nphm_track.rendering import overlay
from nphm_track.tracking import fit, observations, pipeline, records, render
from nphm_track.tracking.pipeline import track
from nphm_track.video.source import FrameSource
from nphm_track.video.writer import VideoWriter

STEPS: list[tuple[str, Any, str]] = [
    ("hash the models", pipeline, "sha256"),
    ("hash the clip", records.InputInfo, "of"),
    ("load models", landmarker, "read_weights"),
    ("load models", pipeline, "load_head_model"),
    ("decode", FrameSource, "frames"),
    ("look for cuts", follower, "_thumbnail"),
    ("detector", landmarker.FaceLandmarker, "detect"),
    ("crop", landmarker, "crop_rois"),
    ("landmark network", networks.LandmarkNet, "forward"),
    ("blendshapes", networks.BlendshapeNet, "forward"),
    ("signature", networks.AppearanceSignature, "forward"),
    ("log", observations.ObservationLog, "append"),
    ("regressor", LandmarkRegressor, "forward"),
    ("landmarks of the head", fit, "head_landmarks"),
    ("focal length", fit, "solve_focal"),
    ("head poses (PnP)", fit, "solve_pnp"),
    ("smoothing", fit, "smooth_codes"),
    ("smoothing", fit, "smooth_poses"),
    ("save track.npz, transforms.json", records.Track, "save"),
    ("save track.npz, transforms.json", pipeline, "write_transforms"),
    ("canonical extraction", pipeline, "extract_canonical"),
    ("carry the surface", render.SurfaceCarrier, "__call__"),
    ("write PLY", pipeline, "write_ply"),
    ("rasterise", overlay, "rasterise"),
    ("shade", overlay, "vertex_normals"),
    ("shade", overlay, "shade"),
    ("compose", overlay, "compose"),
    ("encode", VideoWriter, "write"),
    ("encode", VideoWriter, "close"),
]
"""Name in the table, and the function it stands for."""


class Stopwatch:
    """Exclusive seconds and calls by name, of functions and generators wrapped in place."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inner = [0.0]

    def timed(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            return function(*args, **kwargs)
        finally:
            took = time.perf_counter() - start
            self.seconds[name] += took - self._inner.pop()
            self._inner[-1] += took
            self.calls[name] += 1

    def wrap(self, name: str, owner: Any, attribute: str) -> None:
        plain = owner.__dict__[attribute]
        inner = plain.__func__ if isinstance(plain, classmethod) else plain

        @wraps(inner)
        def measured(*args: Any, **kwargs: Any) -> Any:
            result = self.timed(name, inner, *args, **kwargs)
            return self._steps(name, result) if isinstance(result, Iterator) else result

        setattr(owner, attribute, classmethod(measured) if isinstance(plain, classmethod) else measured)

    def _steps(self, name: str, steps: Iterator[Any]) -> Iterator[Any]:
        end = object()
        while (item := self.timed(name, next, steps, end)) is not end:
            yield item


def profile(clip: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Seconds, calls and milliseconds a frame of every step of one fresh run."""
    watch = Stopwatch()
    for name, owner, attribute in STEPS:
        watch.wrap(name, owner, attribute)
    start = time.perf_counter()
    run = track(clip, out, overwrite=True, **options)
    total = time.perf_counter() - start
    steps = {name: {"seconds": s, "calls": watch.calls[name]} for name, s in watch.seconds.items()}
    steps["the rest"] = {"seconds": total - sum(watch.seconds.values()), "calls": 1}
    size = f"{run.info.input.width}x{run.info.input.height}"
    return {"clip": clip.name, "size": size, "frames": len(run.track), "seconds": total, "steps": steps}


def markdown(facts: dict[str, Any]) -> str:
    frames, total = facts["frames"], facts["seconds"]
    order = sorted(facts["steps"].items(), key=lambda item: -item[1]["seconds"])
    rows = [
        [name, 1e3 * step["seconds"] / frames, 100 * step["seconds"] / total, step["calls"] / frames, step["seconds"]]
        for name, step in order
    ]
    head = f"{facts['clip']}, {facts['size']}, {frames} frames in {total:.1f} s: {frames / total:.2f} frames/s"
    limits = ", ".join(f"{name} {row[2]:.0f} %" for (name, _), row in zip(order[:3], rows, strict=False))
    columns = ["step", "ms a frame", "% of the job", "calls a frame", "seconds"]
    return "\n\n".join([machine_line(facts["machine"]), head, table(columns, rows), f"What limits it: {limits}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--end", type=float, help="seconds of the clip")
    parser.add_argument("--out", type=Path, help="where to keep the table and the run")
    parser.add_argument("--tracking-only", action="store_true", help="no meshes, no overlay")
    args = parser.parse_args()
    drawn = not args.tracking_only
    prepare_torch()
    with tempfile.TemporaryDirectory() as scratch:
        out = args.out or Path(scratch)
        facts = {"machine": machine()} | profile(
            args.clip, out / f"{args.clip.stem}_run", end=args.end, meshes=drawn, overlay=drawn
        )
        save(out, "profile", facts, markdown(facts))


if __name__ == "__main__":
    main()
