"""Regions of interest: rotated rectangles around a face, and the crops networks see through them.

A roi is float32 ``[5]``: centre x, centre y, width, height (pixels of the original frame, pixel centres at 0.5) and the
angle in radians by which the face is turned clockwise in the image. The rules are MediaPipe's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nphm_track.conventions import EYE_CORNERS_478

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

    Bilinear; where a crop shrinks the image by 2 or more, pixels are averaged first; edges are replicated.
    """
    if len(images) != len(rois):
        raise ValueError(f"{len(images)} images but {len(rois)} rois")
    if not len(images):
        return torch.zeros(0, 3, size, size, device=device)
    crops = [_crop(image, np.asarray(roi, np.float64), size, device) for image, roi in zip(images, rois, strict=True)]
    return torch.cat(crops).contiguous(memory_format=torch.channels_last)


def _crop(image: np.ndarray, roi: np.ndarray, size: int, device: torch.device | str) -> Tensor:
    height, width = image.shape[:2]
    cx, cy, w, h, angle = roi
    cos, sin = np.cos(angle), np.sin(angle)
    shrink = max(1, int(max(w, h) / size))

    # Only the part of the frame under the roi is converted; its corner sits on the averaging grid, so that the
    # averages of a still picture do not change when the roi moves.
    reach = np.array([abs(cos) * w + abs(sin) * h, abs(sin) * w + abs(cos) * h]) / 2 + 2 * shrink
    limit = np.array([width, height])
    low = np.clip(np.floor((roi[:2] - reach) / shrink) * shrink, 0, (limit - 1) // shrink * shrink).astype(int)
    high = np.clip(np.ceil(roi[:2] + reach), low + 1, limit).astype(int)
    part = np.require(image[low[1] : high[1], low[0] : high[0]], requirements=["C", "W"])
    source = torch.from_numpy(part).to(device).permute(2, 0, 1)[None].float() / 255
    if shrink > 1:
        source = F.avg_pool2d(source, shrink, ceil_mode=True)

    # Affine map from crop coordinates (-1..1) to grid_sample's coordinates of the part (-1..1).
    to_unit = 2.0 / (shrink * np.array([source.shape[3], source.shape[2]]))
    frame = np.array([[cos * w / 2, -sin * h / 2, cx - low[0]], [sin * w / 2, cos * h / 2, cy - low[1]]])
    theta = frame * to_unit[:, None] - np.array([[0, 0, 1], [0, 0, 1]])
    grid = F.affine_grid(torch.tensor(theta[None], dtype=torch.float32), [1, 3, size, size], align_corners=False)
    return F.grid_sample(source, grid.to(device), padding_mode="border", align_corners=False)
