"""Regions of interest: rotated rectangles around a face, and the crops networks see through them.

A roi is float32 ``[5]``: centre x, centre y, width, height (pixels of the original frame, pixel centres at 0.5) and the
angle in radians by which the face is turned clockwise in the image. The rules are MediaPipe's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from nphm_track.conventions import EYE_CORNERS_478
from nphm_track.rendering.kernels import kernel

CROP_SIZE = 256
ROI_SCALE = 1.5
"""A roi is this much wider than the box of the face or of the landmarks."""


def _roi(box: np.ndarray, eye_right: np.ndarray, eye_left: np.ndarray) -> np.ndarray:
    """Square around ``box`` (xyxy), turned so that the line from the right to the left eye is horizontal."""
    side = ROI_SCALE * max(box[2] - box[0], box[3] - box[1])
    dx, dy = eye_left - eye_right
    return np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, side, side, np.arctan2(dy, dx)], np.float32)


def roi_from_detection(box: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """Roi of a detected face: ``box`` [4] xyxy, ``keypoints`` [6, 2] (right eye first, then left eye), px."""
    return _roi(box, keypoints[0], keypoints[1])


def roi_from_landmarks(landmarks: np.ndarray) -> np.ndarray:
    """Roi for the next frame from ``landmarks`` [478, 2 or 3], px."""
    points = np.asarray(landmarks)[:, :2]
    right, _, _, left = EYE_CORNERS_478
    return _roi(np.concatenate([points.min(0), points.max(0)]), points[right], points[left])


def scaled(rois: np.ndarray, scale: float) -> np.ndarray:
    """Rois [N, 5] about the same centres, sides times ``scale``."""
    return rois * np.array([1, 1, scale, scale, 1], np.float32)


def mirrored(rois: np.ndarray, widths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Rois [N, 5] where they lie in the mirror images of frames so wide."""
    return np.concatenate([np.asarray(widths, np.float32)[:, None] - rois[:, :1], rois[:, 1:4], -rois[:, 4:]], 1)


Array = TypeVar("Array", np.ndarray, Tensor)


def crop_points_to_frame(points: Array, rois: Array, size: int = CROP_SIZE) -> Array:
    """Points [N, P, 2 or 3] of crops (px of a ``size`` crop) in the original frame, z scaled like x; ``rois`` [N, 5].

    Arrays or tensors, like the twin :func:`frame_points_to_crop`.
    """
    xp: Any = torch if isinstance(points, Tensor) else np
    cos, sin = xp.cos(rois[:, 4:5]), xp.sin(rois[:, 4:5])
    x = (points[..., 0] / size - 0.5) * rois[:, 2:3]
    y = (points[..., 1] / size - 0.5) * rois[:, 3:4]
    depth: list[Any] = [points[..., 2] / size * rois[:, 2:3]] if points.shape[-1] == 3 else []
    return xp.stack([cos * x - sin * y + rois[:, 0:1], sin * x + cos * y + rois[:, 1:2], *depth], -1)


def frame_points_to_crop(points: Array, rois: Array, size: int = CROP_SIZE) -> Array:
    """Points [N, P, 2 or 3] of the frame in pixels of the crops ``rois`` [N, 5], z scaled like x."""
    xp: Any = torch if isinstance(points, Tensor) else np
    cos, sin = xp.cos(rois[:, 4:5]), xp.sin(rois[:, 4:5])
    x, y = points[..., 0] - rois[:, 0:1], points[..., 1] - rois[:, 1:2]
    u = (cos * x + sin * y) / rois[:, 2:3] + 0.5
    v = (cos * y - sin * x) / rois[:, 3:4] + 0.5
    depth: list[Any] = [points[..., 2] / rois[:, 2:3]] if points.shape[-1] == 3 else []
    return xp.stack([u, v, *depth], -1) * size


def frame_to_crop_matrix(rois: np.ndarray, size: int = CROP_SIZE) -> np.ndarray:
    """Affine maps [N, 3, 3] float64 from pixels of the frame to those of ``size`` crops."""
    cx, cy, width, height, angle = np.asarray(rois, np.float64).T
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.stack([cos, sin, -sin, cos], -1).reshape(-1, 2, 2)
    matrix = np.zeros((len(turn), 3, 3))
    matrix[:, :2, :2] = turn * (size / np.stack([width, height], -1))[..., None]
    matrix[:, :2, 2] = size / 2 - (matrix[:, :2, :2] @ np.stack([cx, cy], -1)[..., None])[..., 0]
    matrix[:, 2, 2] = 1
    return matrix


