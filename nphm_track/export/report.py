"""``report.html``: one page that shows a run offline, in any browser, with everything it needs inside.

Overlay player, the head in 3-D that performs along with it, a time line of status, errors and blendshapes (click to
seek), the worst frames, and the facts of camera and models. A run without overlay or meshes gets a page without them.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from nphm_track.cameras.intrinsics import fov_from_focal
from nphm_track.conventions import ARKIT_BLENDSHAPES
from nphm_track.errors import InputError
from nphm_track.export.blendshapes import arkit_weights
from nphm_track.export.frames import present_rows
from nphm_track.export.manifest import GENERATOR
from nphm_track.export.morphs import fit_morphs
from nphm_track.export.page import asset
from nphm_track.export.rig import rig_and_weights
from nphm_track.files.names import plain
from nphm_track.files.writing import check_free, placing
from nphm_track.heads.rig import EYE_TURN, SIDES, Rig
from nphm_track.heads.template import load_template
from nphm_track.tracking.clip import check_not_clip
from nphm_track.tracking.progress import NullProgress
from nphm_track.tracking.records import Status, Track, lost_words, replacing
from nphm_track.tracking.run_folder import CANONICAL_PLY, REPORT_HTML, Run
from nphm_track.tracking.surface import has_template
from nphm_track.tracking.transforms import OPENGL_FROM_OPENCV
from nphm_track.video.reader import open_video

MAX_VIDEO_BYTES = 40_000_000
"""A larger overlay is linked to instead of embedded."""
WORST_FRAMES, WORST_SPACING_S = 10, 0.4
"""Frames shown as the worst, and seconds between them at least."""
THUMBNAIL = 320, 320
LIVELY = 6
"""Blendshapes drawn until the reader chooses others: those that move most."""
UNKNOWN = 255
SKIN = (204, 191, 179)
"""Its colour in the report."""
TARGETS = 12
"""Morph targets of a head that is no rig."""
STILL = 1e-4
"""Metres: a morph target leaves those vertices alone that it never moves further."""


def write_report(run: Run, output: str | Path | None = None, *, overwrite: bool = False) -> Path:
    """Write the report of a finished run atomically; returns its path.

    Args:
        run: a run that is done. Whoever writes into its own folder holds its lock (``writing_into``).
        output: default: ``report.html`` of the run.
        overwrite: replace a file called ``output``, unless that is the run's clip.

    Raises:
        InputError: the run cannot be read.
        OutputError: ``output`` is there and must stay.
    """
    path = Path(output) if output is not None else run.path / REPORT_HTML
    if output is not None:
        check_free(path, overwrite)
        check_not_clip(run, path)
    values = {
        "GENERATOR": GENERATOR,
        "TITLE": html.escape(plain(run.info.input.place.name)),
        "STYLE": asset("colours.css") + asset("report.css"),
        "DATA": json.dumps(_data(run, path.parent), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "SCRIPT": asset("report.js") + asset("viewer.js"),
    }
    page = re.sub(r"%([A-Z]+)%", lambda match: values[match[1]], asset("report.html"))
    with placing(path) if output is not None else replacing(path) as place:
        place.write_text(page, encoding="utf-8")
    return path


def _data(run: Run, folder: Path) -> dict[str, Any]:
    track = run.track
    shapes = arkit_weights(track)
    coded = np.where(np.isfinite(shapes), np.round(254 * np.clip(shapes, 0, 1)), UNKNOWN).astype(np.uint8)
    return {
        "summary": _summary(run),
        "start": float(track.time[0]),
        "frame": track.frame.tolist(),
        "time": _packed(track.time - track.time[0], "<f4"),
        "status": _packed(track.status, "u1"),
        **{
            name: _packed(getattr(track, name), "<f4")
            for name in ("confidence", "landmark_error_px", "normal_error_deg")
        },
        "shape_names": ARKIT_BLENDSHAPES,
        "blendshapes": _packed(coded, "u1"),
        "lively": _lively(shapes),
        "overlay": _overlay(run, folder),
        "mesh": _mesh(run),
        "worst": _worst(run),
        "facts": _facts(run),
    }


def _packed(values: ArrayLike, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode()


def _lively(shapes: NDArray[np.float32]) -> list[int]:
    """Columns that move most, none when nothing was measured."""
    known = shapes[np.isfinite(shapes).all(1)]
    if not len(known):
        return []
    spread = np.quantile(known, 0.95, axis=0) - np.quantile(known, 0.05, axis=0)
    return [int(i) for i in np.argsort(-spread, kind="stable")[:LIVELY]]


def _overlay(run: Run, folder: Path) -> dict[str, str] | None:
    path = run.overlay
    if not path.is_file():
        return None
    kind = "image" if run.info.input.kind == "image" else "video"
    if kind == "video" and path.stat().st_size > MAX_VIDEO_BYTES:
        inside = path.resolve().parent == folder.resolve()
        return {"kind": kind, "href": path.name if inside else path.resolve().as_uri()}
    return {"kind": kind, "base64": base64.b64encode(path.read_bytes()).decode()}


def _mesh(run: Run) -> dict[str, Any] | None:
    """The neutral head, its colours where it has parts, its motion and its rotations [T, 3, 3] to axes that are upright
    and towards the viewer.

    Morph target k moves ``counts[k]`` of the vertices ``moved``, one target's after the other's, by ``targets`` (int8)
    times ``weights[t, k]`` metres, NaN where the head is lost.
    """
    if not (run.path / CANONICAL_PLY).is_file():
        return None
    vertices, faces = run.canonical()
    track, rows = run.track, np.empty(0, np.int64)
    shapes, own = np.empty((0, *vertices.shape), np.float32), np.empty((0, 0), np.float32)
    with suppress(InputError):  # no meshes to learn the motion from, or another head model: the head keeps still
        rows = present_rows(run)
        shapes, own = _motion(run, rows)
    step = np.abs(shapes).max((1, 2), initial=1e-9) / 127
    weights = np.full((len(track), len(shapes)), np.nan, np.float32)
    if len(step):
        weights[rows] = own * step
    moves = np.linalg.norm(shapes, axis=2) * np.abs(own).max(0, initial=0)[:, None] > STILL
    targets = np.round(shapes / step[:, None, None])[moves]
    colours = np.empty((0, 3), np.uint8)
    if has_template(run):
        template = load_template()
        vertices, faces, colours = template.cut_at_neck(vertices), template.head_faces, template.painted(SKIN)
    return {
        "vertices": _packed(vertices, "<f4"),
        "faces": _packed(faces, "<u4"),
        "colours": _packed(colours, "u1"),
        "counts": moves.sum(1).tolist(),
        "moved": _packed(np.nonzero(moves)[1], "<u2" if len(vertices) < 1 << 16 else "<u4"),
        "targets": _packed(targets, "i1"),
        "weights": _packed(weights, "<f4"),
        "turns": _packed(OPENGL_FROM_OPENCV @ track.R, "<f4"),
    }


def _motion(run: Run, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Displacements [K, V, 3] from the neutral head at weight 1, metres, and weights [N, K] in ``rows``.

    Of a rig those that it goes by, with eyes that turn; else those found in the meshes. Raises InputError.
    """
    if not has_template(run):
        morphs = fit_morphs(run, rows, NullProgress(), TARGETS)
        return morphs.targets, morphs.weights - morphs.rest
    person, weights, gaze = rig_and_weights(run, rows)
    rig = person.rig
    shapes = np.stack([*rig.arkit_shapes().values(), *_eye_shapes(rig)])
    turns = EYE_TURN * np.nan_to_num(gaze[..., :2]).reshape(len(rows), 4)
    return shapes, np.concatenate([rig.arkit_weights(weights), turns], 1)


