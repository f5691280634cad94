"""Frames of a video, an image or a folder of images, one after the other.

The rotation tag (EXIF for images) is applied; times are the container's own timestamps in seconds, so that variable
frame rates survive. Images have no clock: frame ``i`` of a folder gets the time ``i / FOLDER_RATE``.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from nphm_track.errors import InputError
from nphm_track.video.pyav_backend import AvSource
from nphm_track.video.source import IMAGE_SUFFIXES, FrameSource, VideoInfo, image_files

FOLDER_RATE = 30.0
_BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, EOFError, ArithmeticError, struct.error,
    zlib.error,
)  # fmt: skip
"""What Pillow raises for damaged files; UnidentifiedImageError is an OSError."""


def open_video(
    path: str | Path,
    *,
    start: float | None = None,
    end: float | None = None,
    every: int = 1,
    stream: int | None = None,
    backend: str = "av",
) -> FrameSource:
    """Open a video, an image, or a folder of images in natural order.

    Args:
        start, end: seconds from the beginning, as a player shows them; frames with start <= time < end are kept.
        every: keep each ``every``-th frame of those.
        stream: which of a file's video streams, from 0; by default the one that players show.
        backend: "av", or "decord" for videos (needs the extra of that name).

    Raises InputError, with one line for the user, for whatever cannot be read.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if path.is_dir():
            return ImageSource(_images_in(path), start, end, every, folder=path)
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
        with open(path, "rb"):
            pass
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if path.suffix.lower() in IMAGE_SUFFIXES:
        moving = _animation(path)
        if moving is None:
            return ImageSource([path], start, end, every)
        if moving == "WEBP":  # FFmpeg reads the other animated formats
            return AnimationSource(path, start, end, every)
    if backend == "av":
        return AvSource(path, start, end, every, stream)
    if backend == "decord":
        from nphm_track.video.decord_backend import DecordSource

        return DecordSource(path, start, end, every, stream)
    raise InputError(f"unknown video backend '{backend}'; choose from av, decord")


class ImageSource(FrameSource):
    """One image, or the images of a folder, all of one size."""

    def __init__(
        self, paths: list[Path], start: float | None, end: float | None, every: int, folder: Path | None = None
    ) -> None:
        super().__init__(start, end, every)
        self.paths = paths
        height, width = read_image(paths[0]).shape[:2]
        if folder is None:
            self.info = VideoInfo(paths[0], "image", width, height, frame_count=1)
        else:
            seconds = len(paths) / FOLDER_RATE
            self.info = VideoInfo(
                folder, "folder", width, height, frame_rate=FOLDER_RATE, frame_count=len(paths), duration=seconds
            )

    def pictures(self) -> Iterator[tuple[float, Path]]:
        for index, path in enumerate(self.paths):
            yield index / FOLDER_RATE, path

    def develop(self, picture: Path) -> NDArray[np.uint8]:
        image = read_image(picture)
        if image.shape[:2] != (self.info.height, self.info.width):
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise InputError(f"{picture}: {size}, but the first image is {self.info.width}x{self.info.height}")
        return image


class AnimationSource(FrameSource):
    """An animated WebP, read with Pillow."""

    def __init__(self, path: Path, start: float | None, end: float | None, every: int) -> None:
        super().__init__(start, end, every)
        with _opened(path) as file:
            count = getattr(file, "n_frames", 1)
            self.info = VideoInfo(path, "video", file.width, file.height, frame_count=count, codec="webp")

    def pictures(self) -> Iterator[tuple[float, Image.Image]]:
        milliseconds = 0.0
        with _opened(self.info.path) as file:
            for index in range(self.info.frame_count or 0):
                try:
                    file.seek(index)
                    file.load()
                except _BROKEN as error:
                    self.warning = f"{self.info.path}: damaged, {index} frames could be decoded ({error})"
                    return
                yield milliseconds / 1000, file
                milliseconds += max(1, file.info.get("duration", 40))

    def develop(self, picture: Image.Image) -> NDArray[np.uint8]:
        return _flatten(picture)


def read_image(path: Path) -> NDArray[np.uint8]:
    """RGB [H, W, 3] of an image file: EXIF orientation applied, transparency over white, 16 bits brought to 8."""
    try:
        with _opened(path) as file:
            image: Image.Image = ImageOps.exif_transpose(file)
            if image.mode.startswith(("I", "F")):
                values = np.asarray(image, np.float64)
                scale = 255 / 65535 if image.mode != "F" and values.max() > 255 else 1.0
                return np.repeat(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
            return _flatten(image)
    except Image.DecompressionBombError:
        raise InputError(f"{path}: the image is too large") from None
    except _BROKEN as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a readable image"
        raise InputError(f"{path}: {reason}") from None


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file, without Pillow's warnings: what matters is an error, and the rest is not the user's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as file:
            yield file


def _flatten(image: Image.Image) -> NDArray[np.uint8]:
    """RGB [H, W, 3] of an 8-bit image of any mode, over white where it is transparent."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _images_in(folder: Path) -> list[Path]:
    paths = image_files(folder)
    if not paths:
        raise InputError(f"{folder}: the folder holds no images")
    return paths


def _animation(path: Path) -> str | None:
    """Format of an image that moves, None for one that does not (or cannot be read: ``read_image`` says why)."""
    try:
        with _opened(path) as file:
            return file.format if getattr(file, "n_frames", 1) > 1 and file.format in ("WEBP", "PNG", "GIF") else None
    except (Image.DecompressionBombError, *_BROKEN):
        return None
