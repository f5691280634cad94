"""Picture sheets of model cards: what a head model can do, and what the geometry networks see in runs.

Without --run: eight random identities from the front and from the side, one of them through 16 expressions, and steps
from one identity to another. With --run: rows of tracked frames; the normals of E_n turned by the tracked pose and the
mesh's (x right, y up, z towards the viewer), the points of E_p (red, green, blue: x, y, z in head space),
and the mesh; what the networks do not take for the face fades out. Pixels of a clip are shown with --frames only.

With --truth: a held-out head of ICT-FaceKit, neutral and in 16 expressions, above the rig of the head model's code for
it, with the network's own deformation where that is the better witness.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.harness import Out, Report
from nphm_track._runtime import prepare_torch
from nphm_track.conventions import MODEL_UNIT
from nphm_track.errors import InputError
from nphm_track.faces.landmarker import FaceLandmarker
from nphm_track.faces.roi import crop_rois, roi_from_landmarks
from nphm_track.geometry.networks import GeometryNet
from nphm_track.geometry.predict import GeometryPredictor
from nphm_track.heads.carry import MeshCarrier
from nphm_track.heads.correctives import CorrectedFrames
from nphm_track.heads.editing import expression_code, interpolate, random_identities
from nphm_track.heads.loading import DEFAULT, load_head_model
from nphm_track.heads.mesh import extract_canonical
from nphm_track.heads.rig import Rig
from nphm_track.heads.template import Template, load_template
from nphm_track.heads.wrap import wrap
from nphm_track.rendering.occlusion import ambient_occlusion
from nphm_track.rendering.overlay import OverlayRenderer
from nphm_track.rendering.shading import backdrop
from nphm_track.tracking.clip import open_clip
from nphm_track.tracking.records import Status, Track
from nphm_track.tracking.run_folder import Run, read_run
from nphm_track.training.ict import sample_identity

EXPRESSIONS = (
    "jawOpen", "mouthSmile", "mouthFrown", "mouthPucker", "mouthFunnel", "mouthStretch", "mouthUpperUp",
    "mouthLowerDown", "mouthLeft", "jawRight", "cheekPuff", "noseSneer", "browInnerUp", "browDown", "eyeBlink",
    "eyeWide",
)  # fmt: skip
COLUMNS, TILE, SMALL = 8, 200, 160
ABREAST, TRUE_HEAD = 6, 900_602
"""Tiles in a row of the sheet with a true head, and the seed of its shape."""
PIVOT = np.array([0.0, -0.01, -0.045])
"""Metres, head space: what the views turn about, the middle of the head."""
MARGIN, SURE = 1.4, 0.5
"""Side of a crop in sides of the landmarks' box; confidence from which on a map is drawn in full."""
VIEWER = np.array([1.0, -1.0, -1.0])
"""From the camera's axes to those that normals are coloured in."""
Picture = NDArray[np.uint8]
Array = NDArray[np.floating]


def run(
    out: Out, head_model: str = DEFAULT, seed: int = 0,
    runs: Annotated[list[Path], typer.Option("--run", help="A finished run whose clip is still there.")] = [],  # noqa: B006
    frames: Annotated[bool, typer.Option("--frames", help="Show the frames of the runs too.")] = False,
    count: Annotated[int, typer.Option(help="Frames of each run.")] = 4,
    truth: Annotated[bool, typer.Option("--truth", help="A known head beside the model's.")] = False,
) -> Report:  # fmt: skip
    """Writes ``sheet.jpg``; with --truth, ``truth.webp``."""
    prepare_torch()
    out.mkdir(parents=True, exist_ok=True)
    if truth:
        Image.fromarray(truth_sheet(head_model)).save(out / "truth.webp", quality=70, method=6)
        size = (out / "truth.webp").stat().st_size
        return Report({"bytes": size}, [f"{out / 'truth.webp'}: {size / 1000:.0f} kB"])
    sheet = geometry_sheet(runs, frames, count) if runs else head_sheet(head_model, seed)
    Image.fromarray(sheet).save(out / "sheet.jpg", quality=85, optimize=True)
    size = (out / "sheet.jpg").stat().st_size
    return Report({"bytes": size}, [f"{out / 'sheet.jpg'}: {sheet.shape[1]}x{sheet.shape[0]}, {size / 1000:.0f} kB"])


