"""The picture sheet of the geometry networks' card: what they see in clips, next to the heads tracked in them.

    python benchmarks/sheets.py RUN [RUN ...] --out FILE.jpg [--frames] [--count 4]

Takes finished runs whose clips are still there, and ``--count`` tracked frames spread over each. A row is one frame:
with ``--frames`` the frame itself, then the normals of E_n turned by the tracked pose and those of the tracked mesh
(both x right, y up, z towards the viewer), the points of E_p (red, green, blue: x, y, z in head space), and the mesh.
What the networks do not take for the face fades out. Without ``--frames`` no pixel of a clip is in the sheet.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.progress import track as progress

from nphm_track._runtime import prepare_torch
from nphm_track.errors import InputError, NphmTrackError
from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.faces.roi import crop_rois, roi_from_landmarks
from nphm_track.geometry.networks import GeometryNet
from nphm_track.geometry.predict import GeometryPredictor
from nphm_track.rendering.occlusion import ambient_occlusion
from nphm_track.rendering.overlay import OverlayRenderer
from nphm_track.rendering.shading import backdrop
from nphm_track.tracking.records import Status, Track
from nphm_track.tracking.render import _surface_of
from nphm_track.tracking.run_folder import Run, read_run
from nphm_track.video.reader import open_video

TILE, STRIP, GAP = 160, 16, 6
"""Pixels: side of a picture, height of the line with a clip's name, space beside a clip."""
MARGIN, SURE = 1.4, 0.5
"""Side of the crop in sides of the landmarks' box; confidence from which on a map is drawn in full."""
VIEWER = np.array([1.0, -1.0, -1.0])
"""From the camera's axes to those that normals are coloured in."""
Picture = NDArray[np.uint8]
Array = NDArray[np.floating]


def spread(track: Track, count: int) -> list[int]:
    """``count`` rows spread over those where the face was seen, both ends left out. Raises InputError for none."""
    seen = np.flatnonzero((track.status == Status.TRACKED) & np.isfinite(track.landmarks).all((1, 2)))
    if not len(seen) or count < 1:
        raise InputError("no tracked frame to show")
    return np.unique(seen[np.linspace(0, len(seen) - 1, count + 2).round().astype(int)[1:-1]]).tolist()


def images(run: Run, rows: list[int]) -> list[Picture]:
    """The frames of ``rows``, which ascend."""
    part = {name: run.info.options[name] for name in ("start", "end", "every")}
    with open_video(run.info.input.path, **part, backend=run.info.options["reader"]) as source:
        return [frame.image for row, frame in zip(range(rows[-1] + 1), source, strict=False) if row in rows]


def in_square(maps: Array, roi: Array, square: Array) -> Array:
    """A map [n, n, C] of a turned roi [5] as [TILE, TILE, C] in an upright square [5], 0 outside of the roi."""
    pixels = np.stack(np.meshgrid(np.arange(TILE) + 0.5, np.arange(TILE) + 0.5), -1) / TILE - 0.5
    offset = square[:2] + pixels * square[2:4] - roi[:2]
    cos, sin = np.cos(roi[4]), np.sin(roi[4])
    grid = 2 * np.stack([offset @ [cos, sin], offset @ [-sin, cos]], -1) / roi[2:4]
    source = torch.from_numpy(maps.astype(np.float64)).permute(2, 0, 1)[None]
    return F.grid_sample(source, torch.from_numpy(grid)[None], align_corners=False)[0].permute(1, 2, 0).numpy()


def faded(colours: Array, confidence: Array) -> Picture:
    """Colours [TILE, TILE, 3] in 0..1 over the background, by confidence [TILE, TILE, 1]."""
    below = backdrop((TILE, TILE)) / 255
    return (255 * (below + (confidence / SURE).clip(0, 1) * (colours.clip(0, 1) - below))).round().astype(np.uint8)


