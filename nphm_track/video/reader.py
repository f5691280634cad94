"""Frames of a video, an image or a folder of images, one after the other.

The rotation tag (EXIF for images) is applied; times are the container's own timestamps in seconds, so that variable
frame rates survive. Images have no clock: those of a folder follow each other at a given rate by the numbers in their
names, so that missing ones leave a gap.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nphm_track.errors import InputError
from nphm_track.files.names import plain
from nphm_track.video.presentation import over_white
from nphm_track.video.pyav_backend import AvSource
from nphm_track.video.source import (
    IMAGE_SUFFIXES,
    RAW_SUFFIXES,
    FrameSource,
    VideoInfo,
    frame_numbers,
    image_files,
    mask_files,
    matte_files,
)
from nphm_track.video.stills import BROKEN, flatten, opened, read_image

FOLDER_RATE = 30.0


def open_video(
    path: str | Path,
    *,
    start: float | None = None,
    end: float | None = None,
    every: int = 1,
    stream: int | None = None,
    fps: float | None = None,
    mattes: bool = False,
    backend: str = "av",
) -> FrameSource:
    """Open a video, an image, or a folder of images in natural order.

    Args:
        start, end: seconds from the beginning, as a player shows them; frames with start <= time < end are kept.
        every: keep each ``every``-th frame of those.
        stream: which of a file's video streams, from 0; by default the one that players show.
        fps: pictures a second of a folder of images; ``FOLDER_RATE`` by default.
        mattes: lay the images of a folder over white where their mattes (``matte_files``) say that nobody is.
        backend: "av", or "decord" for videos (needs the extra of that name).

    Raises InputError, with one line for the user, for whatever cannot be read.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if path.is_dir():
            return ImageSource(_images_in(path), start, end, every, path, fps or FOLDER_RATE, mattes)
        if fps is not None:
            raise InputError(f"{path}: --fps is for folders of images; a file has times of its own")
        if mattes:
            raise InputError(f"{path}: --mattes is for folders of images")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
        with open(path, "rb"):
            pass
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if path.suffix.lower() in RAW_SUFFIXES:
        raise InputError(f"{path}: a raw photograph, which is not developed here; save it as TIFF or JPEG first")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        moving = _animation(path)
        if moving is None:
            return ImageSource([path], start, end, every)
        if moving in ("WEBP", "AVIF"):  # FFmpeg reads the other animated formats
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
        self,
        paths: list[Path],
        start: float | None,
        end: float | None,
        every: int,
        folder: Path | None = None,
        rate: float = FOLDER_RATE,
        mattes: bool = False,
    ) -> None:
        super().__init__(start, end, every)
        self.paths, self.rate = paths, rate
        self.mattes: dict[Path, Path] = {}
        self.numbers = frame_numbers(paths) if folder else [0]
        self.names = {number: plain(path.name) for number, path in zip(self.numbers, paths, strict=True)}
        height, width = read_image(paths[0]).shape[:2]
        if folder is None:
            self.info = VideoInfo(paths[0], "image", width, height, frame_count=1)
            return
        masks, notes = len(mask_files(folder)), []
        self.mattes = matte_files(paths) if mattes else {}
        if mattes and not self.mattes:
            raise InputError(
                f"{folder}: it has no mattes: no 0001_mask.png beside 0001.png, and no folder mask beside it"
            )
        if masks:
            notes.append(f"{masks} masks beside the images are no frames")
        if mattes:
            notes.append(f"{len(self.mattes)} of {len(paths)} images over white by their mattes")
        self.info = VideoInfo(
            folder, "folder", width, height, frame_rate=rate, frame_count=len(paths),
            duration=(self.numbers[-1] - self.numbers[0] + 1) / rate,
            notes=tuple(notes),
        )  # fmt: skip

    def number(self, index: int) -> int:
        return self.numbers[index]

    def pictures(self) -> Iterator[tuple[float, Path]]:
        for number, path in zip(self.numbers, self.paths, strict=True):
            yield (number - self.numbers[0]) / self.rate, path

    def develop(self, picture: Path) -> NDArray[np.uint8]:
        image = read_image(picture)
        if image.shape[:2] != (self.info.height, self.info.width):
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise InputError(
                f"{picture}: {size}, but the first image is {self.info.width}x{self.info.height}; "
                "--photos takes images of any size"
            )
        return self._matted(image, self.mattes[picture]) if picture in self.mattes else image

    def _matted(self, image: NDArray[np.uint8], file: Path) -> NDArray[np.uint8]:
        matte = read_image(file)
        if matte.shape != image.shape:
            raise InputError(
                f"{file}: {matte.shape[1]}x{matte.shape[0]}, its image is {image.shape[1]}x{image.shape[0]}"
            )
        return over_white(np.concatenate([image, matte[..., :1]], 2))


class AnimationSource(FrameSource):
    """An animated WebP or AVIF, read with Pillow."""

    def __init__(self, path: Path, start: float | None, end: float | None, every: int) -> None:
        super().__init__(start, end, every)
        with opened(path) as file:
            count = getattr(file, "n_frames", 1)
            self.info = VideoInfo(
                path, "video", file.width, file.height, frame_count=count, codec=path.suffix[1:].lower()
            )

    def pictures(self) -> Iterator[tuple[float, Image.Image]]:
        milliseconds = 0.0
        with opened(self.info.path) as file:
            for index in range(self.info.frame_count or 0):
                try:
                    file.seek(index)
                    file.load()
                except BROKEN as error:
                    self.warning = f"{self.info.path}: damaged, {index} frames could be decoded ({error})"
                    return
                yield milliseconds / 1000, file
                milliseconds += max(1, file.info.get("duration", 40))

    def develop(self, picture: Image.Image) -> NDArray[np.uint8]:
        return flatten(picture)


def _images_in(folder: Path) -> list[Path]:
    paths = image_files(folder)
    if not paths:
        raw = sum(path.suffix.lower() in RAW_SUFFIXES for path in folder.iterdir())
        raise InputError(
            f"{folder}: the folder holds {raw} raw photographs, which are not developed here; save them as TIFF or JPEG"
            if raw
            else f"{folder}: the folder holds no images"
        )
    return paths


def _animation(path: Path) -> str | None:
    """Format of an image that moves, None for one that does not (or cannot be read: ``read_image`` says why)."""
    try:
        with opened(path) as file:
            return (
                file.format
                if getattr(file, "n_frames", 1) > 1 and file.format in ("WEBP", "AVIF", "PNG", "GIF")
                else None
            )
    except (Image.DecompressionBombError, *BROKEN):
        return None