def head_sheet(name: str, seed: int) -> Picture:
    model = load_head_model(name)
    codes = random_identities(model, COLUMNS, seed=seed)
    meshes = [extract_canonical(model, z_id) for z_id in codes]
    tiles = [draw(m.vertices, m.faces, yaw) for yaw in (0.0, 45.0) for m in meshes]
    carry = MeshCarrier(model, meshes[0], codes[0])
    for expression in EXPRESSIONS:
        posed = carry(expression_code(model, {expression: 1.0})).posed.points * MODEL_UNIT
        tiles.append(draw(posed.cpu().numpy(), meshes[0].faces, caption=expression))
    for z_id in interpolate(codes[1], codes[2], COLUMNS):
        mesh = extract_canonical(model, z_id)
        tiles.append(draw(mesh.vertices, mesh.faces, 25.0))
    return np.vstack([np.hstack(tiles[k : k + COLUMNS]) for k in range(0, len(tiles), COLUMNS)])


def truth_sheet(name: str) -> Picture:
    """Rows in pairs: the true head, and below it the model's."""
    model, template = load_head_model(name), load_template()
    w = sample_identity(np.random.default_rng(TRUE_HEAD), 1)[0].astype(np.float32)
    z_id = (model.identity_basis[:, : len(w)] @ torch.from_numpy(w)).detach()
    head = wrap(template, model, z_id)
    true = Rig(template, template.person(w), template.expression, head.eyes)
    own = Rig.of(template, head)
    codes = torch.stack([expression_code(model, {e: 1.0} if e else {}) for e in ("", *EXPRESSIONS)]).detach()
    weights = own.weights(model, codes)
    correct = CorrectedFrames(model, own, z_id, codes, weights)
    correct.learn(np.arange(len(codes)))
    beside = correct(np.arange(len(codes)))

    rows: list[list[Picture]] = [[], []]
    for k, expression in enumerate(("", *EXPRESSIONS)):
        exact = [n.partition("_")[0] == expression for n in template.expression_names]
        heads = [true.vertices(np.array(exact, np.float32)), own.vertices(weights[k])]
        heads[1][: template.skin_size] += beside[k]
        for row, vertices in zip(rows, heads, strict=True):
            caption = (expression or "neutral") if row is rows[0] else ""
            row.append(draw(vertices, template.head_faces, 0.0, caption, template))
            if not expression:
                row.append(draw(vertices, template.head_faces, 45.0, "", template))
    lines = [np.hstack(row[k : k + ABREAST]) for k in range(0, len(rows[0]), ABREAST) for row in rows]
    return np.vstack(lines)


def draw(
    vertices: Array, faces: NDArray[np.int32], yaw: float = 0.0, caption: str = "", template: Template | None = None
) -> Picture:
    """A head [TILE, TILE, 3] from a metre away, turned by ``yaw`` degrees to its own left; a template's
    is nearer and in its colours.
    """
    c, s = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    R = np.diag([1.0, -1.0, -1.0]) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    zoom = 3.4 if template is None else 4.4
    K = np.array([[zoom * TILE, 0, TILE / 2], [0, zoom * TILE, TILE / 2], [0, 0, 1]])
    painter = OverlayRenderer(faces, K, (TILE, TILE), "mesh", 1.0)
    if template is not None:
        painter.albedo, painter.prepare = template.colours, template.cut_at_neck
        painter.occlusion = ambient_occlusion(vertices, faces)
    picture = painter.draw(
        backdrop((TILE, TILE)), np.asarray(vertices, np.float32), R, np.array([0, 0.02, 1]) - R @ PIVOT
    )
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text((6, TILE - 15), caption, fill=(190, 195, 205))
    return np.asarray(image)


