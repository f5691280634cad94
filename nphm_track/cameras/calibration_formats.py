"""What calibration files say, once they are parsed: OpenCV, ROS, Kalibr, nerfstudio, instant-ngp, COLMAP, RealSense,
Open3D, ARKit, Record3D, Polycam, Gyroflow.

Pixel centres are brought to 0.5, this package's convention: tools of OpenCV's family put the first one at 0, COLMAP and
what is made of it at 0.5, ARKit's files do not say.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Data = dict[str, Any]

_PIXEL_CENTRE = 0.5
_SIZES = (
    "size", "image_size", "imageResolution", "resolution", ("w", "h"), ("width", "height"),
    ("image_width", "image_height"),
)  # fmt: skip
_MATRICES = ("K", "camera_matrix", "cameraMatrix", "intrinsics", "intrinsic_matrix", "M1", "K1")
_COEFFICIENTS = (
    "distortion", "dist", "distortion_coefficients", "distortion_coeffs", "distCoeffs", "dist_coeffs", "coeffs", "D",
    "D1",
)  # fmt: skip
_NAMED = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
_MODELS = ("camera_model", "distortion_model", "model", "type", "camera_type", "Camera.type", "lens_model")
_FISHEYES = ("is_fisheye", "fisheye_model", "fisheye")
"""Names under which instant-ngp, OpenCV's sample and others say yes or no."""
_OTHER_LENSES = re.compile(
    r"fisheye|equidist|equi|kannala|^kb\d?|omni|spherical|sphere|^ds$|eucm|mei|fov|f_?theta|thin_prism|ortho|panoram"
)
_OTHER_POLYNOMIALS = re.compile(r"inverse_brown|modified_brown|division")
_COLMAP: dict[str, tuple[str, ...]] = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
    "FULL_OPENCV": ("fx", "fy", "cx", "cy", *_NAMED[:4], *_NAMED[4:]),
}


@dataclass(frozen=True)
class Calibration:
    """What a file says: ``K`` [3, 3] (pixel centres at 0.5), its image size if stated, distortion [5] or None."""

    K: NDArray[np.float64]
    size: tuple[int, int] | None
    distortion: NDArray[np.float64] | None


def from_data(data: Any) -> Calibration:
    """From parsed JSON, YAML or XML, or a bare matrix. Raises KeyError, ValueError or TypeError with the reason."""
    if isinstance(data, list):
        return Calibration(_matrix(data), None, None)
    if not isinstance(data, dict):
        raise ValueError("neither a matrix nor names with values")
    if "fisheye_params" in data:
        raise ValueError("it is a lens profile of Gyroflow with a fisheye model, which a pinhole camera cannot hold")
    cameras = [value for key, value in data.items() if re.fullmatch(r"cam\d+", str(key)) and isinstance(value, dict)]
    if cameras:
        if len(cameras) > 1:
            raise ValueError(f"it holds {len(cameras)} cameras; keep the one of this clip")
        return _shifted(_from_names(cameras[0]))
    if "frames" in data and not any(name in data for name in ("fl_x", "fx", "camera_angle_x", *_MATRICES)):
        return _from_frames(data)
    return _from_names(data)


def from_colmap(rows: list[list[str]]) -> Calibration:
    """From the lines of COLMAP's ``cameras.txt``: id, model, width, height, parameters."""
    cameras = {tuple(row[1:]) for row in rows}
    if len(cameras) > 1:
        raise ValueError(f"it holds {len(cameras)} cameras; keep the one of this clip")
    _, model, width, height, *parameters = rows[0]
    _refuse_fisheyes([model])
    if model not in _COLMAP:
        raise ValueError(f"the lens model {model} is another than a pinhole with k1, k2, p1, p2, k3")
    if len(parameters) != len(_COLMAP[model]):
        raise ValueError(f"{model} has {len(_COLMAP[model])} parameters, not {len(parameters)}")
    values = dict(zip(_COLMAP[model], map(float, parameters), strict=True))
    if "f" in values:
        values["fx"] = values["fy"] = values.pop("f")
    return _from_names({**values, "w": width, "h": height})


def _from_frames(data: Data) -> Calibration:
    """nerfstudio's per-frame cameras, when they are one."""
    frames = data["frames"]
    if not frames:
        raise KeyError("fl_x")
    names = {"fl_x", "fl_y", "cx", "cy", "w", "h", "camera_angle_x", *_MODELS, *_FISHEYES, *_NAMED}
    cameras = [{name: frame[name] for name in names & frame.keys()} for frame in frames]
    if any(camera != cameras[0] for camera in cameras):
        raise ValueError("its frames have different cameras; a clip is tracked with one")
    return _from_names(data | cameras[0])


