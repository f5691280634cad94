"""Calibration files other tools write: plain JSON, nerfstudio ``transforms.json``, OpenCV FileStorage YAML."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import InputError

_OPENCV_PIXEL_CENTRE = 0.5
"""OpenCV puts the centre of the first pixel at 0, this package at .5."""


@dataclass(frozen=True)
class Calibration:
    """What a file says: ``K`` [3, 3] (pixel centres at .5), its image size if stated, distortion [5] or None."""

    K: NDArray[np.float64]
    size: tuple[int, int] | None
    distortion: NDArray[np.float64] | None


def read_calibration(path: str | Path) -> Calibration:
    """Read any supported format. Raises InputError with the reason when the file is none of them."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read intrinsics file {path} ({reason})") from None
    try:
        if path.suffix.lower() in (".yml", ".yaml") or text.lstrip().startswith(("%YAML", "---")):
            return _from_opencv_yaml(text)
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError("expected a JSON object")
        return _from_json(data)
    except KeyError as error:
        raise InputError(f"{path} is no camera calibration: {error.args[0]} is missing") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is no camera calibration ({error})") from None


def _from_json(data: dict[str, Any]) -> Calibration:
    if "fisheye" in str(data.get("camera_model", "")).lower():
        raise ValueError("fisheye lenses are not supported")
    size = _size_of(data)
    distortion = next((data[k] for k in ("distortion", "dist", "distortion_coefficients") if k in data), None)
    if distortion is None and any(k in data for k in ("k1", "k2", "p1", "p2", "k3", "k4")):
        distortion = [data.get(k, 0.0) for k in ("k1", "k2", "p1", "p2", "k3", "k4")]
    K = next((data[k] for k in ("K", "camera_matrix", "intrinsics") if k in data), None)
    if K is not None:
        return Calibration(np.asarray(K, dtype=np.float64).reshape(3, 3), size, _five(distortion))
    fx = _first(data, "fx", "fl_x", "focal")
    fy = float(next((data[k] for k in ("fy", "fl_y") if k in data), fx))
    if size and "cx" not in data and "cy" not in data:
        cx, cy = size[0] / 2, size[1] / 2
    else:
        cx, cy = _first(data, "cx"), _first(data, "cy")
    return Calibration(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), size, _five(distortion))


def _from_opencv_yaml(text: str) -> Calibration:
    matrices = {
        name: [float(number) for number in body.replace("\n", " ").split(",") if number.strip()]
        for name, body in re.findall(r"^\s*(\w+):\s*!!opencv-matrix.*?data:\s*\[([^\]]*)\]", text, re.M | re.S)
    }
    K = next((matrices[k] for k in ("camera_matrix", "cameraMatrix", "K", "M1") if k in matrices), None)
    if K is None:
        raise KeyError("camera_matrix")
    names = ("distortion_coefficients", "distCoeffs", "dist_coeffs", "D", "D1")
    distortion = next((matrices[k] for k in names if k in matrices), None)
    scalars = {name: float(value) for name, value in re.findall(r"^\s*(\w+):\s*([-+.\deE]+)\s*$", text, re.M)}
    matrix = np.asarray(K, dtype=np.float64).reshape(3, 3)
    matrix[:2, 2] += _OPENCV_PIXEL_CENTRE
    return Calibration(matrix, _size_of(scalars), _five(distortion))


def _first(data: dict[str, Any], *names: str) -> float:
    for name in names:
        if name in data:
            return float(data[name])
    raise KeyError(" or ".join(names))


def _size_of(data: dict[str, Any]) -> tuple[int, int] | None:
    for name in ("size", "image_size"):
        if name in data:
            width, height = data[name]
            return int(width), int(height)
    for w, h in (("w", "h"), ("width", "height"), ("image_width", "image_height")):
        if w in data and h in data:
            return int(data[w]), int(data[h])
    return None


def _five(values: Any) -> NDArray[np.float64] | None:
    """OpenCV coefficients as ``k1, k2, p1, p2, k3``; higher-order models are refused rather than cut short."""
    if values is None:
        return None
    coefficients = np.asarray(values, dtype=np.float64).ravel()
    if coefficients[5:].any():
        raise ValueError(f"only k1, k2, p1, p2, k3 are supported, found {coefficients.size} distortion coefficients")
    return np.pad(coefficients[:5], (0, max(0, 5 - coefficients.size)))