def crop_rois(
    images: Sequence[np.ndarray], rois: np.ndarray, size: int = CROP_SIZE, device: torch.device | str = "cpu"
) -> Tensor:
    """Upright square crops [N, 3, size, size] in 0..1, one for each pair of image (uint8 [H, W, 3]) and roi [5].

    Channels come last in memory. Bilinear; where a crop shrinks the image by 2 or more, pixels are averaged first;
    edges are replicated.
    """
    if len(images) != len(rois):
        raise ValueError(f"{len(images)} images but {len(rois)} rois")
    crops = np.empty((len(images), size, size, 3), np.float32)
    for i, (image, roi) in enumerate(zip(images, rois, strict=True)):
        crops[i] = _crop(image, np.asarray(roi, np.float64), size)
    return torch.from_numpy(crops).to(device).permute(0, 3, 1, 2)


def _crop(image: np.ndarray, roi: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    cx, cy, w, h, angle = roi
    cos, sin = np.cos(angle), np.sin(angle)
    shrink = max(1, int(max(w, h) / size))

    # Only the part of the frame under the roi is averaged; its corner sits on the averaging grid, so that the
    # averages of a still picture do not change when the roi moves.
    reach = np.array([abs(cos) * w + abs(sin) * h, abs(sin) * w + abs(cos) * h]) / 2 + 2 * shrink
    limit = np.array([width, height])
    low = np.clip(np.floor((roi[:2] - reach) / shrink) * shrink, 0, (limit - 1) // shrink * shrink).astype(int)
    high = np.clip(np.ceil(roi[:2] + reach), low + 1, limit).astype(int)
    part = np.require(image[low[1] : high[1], low[0] : high[0]], requirements=["C", "W"])
    if shrink > 1:
        part = _averaged(part, shrink)

    # Affine map from pixels of the crop to those of the part; both have the centre of the first one at 0.
    frame = np.array([[cos * w, -sin * h, cx - low[0]], [sin * w, cos * h, cy - low[1]]])
    frame[:, :2] /= size * shrink
    frame[:, 2] = frame[:, 2] / shrink - frame[:, :2].sum(1) * (size - 1) / 2 - 0.5
    return _sample(np.ascontiguousarray(part), frame, size)


@kernel()
def _averaged(image: np.ndarray, shrink: int) -> np.ndarray:
    """Means [H', W', 3] of blocks of ``shrink`` pixels a side; those at the edges may be smaller."""
    height, width = image.shape[:2]
    out = np.empty(((height + shrink - 1) // shrink, (width + shrink - 1) // shrink, 3), np.float32)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            bottom, right = min(height, (y + 1) * shrink), min(width, (x + 1) * shrink)
            share = np.float32(1.0 / ((bottom - y * shrink) * (right - x * shrink)))
            for c in range(3):
                total = np.float32(0.0)
                for v in range(y * shrink, bottom):
                    for u in range(x * shrink, right):
                        total += image[v, u, c]
                out[y, x, c] = total * share
    return out


@kernel()
def _sample(image: np.ndarray, frame: np.ndarray, size: int) -> np.ndarray:
    """``image`` [H, W, 3] of 0..255 at the pixels of a crop that ``frame`` [2, 3] maps into it, [size, size, 3]."""
    height, width = image.shape[:2]
    out = np.empty((size, size, 3), np.float32)
    for row in range(size):
        for column in range(size):
            x = frame[0, 0] * column + frame[0, 1] * row + frame[0, 2]
            y = frame[1, 0] * column + frame[1, 1] * row + frame[1, 2]
            x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
            left, top = int(x), int(y)
            right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
            u, v = np.float32((x - left) / 255), np.float32(y - top)
            rest = np.float32(1 / 255) - u
            for c in range(3):
                above = rest * image[top, left, c] + u * image[top, right, c]
                below = rest * image[bottom, left, c] + u * image[bottom, right, c]
                out[row, column, c] = above + v * (below - above)
    return out