def look(predictor: GeometryPredictor, image: Picture, track: Track, row: int) -> tuple[Array, dict[str, Picture]]:
    """The square [5] around the face, and in it the frame and what the networks see."""
    face = predictor.landmarker.observe(image, roi_from_landmarks(track.landmarks[row])[None])[0]
    low, high = face.box[:2], face.box[2:]
    side = MARGIN * (high - low).max()
    square = np.array([*(low + high) / 2, side, side, 0.0])
    maps = predictor.maps([image], [face])
    sure = torch.stack([maps.normal_confidence, maps.point_confidence], -1)
    stacked = torch.cat([maps.normals, maps.points, sure], -1)[0].cpu().numpy()
    normals, points, sure_n, sure_p = np.split(in_square(stacked, face.next_roi.astype(float), square), [3, 6, 7], -1)
    normals = normals @ track.R[row].T * VIEWER / np.linalg.norm(normals, axis=-1, keepdims=True).clip(1e-6)
    return square, {
        "frame": (255 * crop_rois([image], square[None], TILE)[0].permute(1, 2, 0).numpy()).round().astype(np.uint8),
        "E_n": faded(normals / 2 + 0.5, sure_n),
        "E_p": faded((points - predictor.mean.min(0)) / np.ptp(predictor.mean, 0), sure_p),
    }


def block(predictor: GeometryPredictor, run: Run, rows: list[int], frames: bool) -> Picture:
    """A line of pictures for each of ``rows`` under the clip's name."""
    track, (surface, vertices_of), lines = run.track, _surface_of(run), []
    occlusion = ambient_occlusion(surface.vertices, surface.faces)
    for row, image in zip(rows, images(run, rows), strict=True):
        square, tiles = look(predictor, image, track, row)
        K, vertices = track.K.copy(), vertices_of(row)
        K[:2, 2] -= square[:2] - square[2:4] / 2
        K[:2] *= TILE / square[2]
        for name, style in (("mesh normals", "normals"), ("mesh", "mesh")):
            painter = OverlayRenderer(surface.faces, K, (TILE, TILE), style, 1.0, occlusion=occlusion)
            tiles[name] = painter.draw(backdrop((TILE, TILE)), vertices, track.R[row], track.t[row])
        names = ["frame"] * frames + ["E_n", "mesh normals", "E_p", "mesh"]
        lines.append(np.hstack([tiles[name] for name in names]))
    picture = Image.fromarray(np.pad(np.vstack(lines), ((STRIP, 0), (0, GAP), (0, 0))))
    pen = ImageDraw.Draw(picture)
    pen.text((4, 2), Path(run.info.input.path).stem, fill=(230, 230, 230))
    for k, name in enumerate(names):
        pen.text((k * TILE + 4, STRIP + 2), name, fill=(200, 205, 215), stroke_fill=0, stroke_width=1)
    return np.asarray(picture)


def arrange(blocks: list[Picture]) -> Picture:
    """Two blocks side by side, as many pairs below each other as it takes; shorter ones are filled up."""
    height = max(len(b) for b in blocks)
    same = [np.pad(b, ((0, height - len(b)), (0, 0), (0, 0))) for b in blocks]
    same += [np.zeros_like(same[0])] * (len(same) % 2)
    return np.vstack([np.hstack(same[k : k + 2]) for k in range(0, len(same), 2)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="finished run folder")
    parser.add_argument("--out", type=Path, required=True, help="JPEG to write")
    parser.add_argument("--frames", action="store_true", help="show the frames too")
    parser.add_argument("--count", type=int, default=4, help="frames of each run")
    args = parser.parse_args()
    prepare_torch()
    predictor = GeometryPredictor(FaceLandmarker.from_pretrained(), GeometryNet.from_pretrained("geometry"), True)
    try:
        runs = [read_run(folder) for folder in args.runs]
        blocks = [block(predictor, r, spread(r.track, args.count), args.frames) for r in progress(runs, "runs")]
    except NphmTrackError as error:
        raise SystemExit(f"error: {error}") from None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_name("partial_" + args.out.name)
    Image.fromarray(arrange(blocks)).save(partial, quality=85, optimize=True)
    os.replace(partial, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
