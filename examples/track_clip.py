"""Track a clip from Python and say where the head looks.

    python examples/track_clip.py clip.mp4 clip_run
    python examples/track_clip.py clip.mp4 clip_run --end 2 --every 2

What the command line does in one line, with a progress of your own. Given again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from nphm_track import TrackOptions, track
from nphm_track.errors import NphmTrackError
from nphm_track.tracking.records import Status, Track


class PrintedProgress:
    """Says each stage once; anything with these three methods will do."""

    def stage(self, name: str, total: int | None = None) -> None:
        print(f"- {name}" + (f" ({total})" if total else ""))

    def advance(self, n: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        print(text)


def looking_direction(track: Track) -> np.ndarray:
    """[T, 2] degrees that the face looks to its own left and up, seen from the camera; NaN where it is lost."""
    forward = track.R @ [0, 0, 1]  # the face looks along +z of head space; here in OpenCV camera axes
    to_left = np.degrees(np.arctan2(forward[:, 0], -forward[:, 2]))  # its own left is the image's right, x
    up = np.degrees(np.arcsin(-forward[:, 1]))
    return np.stack([to_left, up], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path, help="a video, an image, or a folder of images")
    parser.add_argument("run", type=Path, help="the run folder to write")
    parser.add_argument("--end", type=float, help="seconds")
    parser.add_argument("--every", type=int, default=1, help="track every Nth frame")
    arguments = parser.parse_args()
    try:
        options = TrackOptions.build(end=arguments.end, every=arguments.every, overlay=False)
        run = track(arguments.clip, arguments.run, options=options, progress=PrintedProgress())
    except NphmTrackError as error:
        parser.exit(error.exit_code, f"{error}\n")

    result = run.track
    for row in np.flatnonzero(result.status == Status.TRACKED)[:: max(1, len(result) // 8)]:
        left, up = looking_direction(result)[row]
        print(f"{result.time[row]:6.2f} s: looks {left:+.0f} degrees to its left, {up:+.0f} up")
    print(f"focal length {result.K[0, 0]:.0f} px; {run.info.quality}")


if __name__ == "__main__":
    main()
