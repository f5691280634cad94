"""The pinhole camera with OpenCV distortion, and where its numbers come from: options, files, photograph metadata.

Pixels are those of the original frame, their centres at 0.5, so an image resized by ``s`` has ``K`` scaled by ``s``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nphm_track.errors import InputError

if TYPE_CHECKING:
    from nphm_track.video.presentation import Presentation

FloatArray = NDArray[np.float64]

MIN_FOV_DEG, MAX_FOV_DEG = 20.0, 100.0
"""Bounds of the horizontal field of view wherever the camera is guessed rather than given."""
NORMALISED = 5.0
"""Focal length in pixels below which a file means shares of the image's size."""
WIDEST, NARROWEST, MOST_OBLONG = 0.25, 60.0, 2.5
"""Bounds of a given focal length over the longer side (127 and 1 degrees of view), and of fx over fy."""
OFF_CENTRE = 0.15
"""Of the image's size: how far from its middle the principal point may be in a file that does not state that size."""


@dataclass(frozen=True, eq=False)
class Intrinsics:
    """One camera; axes are OpenCV's (x right, y down, z forward). Raises InputError when the numbers are no camera.

    Attributes:
        K: [3, 3] float64, pixels, no skew.
        size: (width, height) of the frame in pixels.
        distortion: [5] float64 OpenCV ``k1, k2, p1, p2, k3``, or None for an ideal pinhole.
    """

    K: FloatArray
    size: tuple[int, int]
    distortion: FloatArray | None = None

    def __post_init__(self) -> None:
        K = np.asarray(self.K, dtype=np.float64)
        if K.shape != (3, 3):
            raise InputError(f"camera matrix must be 3 x 3, not {K.shape}")
        fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
        width, height = self.size
        if width < 1 or height < 1:
            raise InputError(f"image size {width} x {height} is empty")
        if not np.isfinite(K).all() or fx <= 0 or fy <= 0:
            raise InputError(f"focal length must be positive and finite, not {fx:g}, {fy:g}")
        if not np.allclose(K, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], atol=1e-6 * fx):
            raise InputError("camera matrix must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] (skew is not supported)")
        if not (0 <= cx <= width and 0 <= cy <= height):
            raise InputError(f"principal point ({cx:g}, {cy:g}) lies outside the {width} x {height} image")
        object.__setattr__(self, "K", K)
        object.__setattr__(self, "size", (int(width), int(height)))
        if self.distortion is not None:
            distortion = np.asarray(self.distortion, dtype=np.float64)
            if distortion.shape != (5,) or not np.isfinite(distortion).all():
                raise InputError("distortion must be five finite numbers k1, k2, p1, p2, k3")
            object.__setattr__(self, "distortion", distortion if distortion.any() else None)

    @classmethod
    def from_focal(cls, focal_px: float, size: tuple[int, int]) -> Intrinsics:
        """Square pixels, principal point in the middle of the image."""
        K = np.array([[focal_px, 0, size[0] / 2], [0, focal_px, size[1] / 2], [0, 0, 1]], dtype=np.float64)
        return cls(K, size)

    @classmethod
    def from_fov(cls, horizontal_fov_deg: float, size: tuple[int, int]) -> Intrinsics:
        """From the horizontal field of view in degrees, in (0, 180)."""
        if not 0 < horizontal_fov_deg < 180:
            raise InputError(f"field of view must lie between 0 and 180 degrees, not {horizontal_fov_deg:g}")
        return cls.from_focal(focal_from_fov(horizontal_fov_deg, size[0]), size)

    @classmethod
    def from_file(cls, path: str | Path, size: tuple[int, int], shown: Presentation | None = None) -> Intrinsics:
        """Read a calibration (see ``calibration_formats``) and scale it to ``size``, the frame it is used for.

        A calibration of the picture as a video stores it is brought to the picture as it is ``shown``.

        Raises InputError when the file is unreadable, calibrates an image of another shape or resolution, or is of a
        camera that cannot be.
        """
        from nphm_track.cameras.calibration_file import read_calibration

        calibration = read_calibration(path)
        try:
            if calibration.size is None:
                _check_resolution(calibration.K, size)
            camera = cls(calibration.K, calibration.size or size, calibration.distortion)
            if shown is not None and not _same_shape(camera.size, size) and _same_shape(camera.size, shown.stored):
                camera = camera.squeezed(shown.square).turned(shown.rotation, shown.mirrored)
            return camera.checked().resized(size)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def checked(self) -> Intrinsics:
        """The camera itself. Raises InputError when no camera is like it: numbers in other units, most likely."""
        (fx, fy), side = self._focal, max(self.size)
        if max(fx, fy) < NORMALISED:
            raise InputError(f"focal length {fx:g} is no pixels; normalised by the image's size (0..1)?")
        if min(fx, fy) < WIDEST * side:
            raise InputError(f"focal length {fx:g} px is impossible for {side} px; is it millimetres?")
        if max(fx, fy) > NARROWEST * side or not 1 / MOST_OBLONG < fx / fy < MOST_OBLONG:
            raise InputError(f"focal lengths {fx:g} and {fy:g} px are impossible for {side} px")
        return self

    def turned(self, rotation: int, mirrored: bool) -> Intrinsics:
        """The same camera for the image turned by ``rotation`` degrees counter-clockwise (a multiple of 90), then, if
        ``mirrored``, with left and right swapped.
        """
        fx, fy, cx, cy = self.K[[0, 1, 0, 1], [0, 1, 2, 2]]
        width, height = self.size
        tangential = (0.0, 0.0) if self.distortion is None else (self.distortion[3], self.distortion[2])
        x, y = tangential  # p2, p1: a vector in the image
        for _ in range(rotation // 90 % 4):  # x' = y, y' = -x
            fx, fy, cx, cy, x, y = fy, fx, cy, width - cx, y, -x
            width, height = height, width
        if mirrored:
            cx, x = width - cx, -x
        lens = None if self.distortion is None else self.distortion.copy()
        if lens is not None:
            lens[2:4] = y, x
        return Intrinsics(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), (width, height), lens)

    def resized(self, size: tuple[int, int]) -> Intrinsics:
        """The same camera for the image resized to ``size``; the aspect must agree within 1 %."""
        if not _same_shape(self.size, size):
            raise InputError(f"calibrated for {self.size[0]} x {self.size[1]}, the image is {size[0]} x {size[1]}")
        return self.squeezed(size)

    def squeezed(self, size: tuple[int, int]) -> Intrinsics:
        """The same camera for the image resized to ``size``, whatever its aspect."""
        scale = np.diag([size[0] / self.size[0], size[1] / self.size[1], 1.0])
        return Intrinsics(scale @ self.K, size, self.distortion)

    @property
    def fov(self) -> float:
        """Horizontal field of view in degrees, both sides of the principal point."""
        fx, cx = self.K[0, 0], self.K[0, 2]
        return float(np.degrees(np.arctan(cx / fx) + np.arctan((self.size[0] - cx) / fx)))

    def project(self, points_cam: ArrayLike) -> FloatArray:
        """Pixels [..., 2] of camera-space points [..., 3] (metres, z > 0), distorted as the lens does."""
        points = np.asarray(points_cam, dtype=np.float64)
        xy = points[..., :2] / points[..., 2:]
        if self.distortion is not None:
            xy = xy + _distortion_shift(xy, self.distortion)
        return xy * self._focal + self._centre

    def undistort(self, pixels: ArrayLike) -> FloatArray:
        """Pixels [..., 2] where an ideal pinhole with the same ``K`` would have seen the same rays."""
        seen = (np.asarray(pixels, dtype=np.float64) - self._centre) / self._focal
        if self.distortion is not None:
            seen = _remove_distortion(seen, self.distortion)
        return seen * self._focal + self._centre

    def rays(self, pixels: ArrayLike) -> FloatArray:
        """Unit viewing directions [..., 3] in camera space of pixels [..., 2]."""
        xy = (self.undistort(pixels) - self._centre) / self._focal
        rays = np.concatenate([xy, np.ones_like(xy[..., :1])], axis=-1)
        return rays / np.linalg.norm(rays, axis=-1, keepdims=True)

    @property
    def _focal(self) -> FloatArray:
        return self.K[[0, 1], [0, 1]]

    @property
    def _centre(self) -> FloatArray:
        return self.K[:2, 2]


