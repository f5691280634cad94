"""The moving picture at the head of the README: frame, overlay and the head from the side, from a run of a clip.

    nphm-track track CLIP -o RUN && python docs/strip.py RUN

RUN needs ``track.npz`` and its clip only; frames of the run's own rate are thinned to ``RATE`` a second.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nphm_track import read_run
from nphm_track.heads.loading import load_head_model
from nphm_track.rendering.occlusion import ambient_occlusion
from nphm_track.rendering.overlay import OverlayRenderer
from nphm_track.tracking.clip import open_clip
from nphm_track.tracking.run_folder import Run
from nphm_track.tracking.surface import Surface, open_surface

OUT = Path(__file__).parent / "images" / "strip.webp"
SIZE, ROOM = 256, 1.7
"""Pixels of a panel's side, and that side relative to the face."""
RATE, QUALITY = 12.5, 62
YAW, AWAY, WIDTH = 1.0, 1.2, 0.27
"""Turn of the head seen from the side, radians; metres to its camera; metres across its panel."""
CENTRE = (0.0, -0.005, 0.02)

Picture = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--start", type=float, default=9.0, help="seconds")
    parser.add_argument("--seconds", type=float, default=3.2)
    args = parser.parse_args()
    run = read_run(args.run)
    times = args.start + np.arange(0, args.seconds, 1 / RATE)
    rows = np.unique(np.abs(run.track.time[:, None] - times).argmin(0))
    surface = open_surface(load_head_model(), run.track, "template")
    pictures = [Image.fromarray(picture) for picture in panels(run, surface, rows)]
    options = {"duration": round(1000 / RATE), "loop": 0, "quality": QUALITY, "method": 6}
    pictures[0].save(OUT, save_all=True, append_images=pictures[1:], **options)
    print(f"{OUT}: {len(pictures)} pictures, {OUT.stat().st_size / 1e6:.2f} MB")


def panels(run: Run, surface: Surface, rows: NDArray[np.int64]) -> list[Picture]:
    """Frame, overlay and side of each of ``rows``, beside each other; the window around the face keeps still."""
    track = run.track
    points = track.landmarks[rows]
    left, top = (points.max((0, 1)) + points.min((0, 1))) / 2
    side = ROOM * float((points.max(1) - points.min(1)).max(1).mean())
    left, top = left - side / 2, top - side / 2
    window = np.array([[SIZE / side, 0, -left * SIZE / side], [0, SIZE / side, -top * SIZE / side], [0, 0, 1]])

    focal = SIZE * AWAY / WIDTH
    lens = np.array([[focal, 0, SIZE / 2], [0, focal, SIZE / 2], [0, 0, 1]])
    c, s = np.cos(YAW), np.sin(YAW)
    turn = np.diag([1.0, -1, -1]) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    place = np.array([0, 0, AWAY]) - turn @ np.array(CENTRE)

    t = surface.template
    assert t is not None
    look = {
        "occlusion": ambient_occlusion(surface.mesh.vertices, surface.mesh.faces),
        "albedo": t.colours,
        "prepare": t.cut_at_neck,
    }
    over = OverlayRenderer(t.head_faces, window @ track.K, (SIZE, SIZE), "shaded", 0.95, **look)
    beside = OverlayRenderer(t.head_faces, lens, (SIZE, SIZE), "mesh", **look)
    images, out = pictures_of(run, rows), []
    for row in rows.tolist():
        vertices = surface.vertices_of(row)
        frame = np.asarray(Image.fromarray(images[row]).resize((SIZE, SIZE), box=(left, top, left + side, top + side)))
        pair = over.draw(frame, vertices, track.R[row], track.t[row]), beside.draw(frame, vertices, turn, place)
        out.append(np.hstack([frame, *pair]))
    return out


def pictures_of(run: Run, rows: NDArray[np.int64]) -> dict[int, Picture]:
    wanted, found = set(rows.tolist()), {}
    for row, frame in enumerate(open_clip(run)):
        if row in wanted:
            found[row] = frame.image
        if len(found) == len(wanted):
            break
    return found


if __name__ == "__main__":
    main()