def _eye_shapes(rig: Rig) -> NDArray[np.float32]:
    """Displacements [4, V, 3] that turn the left eye to the left and up, then the right: of small turns, a radian."""
    out = np.zeros((4, *rig.neutral.shape), np.float32)
    for i, (eye, side) in enumerate(zip(rig.eyes, SIDES, strict=True)):
        own = rig.template.part(f"eye_{side}")
        for k, axis in enumerate(((0, 1, 0), (-1, 0, 0))):
            out[2 * i + k, own] = np.cross(axis, rig.neutral[own] - eye.centre)
    return out


def _worst(run: Run) -> list[dict[str, Any]]:
    """Tracked frames with the largest landmark error, none near another, with thumbnails of the overlay."""
    track = run.track
    error = np.where(track.status == Status.TRACKED, track.landmark_error_px, np.nan)
    order = [int(i) for i in np.argsort(-error) if np.isfinite(error[i])]
    chosen: list[int] = []
    for row in order:
        if len(chosen) < WORST_FRAMES and all(abs(track.time[row] - track.time[k]) >= WORST_SPACING_S for k in chosen):
            chosen.append(row)
    pictures = _thumbnails(run, set(chosen))
    return [{"row": row, "why": f"{error[row]:.1f} px off", "jpeg": pictures.get(row)} for row in chosen]