def _same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Within 1 %; a pixel of rounding is no other aspect: 854 x 480 is a 16:9 image."""
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) <= 0.01 + 1 / min(*size, *other)


def _check_resolution(K: FloatArray, size: tuple[int, int]) -> None:
    """Raises InputError when ``K``, of a file that states no size, is that of an image of another one."""
    off = np.abs(K[:2, 2] / np.array(size) - 0.5)
    if K[0, 0] >= NORMALISED and off.max() > OFF_CENTRE:
        was, now = (f"{2 * K[0, 2]:.0f} x {2 * K[1, 2]:.0f}", f"{size[0]} x {size[1]}")
        raise InputError(
            f"its principal point is that of an image of about {was}, this one is {now}; state the size (w, h)"
        )


def focal_from_fov(fov_deg: float, width: float) -> float:
    """Focal length in pixels of a centred camera ``width`` pixels wide."""
    return float(0.5 * width / np.tan(np.radians(fov_deg) / 2))


def fov_from_focal(focal_px: float, width: float) -> float:
    """Horizontal field of view in degrees of a centred camera ``width`` pixels wide."""
    return float(np.degrees(2 * np.arctan(0.5 * width / focal_px)))


def _distortion_shift(xy: FloatArray, distortion: FloatArray) -> FloatArray:
    """What OpenCV's radial-tangential model adds to ideal normalised coordinates [..., 2]."""
    k1, k2, p1, p2, k3 = distortion
    x, y = xy[..., 0], xy[..., 1]
    r2 = x * x + y * y
    radial = r2 * (k1 + r2 * (k2 + r2 * k3))
    shift_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    shift_y = y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y)
    return np.stack([shift_x, shift_y], axis=-1)