def _from_names(data: Data) -> Calibration:
    size = _size(data)
    distortion = _distortion(data)
    name = next((name for name in _MATRICES if name in data), None)
    if name is not None:
        found = Calibration(_matrix(data[name]), size, distortion)
        return _shifted(found) if isinstance(data[name], dict) or name == "intrinsic_matrix" else found
    if "camera_angle_x" in data and "fl_x" not in data and size:
        fx = 0.5 * size[0] / math.tan(0.5 * float(data["camera_angle_x"]))
    else:
        fx = _first(data, "fx", "fl_x", "focal")
    fy = float(next((data[key] for key in ("fy", "fl_y") if key in data), fx))
    if "ppx" in data:  # RealSense
        return _shifted(Calibration(_camera(fx, fy, _first(data, "ppx"), _first(data, "ppy")), size, distortion))
    if size and "cx" not in data and "cy" not in data:
        return Calibration(_camera(fx, fy, size[0] / 2, size[1] / 2), size, distortion)
    return Calibration(_camera(fx, fy, _first(data, "cx"), _first(data, "cy")), size, distortion)


def _camera(fx: float, fy: float, cx: float, cy: float) -> NDArray[np.float64]:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)


def _shifted(found: Calibration) -> Calibration:
    """The same with the first pixel's centre moved from 0 to 0.5."""
    K = found.K.copy()
    K[:2, 2] += _PIXEL_CENTRE
    return Calibration(K, found.size, found.distortion)


def _matrix(value: Any) -> NDArray[np.float64]:
    """``K`` from 3 x 3 or 9 numbers, row by row or column by column, from fx, fy, cx, cy, or an OpenCV matrix."""
    numbers = _numbers(value)
    if numbers.size == 4:
        return _camera(*numbers)
    K = numbers.reshape(3, 3)
    by_columns = not K[:2, 2].any() and K[2, :2].any()
    return K.T.copy() if by_columns else K


def _numbers(value: Any) -> NDArray[np.float64]:
    return np.array(value["data"] if isinstance(value, dict) else value, dtype=np.float64)


def _first(data: Data, *names: str) -> float:
    for name in names:
        if name in data:
            return float(data[name])
    raise KeyError(" or ".join(names))


def _size(data: Data) -> tuple[int, int] | None:
    for name in _SIZES:
        if isinstance(name, str) and name in data:
            width, height = data[name]
        elif not isinstance(name, str) and all(side in data for side in name):
            width, height = (data[side] for side in name)
        else:
            continue
        return int(float(width)), int(float(height))
    return None


def _refuse_fisheyes(models: list[str]) -> None:
    """Raises ValueError when one of the lens models is no pinhole's."""
    for model in models:
        if _OTHER_LENSES.search(model.lower()):
            raise ValueError(
                f"its lens is a fisheye ({model}), which a pinhole camera cannot hold: undistort the clip by it"
            )


def _is_true(value: Any) -> bool:
    return str(value).lower() not in ("none", "0", "false", "")


def _distortion(data: Data) -> NDArray[np.float64] | None:
    """OpenCV's ``k1, k2, p1, p2, k3``. Raises ValueError for other models instead of cutting them short."""
    models = [data[name].lower() for name in _MODELS if isinstance(data.get(name), str)]
    _refuse_fisheyes([*models, *(name for name in _FISHEYES if _is_true(data.get(name)))])
    name = next((name for name in _COEFFICIENTS if name in data), None)
    if name is None and not any(key in data for key in _NAMED):
        return None
    given = data[name] if name else [float(data.get(key, 0)) for key in _NAMED]
    if isinstance(given, dict) and "data" not in given:
        given = [float(given.get(key, 0)) for key in _NAMED]
    if name == "D" and isinstance(given, dict) and (int(given.get("rows", 0)), int(given.get("cols", 0))) == (4, 1):
        raise ValueError(
            "D has four coefficients in a column, as OpenCV's fisheye model writes them; if they are k1, k2, p1, p2, "
            "call them distortion_coefficients"
        )
    coefficients = _numbers(given).ravel()
    other = [model for model in models if _OTHER_POLYNOMIALS.search(model)]
    if other and coefficients.any():
        raise ValueError(f"its lens model {other[0]} is another than k1, k2, p1, p2, k3")
    if coefficients[5:].any():
        raise ValueError(f"its lens has {coefficients.size} coefficients; only k1, k2, p1, p2, k3 are held")
    return np.pad(coefficients[:5], (0, max(0, 5 - coefficients.size)))
