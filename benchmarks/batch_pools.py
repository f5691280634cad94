"""One small real session by one worker, by several, and on a local Ray cluster: the results must be identical.

python benchmarks/batch_pools.py CLIP [CLIP ...] [--frames 12] [--refine] [--pools 1 2 ray]

Two short takes are cut from each clip, which stands for a person. Prints the seconds of each pool; exit code 1 when a
file differs or a take fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "batch"))
from fake_steps import contents  # noqa: E402

from nphm_track.batch import driver  # noqa: E402
from nphm_track.batch.manifest import Manifest, State  # noqa: E402
from nphm_track.tracking.options import TrackOptions  # noqa: E402

APART = 30
"""Frames of the clip between the beginnings of its two takes."""
HEIGHT, RATE = 360, 25


def cut(clip: Path, target: Path, first: int, count: int) -> None:
    """``count`` frames of a clip from its ``first`` on, 360 lines high."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(clip)) as source, av.open(str(target), "w") as output:
        stream = source.streams.video[0]
        encoder = output.add_stream("libx264", rate=RATE, options={"preset": "veryfast"})
        encoder.width, encoder.height = round(stream.width * HEIGHT / stream.height / 2) * 2, HEIGHT
        encoder.pix_fmt = "yuv420p"
        for index, frame in enumerate(source.decode(stream)):
            if index >= first + count:
                break
            if index >= first:
                small = frame.reformat(encoder.width, encoder.height, "yuv420p")
                small.pts, small.time_base = index - first, Fraction(1, RATE)
                output.mux(encoder.encode(small))
        output.mux(encoder.encode(None))


def drive(takes: Path, session: Path, pool: str, options: TrackOptions) -> Manifest:
    how: dict[str, Any] = {"ray": "local", "workers": 2} if pool == "ray" else {"workers": int(pool)}
    return driver.work(session, lambda: driver.planned(takes, session, options), **how)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--refine", action="store_true")
    parser.add_argument("--pools", nargs="+", default=["1", "2", "ray"])
    arguments = parser.parse_args()
    options = TrackOptions(refine=arguments.refine, report=False)  # the report tells dates
    with tempfile.TemporaryDirectory() as scratch:
        takes = Path(scratch) / "takes"
        for person, clip in enumerate(arguments.clips):
            for take in range(2):
                cut(clip, takes / f"person{person}" / f"take{take}.mp4", take * APART, arguments.frames)
        results = []
        for pool in arguments.pools:
            session, start = Path(scratch) / f"out_{pool}", time.monotonic()
            manifest = drive(takes, session, pool, options)
            print(f"{pool}: {time.monotonic() - start:.0f} s", flush=True)
            if failed := [f"{job.output}: {job.error}" for job in manifest.jobs if job.state is not State.DONE]:
                sys.exit("\n".join(failed))
            results.append(contents(session))
    first, *others = results
    wrong = {name for other in others for name in first.keys() | other.keys() if first.get(name) != other.get(name)}
    print("\n".join(sorted(wrong)) or f"{len(first)} files identical")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