def _remove_distortion(seen: FloatArray, distortion: FloatArray, iterations: int = 20) -> FloatArray:
    """Invert the distortion of normalised coordinates [..., 2] by Newton steps from the seen point."""
    k1, k2, p1, p2, k3 = distortion
    xy = seen.copy()
    for _ in range(iterations):
        x, y = xy[..., 0], xy[..., 1]
        r2 = x * x + y * y
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        slope = k1 + r2 * (2 * k2 + r2 * 3 * k3)  # d radial / d r2
        xx = radial + 2 * slope * x * x + 2 * p1 * y + 6 * p2 * x
        yy = radial + 2 * slope * y * y + 2 * p2 * x + 6 * p1 * y
        off = 2 * slope * x * y + 2 * p1 * x + 2 * p2 * y
        error = seen - xy - _distortion_shift(xy, distortion)
        determinant = np.maximum(xx * yy - off * off, 0.1)  # past the fold of the model there is no inverse: stay put
        step_x = (yy * error[..., 0] - off * error[..., 1]) / determinant
        step_y = (xx * error[..., 1] - off * error[..., 0]) / determinant
        step = np.stack([step_x, step_y], axis=-1)
        xy = xy + np.clip(step, -0.5, 0.5)
        if np.abs(step).max(initial=0.0) < 1e-12:
            break
    return xy


def focal_from_exif(path: str | Path, size: tuple[int, int]) -> float | None:
    """Focal length in pixels of the image ``size`` from the photograph's ``FocalLengthIn35mmFilm``.

    The tag relates the diagonals of the picture and of 35 mm film (CIPA DCG-001). None when the file is no image, says
    nothing or what no lens has, or was cropped.
    """
    from PIL import ExifTags

    from nphm_track.video.stills import opened

    try:
        with opened(Path(path)) as image:
            exif = image.getexif().get_ifd(ExifTags.IFD.Exif)
            focal_mm = float(exif.get(ExifTags.Base.FocalLengthIn35mmFilm) or 0)
            taken = [float(exif.get(tag) or 0) for tag in (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)]
    except (InputError, OSError, ValueError, TypeError, SyntaxError, ZeroDivisionError):
        return None
    if not np.isfinite(focal_mm) or focal_mm <= 0:
        return None
    if min(taken) > 0 and abs(max(taken) / min(taken) / (max(size) / min(size)) - 1) > 0.02:
        return None
    focal_px = focal_mm * float(np.hypot(*size)) / float(np.hypot(36.0, 24.0))
    return focal_px if WIDEST < focal_px / max(size) < NARROWEST else None