def _thumbnails(run: Run, rows: set[int]) -> dict[int, str]:
    """Small pictures of rows of the overlay, as base64 JPEG; none when there is no overlay to take them from."""
    pictures: dict[int, str] = {}
    if not rows or not run.overlay.is_file():
        return pictures
    try:
        with open_video(run.overlay) as source:
            for row, (_, picture) in enumerate(source.pictures()):
                if row in rows:
                    pictures[row] = _jpeg(source.develop(picture))
                if row >= max(rows):
                    break
    except InputError:
        pass  # a damaged overlay takes the thumbnails along, not the report
    return pictures


def _jpeg(image: NDArray[np.uint8]) -> str:
    small, file = Image.fromarray(image), io.BytesIO()
    small.thumbnail(THUMBNAIL)
    small.save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode()


def _summary(run: Run) -> str:
    quality = run.info.quality
    parts = f"{quality.get('tracked', 0)} tracked, {quality.get('filled', 0)} filled in, {lost_words(quality)}"
    line = f"{len(run.track)} frames: {parts}"
    if quality.get("landmark_error_px") is not None:
        percent = f"{quality['landmark_error_percent']:.2f} % of the distance between the outer eye corners"
        line += f"; landmark error {quality['landmark_error_px']:.2f} px ({percent})"
    return line


def _facts(run: Run) -> dict[str, list[tuple[str, str]]]:
    info, track = run.info, run.track
    width = int(track.image_size[0])
    clip = info.input
    seconds = sum(info.timings.values())
    return {
        "Input": [
            ("file", clip.path),
            ("SHA-256", clip.sha256),
            ("size", f"{clip.width} x {clip.height}, {clip.size / 1e6:.1f} MB"),
            ("frame rate", f"{clip.fps:.6g} per second" if clip.fps else "none"),
            ("duration", f"{clip.duration:.2f} s" if clip.duration else "unknown"),
        ],
        "Camera": [
            ("focal length", f"{track.K[0, 0]:.1f}, {track.K[1, 1]:.1f} px"),
            ("field of view", f"{fov_from_focal(float(track.K[0, 0]), width):.1f}° across"),
            ("principal point", f"{track.K[0, 2]:.1f}, {track.K[1, 2]:.1f} px"),
            ("distortion", ", ".join(f"{v:.4g}" for v in track.distortion) if track.distortion.any() else "none"),
            ("distance", _distance(track)),
        ],
        "Models and run": [
            *((name, digest[:16]) for name, digest in info.models.items()),
            ("version", info.package_version),
            ("made", f"{info.updated:%Y-%m-%d %H:%M} UTC"),
            *((stage, f"{spent:.1f} s") for stage, spent in info.timings.items()),
            *([("speed", f"{len(track) / seconds:.1f} frames/s")] if seconds else []),
        ],
    }


def _distance(track: Track) -> str:
    z = track.t[np.isfinite(track.t).all(1), 2]
    return f"{z.min():.2f} to {z.max():.2f} m" if len(z) else "no head"
