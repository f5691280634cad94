"""Pictures of results for the documentation: ``make demo``, then ``python docs/pictures.py demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from nphm_track import Run, read_run
from nphm_track.rendering.overlay import OverlayRenderer
from nphm_track.video.reader import open_video

IMAGES = Path(__file__).parent / "images"
STRIP = (0, 14, 28, 42)
STEPS = 14
"""Rows of the track that are shown."""
DOT = 1.6
CROP = (20, 460, 400)
"""Top, height and width of the pictures of ``steps.jpg``, around the face."""

Picture = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="what make demo wrote")
    demo = parser.parse_args().demo
    run = read_run(demo / "run")
    clip, overlay = (frames(path) for path in (demo / "clip.mp4", run.overlay))
    strip = np.vstack([np.hstack([pictures[row] for row in STRIP]) for pictures in (clip, overlay)])
    save("demo.jpg", strip)
    save("steps.jpg", steps(run, clip[STEPS]))


def frames(path: Path) -> list[Picture]:
    with open_video(path) as source:
        return [frame.image for frame in source]


def steps(run: Run, image: Picture) -> Picture:
    """The clip, its landmarks, the head's normals and wireframe over it, the head alone: side by side."""
    track, (vertices, faces) = run.track, run.mesh(STEPS)
    marked = Image.fromarray(image)
    for x, y in track.landmarks[STEPS]:
        ImageDraw.Draw(marked).ellipse([x - DOT, y - DOT, x + DOT, y + DOT], fill=(80, 255, 170))
    pictures = [image, np.asarray(marked)]
    size = int(track.image_size[0]), int(track.image_size[1])
    for style in ("normals", "wireframe", "mesh"):
        renderer = OverlayRenderer(faces, track.K, size, style=style)
        pictures.append(renderer.draw(image, vertices, track.R[STEPS], track.t[STEPS]))
    top, height, width = CROP
    middle = float(track.landmarks[STEPS, :, 0].mean())
    left = int(np.clip(middle - width / 2, 0, size[0] - width))
    return np.hstack([picture[top : top + height, left : left + width] for picture in pictures])


def save(name: str, picture: Picture) -> None:
    """At half size."""
    image = Image.fromarray(picture)
    image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS).save(IMAGES / name, quality=88)


if __name__ == "__main__":
    main()
