"""From an image to BlazeFace's input, and from its output to boxes: letterbox, tiles, anchors, weighted suppression."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

INPUT_SIZE = 128
MIN_SCORE = 0.5
MIN_OVERLAP = 0.3
MIN_CONTAINED = 0.7
"""Two boxes are one face from this share of the smaller on: tiles see a face cut in half, which IoU alone keeps."""


@dataclass(frozen=True)
class FaceDetection:
    """A detected face, in pixels of the original frame (pixel centres at 0.5).

    Attributes:
        box: [4] x0, y0, x1, y1, from brow to chin.
        score: 0..1.
        keypoints: [6, 2] right eye, left eye, nose tip, mouth, right ear, left ear (the face's own sides).
    """

    box: np.ndarray
    score: float
    keypoints: np.ndarray


def anchors() -> np.ndarray:
    """Anchor centres [896, 2] in 0..1: two a cell of the 16 x 16 map, then six a cell of the 8 x 8 map."""
    rows = []
    for cells, per_cell in ((16, 2), (8, 6)):
        centres = (np.arange(cells) + 0.5) / cells
        y, x = np.meshgrid(centres, centres, indexing="ij")
        rows.append(np.repeat(np.stack([x.ravel(), y.ravel()], 1), per_cell, 0))
    return np.concatenate(rows).astype(np.float32)


def tiles(width: int, height: int) -> list[tuple[int, int, int]]:
    """Squares (x0, y0, side) overlapping by at least half, at the short side's size and at half of it."""
    out: list[tuple[int, int, int]] = []
    short = min(width, height)
    for side in (short, short // 2):
        if side < INPUT_SIZE // 2:
            break
        columns = np.linspace(0, width - side, -(-2 * (width - side) // side) + 1).astype(int)
        rows = np.linspace(0, height - side, -(-2 * (height - side) // side) + 1).astype(int)
        out += [(int(x), int(y), side) for y in np.unique(rows) for x in np.unique(columns)]
    return out


def letterbox(image: np.ndarray, device: torch.device | str) -> tuple[Tensor, np.ndarray]:
    """The image inside a black square, [1, 3, 128, 128] in -1..1, and its place (x0, y0, side) in image pixels."""
    height, width = image.shape[:2]
    side = max(height, width)
    h, w = (max(1, round(INPUT_SIZE * n / side)) for n in (height, width))
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).to(device).permute(2, 0, 1)[None]
    small = F.interpolate(pixels, size=(h, w), mode="bilinear", antialias=True).float() / 127.5 - 1
    left, top = (INPUT_SIZE - w) // 2, (INPUT_SIZE - h) // 2
    square = F.pad(small, (left, INPUT_SIZE - w - left, top, INPUT_SIZE - h - top), value=-1.0)
    scale = side / INPUT_SIZE
    return square, np.array([-left * scale, -top * scale, side], np.float32)


def decode(boxes: np.ndarray, logits: np.ndarray, place: np.ndarray) -> list[FaceDetection]:
    """Detections above the score threshold; raw ``boxes`` [896, 16], ``logits`` [896], ``place`` (x0, y0, side)."""
    scores = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -100, 100)))
    keep = np.flatnonzero(scores >= MIN_SCORE)
    centres = anchors()[keep]
    raw = boxes[keep].reshape(-1, 8, 2) / INPUT_SIZE
    half = raw[:, 1] / 2
    points = (raw + centres[:, None]) * place[2] + place[:2]
    corners = np.concatenate([points[:, 0] - half * place[2], points[:, 0] + half * place[2]], 1)
    return [
        FaceDetection(corners[i].astype(np.float32), float(scores[k]), points[i, 2:].astype(np.float32))
        for i, k in enumerate(keep)
    ]


def same_face(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each of ``others`` [N, 4] overlaps ``box`` [4] enough to show the same face."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    area = np.prod(box[2:] - box[:2])
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    iou = shared / np.maximum(area + areas - shared, 1e-6)
    return (iou > MIN_OVERLAP) | (shared > MIN_CONTAINED * np.minimum(area, areas))


def suppress(detections: list[FaceDetection]) -> list[FaceDetection]:
    """One detection a face: the score-weighted mean of those that overlap, best score first."""
    left = sorted(detections, key=lambda d: -d.score)
    out = []
    while left:
        together = same_face(left[0].box, np.stack([d.box for d in left]))
        together[0] = True
        group = [d for d, same in zip(left, together, strict=True) if same]
        weights = [d.score for d in group]
        box = np.average([d.box for d in group], axis=0, weights=weights).astype(np.float32)
        points = np.average([d.keypoints for d in group], axis=0, weights=weights).astype(np.float32)
        out.append(FaceDetection(box, left[0].score, points))
        left = [d for d, same in zip(left, together, strict=True) if not same]
    return out


def turned_around(detection: FaceDetection, width: int, height: int) -> FaceDetection:
    """Where a face of the picture turned by 180 degrees is in the picture itself."""
    size = np.array([width, height], np.float32)
    x0, y0, x1, y1 = detection.box
    box = np.array([width - x1, height - y1, width - x0, height - y0], np.float32)
    return FaceDetection(box, detection.score, size - detection.keypoints)


def either_way_up(upright: list[FaceDetection], hanging: list[FaceDetection]) -> list[FaceDetection]:
    """Of faces found both upright and on their head, the better one of each two; best score first."""
    kept: list[FaceDetection] = []
    for detection in sorted(upright + hanging, key=lambda d: -d.score):
        if not same_face(detection.box, np.array([d.box for d in kept]).reshape(-1, 4)).any():
            kept.append(detection)
    return kept
