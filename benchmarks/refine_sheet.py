"""Blinks and mouths before and after ``--refine``: the picture sheet of docs/refine.md.

    python benchmarks/refine_sheet.py --eyes BEFORE AFTER --mouth BEFORE AFTER [...] --out FILE.jpg [--frames]

BEFORE and AFTER are two runs of one clip. Each pair gives a block: frames from the least to the most open eyes or
mouth, as the landmarks saw them, in columns; the feed-forward head and the refined one, with the observed landmarks of
lids and lips over both, in rows. Without ``--frames`` no pixel of a clip is in the sheet.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from sheets import STRIP, TILE, Picture, images

from nphm_track._runtime import prepare_torch
from nphm_track.errors import NphmTrackError
from nphm_track.faces.roi import crop_rois
from nphm_track.heads.landmarks import RIMS
from nphm_track.rendering.occlusion import ambient_occlusion
from nphm_track.rendering.overlay import OverlayRenderer
from nphm_track.rendering.shading import backdrop
from nphm_track.tracking.records import Status
from nphm_track.tracking.render import _surface_of
from nphm_track.tracking.run_folder import Run, read_run

LIDS = (
    (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7, 33),
    (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249, 263),
)
LIPS = (
    (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146, 61),
    (78, *RIMS[0], 308, *reversed(RIMS[1]), 78),
)
"""Closed lines through the 478 landmarks."""
OPENING = {"eyes": ((159, 145), (33, 133)), "mouth": ((13, 14), (33, 263))}
"""Two points that part, over the distance of two that do not."""
LINES = {"eyes": LIDS, "mouth": LIPS}
WIDE = {"eyes": 1.25, "mouth": 2.0}
"""Side of a tile in sides of the lines' box."""


def choose(run: Run, region: str, count: int) -> list[int]:
    """Rows of ``count`` frames, from the least to the most open."""
    track = run.track
    seen = np.flatnonzero((track.status == Status.TRACKED) & np.isfinite(track.landmarks).all((1, 2)))
    (a, b), (c, d) = OPENING[region]
    points = track.landmarks[seen][..., :2]
    open_ = np.linalg.norm(points[:, a] - points[:, b], axis=-1) / np.linalg.norm(points[:, c] - points[:, d], axis=-1)
    order = seen[np.argsort(open_)]
    return order[np.linspace(0, len(order) - 1, count).round().astype(int)].tolist()


def square_around(points: NDArray[np.floating], region: str) -> NDArray[np.floating]:
    """Upright square [5] (centre, sides, angle 0) around the region's lines, px."""
    used = points[[i for line in LINES[region] for i in line]]
    low, high = used.min(0), used.max(0)
    side = WIDE[region] * (high - low).max()
    return np.array([*(low + high) / 2, side, side, 0.0])


def with_lines(picture: Picture, points: NDArray[np.floating], square: NDArray[np.floating], region: str) -> Picture:
    """The picture with the observed landmarks of the region over it."""
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    at = (points - square[:2]) / square[2] * TILE + TILE / 2
    for line in LINES[region]:
        pen.line([tuple(at[i]) for i in line], fill=(230, 90, 60), width=1)
    return np.asarray(image)


def block(before: Run, after: Run, region: str, count: int, frames: bool) -> Picture:
    rows = choose(after, region, count)
    points = after.track.landmarks[rows][..., :2].astype(float)
    squares = [square_around(p, region) for p in points]
    lines, names = [], []
    if frames:
        found = dict(zip(sorted(rows), images(after, sorted(rows)), strict=True))
        tiles = [crop_rois([found[row]], square[None], TILE)[0] for row, square in zip(rows, squares, strict=True)]
        lines.append(np.hstack([(255 * t.permute(1, 2, 0).numpy()).round().astype(np.uint8) for t in tiles]))
        names.append("frame")
    for name, run in (("feed-forward", before), ("refined", after)):
        track, (surface, vertices_of) = run.track, _surface_of(run)
        occlusion = ambient_occlusion(surface.vertices, surface.faces)
        tiles = []
        for row, square, seen in zip(rows, squares, points, strict=True):
            K = track.K.copy()
            K[:2, 2] -= square[:2] - square[2:4] / 2
            K[:2] *= TILE / square[2]
            painter = OverlayRenderer(surface.faces, K, (TILE, TILE), "mesh", 1.0, occlusion=occlusion)
            drawn = painter.draw(backdrop((TILE, TILE)), vertices_of(row), track.R[row], track.t[row])
            tiles.append(with_lines(drawn, seen, square, region))
        lines.append(np.hstack(tiles))
        names.append(name)
    picture = Image.fromarray(np.pad(np.vstack(lines), ((STRIP, 0), (0, 0), (0, 0))))
    pen = ImageDraw.Draw(picture)
    pen.text((4, 2), f"{Path(after.info.input.path).stem}: {region}", fill=(230, 230, 230))
    for k, name in enumerate(names):
        pen.text((4, STRIP + k * TILE + 2), name, fill=(20, 24, 30))
    return np.asarray(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for region in OPENING:
        parser.add_argument(f"--{region}", type=Path, nargs=2, action="append", default=[], metavar=("BEFORE", "AFTER"))
    parser.add_argument("--out", type=Path, required=True, help="JPEG to write")
    parser.add_argument("--frames", action="store_true", help="show the frames too")
    parser.add_argument("--count", type=int, default=6)
    args = parser.parse_args()
    prepare_torch()
    try:
        blocks = [
            block(read_run(before), read_run(after), region, args.count, args.frames)
            for region in OPENING
            for before, after in getattr(args, region)
        ]
    except NphmTrackError as error:
        raise SystemExit(f"error: {error}") from None
    Image.fromarray(np.vstack(blocks)).save(args.out, quality=85, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