def geometry_sheet(paths: list[Path], frames: bool, count: int) -> Picture:
    predictor = GeometryPredictor(FaceLandmarker.from_pretrained(), GeometryNet.from_pretrained("geometry"), True)
    lines = []
    for found in map(read_run, paths):
        rows = spread(found.track, count)
        for row, image in zip(rows, images(found, rows), strict=True):
            lines.append(np.hstack(list(tiles(predictor, found, row, image).values())[not frames :]))
    half = -(-len(lines) // 2)
    lines += [np.zeros_like(lines[0])] * (2 * half - len(lines))
    return np.hstack([np.vstack(lines[:half]), np.vstack(lines[half:])])


def spread(track: Track, count: int) -> list[int]:
    """Rows spread over those where the face was seen, both ends left out. Raises InputError for none."""
    seen = np.flatnonzero((track.status == Status.TRACKED) & np.isfinite(track.landmarks).all((1, 2)))
    if not len(seen):
        raise InputError("no tracked frame to show")
    return np.unique(seen[np.linspace(0, len(seen) - 1, count + 2).round().astype(int)[1:-1]]).tolist()


def images(found: Run, rows: list[int]) -> list[Picture]:
    with open_clip(found) as source:
        return [frame.image for row, frame in zip(range(rows[-1] + 1), source, strict=False) if row in rows]


def tiles(predictor: GeometryPredictor, found: Run, row: int, image: Picture) -> dict[str, Picture]:
    """A square around the face: the frame, and what networks and tracked mesh say of it."""
    track, face = (
        found.track,
        predictor.landmarker.observe(image, roi_from_landmarks(found.track.landmarks[row])[None])[0],
    )
    low, high = face.box[:2], face.box[2:]
    side = MARGIN * (high - low).max()
    square = np.array([*(low + high) / 2, side, side, 0.0])
    maps = predictor.maps([image], face.landmarks[None])
    sure = torch.stack([maps.normal_confidence, maps.point_confidence], -1)
    stacked = torch.cat([maps.normals, maps.points, sure], -1)[0].cpu().numpy()
    normals, points, sure_n, sure_p = np.split(in_square(stacked, face.next_roi.astype(float), square), [3, 6, 7], -1)
    normals = normals @ track.R[row].T * VIEWER / np.linalg.norm(normals, axis=-1, keepdims=True).clip(1e-6)
    mean = predictor.mean
    K, (vertices, faces) = track.K.copy(), found.mesh(row)
    K[:2, 2] -= square[:2] - square[2:4] / 2
    K[:2] *= SMALL / square[2]

    def painted(style: str) -> Picture:
        painter = OverlayRenderer(faces, K, (SMALL, SMALL), style, 1.0)
        return painter.draw(backdrop((SMALL, SMALL)), vertices, track.R[row], track.t[row])

    return {
        "frame": (255 * crop_rois([image], square[None], SMALL)[0].permute(1, 2, 0).numpy()).round().astype(np.uint8),
        "E_n": faded(normals / 2 + 0.5, sure_n),
        "mesh normals": painted("normals"),
        "E_p": faded((points - mean.min(0)) / np.ptp(mean, 0), sure_p),
        "mesh": painted("mesh"),
    }


def in_square(maps: Array, roi: Array, square: Array) -> Array:
    """A map [n, n, C] of a turned roi [5] as [SMALL, SMALL, C] in an upright square [5], 0 outside of the roi."""
    pixels = np.stack(np.meshgrid(np.arange(SMALL) + 0.5, np.arange(SMALL) + 0.5), -1) / SMALL - 0.5
    offset = square[:2] + pixels * square[2:4] - roi[:2]
    cos, sin = np.cos(roi[4]), np.sin(roi[4])
    grid = 2 * np.stack([offset @ [cos, sin], offset @ [-sin, cos]], -1) / roi[2:4]
    source = torch.from_numpy(maps.astype(np.float64)).permute(2, 0, 1)[None]
    return F.grid_sample(source, torch.from_numpy(grid)[None], align_corners=False)[0].permute(1, 2, 0).numpy()


def faded(colours: Array, confidence: Array) -> Picture:
    """Colours [SMALL, SMALL, 3] in 0..1 over the background, by confidence [SMALL, SMALL, 1]."""
    below = backdrop((SMALL, SMALL)) / 255
    return (255 * (below + (confidence / SURE).clip(0, 1) * (colours.clip(0, 1) - below))).round().astype(np.uint8)
