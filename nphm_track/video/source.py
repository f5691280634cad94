"""What a reader of video gives: frames one after the other, and what is known of the input before."""

from __future__ import annotations

import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import InputError

if TYPE_CHECKING:
    from nphm_track.video.presentation import Presentation

IMAGE_SUFFIXES = frozenset({
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif",
    ".jp2", ".tga", ".ppm", ".pgm", ".exr", ".dpx",
})  # fmt: skip
RAW_SUFFIXES = frozenset({
    ".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw", ".3fr", ".iiq", ".x3f",
})  # fmt: skip
"""What a sensor saw, which is no picture before it is developed."""
_MASK = re.compile(r"(.+?)[._-](mask|matte|alpha|seg|segmentation|seg_mask|semantic|depth|normal)s?")
"""Name of a file that belongs to an image, and the image's."""
_MATTES = ("mask", "matte", "alpha")
"""Of these, those that say where the person is; also the names of folders beside that of the images."""
SPARSE = 10
"""A sequence has at most so many missing pictures for each that is there; else the numbers are something else."""
TICK = 1e-6
"""Seconds; far from zero, differences of times are no more exact than this."""


@dataclass(frozen=True)
class Frame:
    """One picture: its number ``index`` in the source, ``time`` in seconds of the container's clock, ``image``
    [H, W, 3] RGB."""

    index: int
    time: float
    image: NDArray[np.uint8]


@dataclass(frozen=True)
class VideoInfo:
    """What is known of an input before it is decoded; None where the container does not say."""

    path: Path
    kind: Literal["video", "image", "folder"]
    width: int  # pixels, as the picture is shown: turned, and resampled to square pixels
    height: int
    rotation: int = 0  # degrees counter-clockwise that were applied: 0, 90, 180 or 270
    frame_rate: float | None = None  # average, frames per second
    frame_count: int | None = None  # an estimate
    duration: float | None = None  # seconds
    codec: str | None = None
    has_audio: bool = False
    presentation: Presentation | None = None  # how the stored pictures of a video become the shown ones
    notes: tuple[str, ...] = ()  # what else was done to show the pictures as the file asks, in words


class FrameSource(ABC):
    """The selected frames of one input: start <= time - origin < end, and of those every ``every``-th.

    Iterate it, or call ``frames``, as often as you like; each call reads from the beginning. ``warning`` is set when a
    pass met damage in the middle of the input.
    """

    info: VideoInfo
    origin: float = 0.0  # time at which the container's clock starts, seconds
    warning: str | None = None
    names: Mapping[int, str] = {}
    """File names of pictures that have one each, by frame number; a video has none."""
    read_on: Callable[[], object] = staticmethod(lambda: None)
    """Called for every picture that ``frames`` decodes, those that it passes over included: reading goes on."""

    def __init__(self, start: float | None, end: float | None, every: int) -> None:
        if every < 1:
            raise InputError(f"every must be at least 1, not {every}")
        if start is not None and end is not None and end <= start:
            raise InputError(f"end ({end:g} s) must come after start ({start:g} s)")
        self.start, self.end, self.every = start, end, every

    @property
    def clip_origin(self) -> float:
        """Source time at which a video of the selected frames starts its clock.

        0, which keeps the source's timestamps, unless the beginning is cut off, or the clock starts before 0 or far
        behind it.
        """
        if self.start is None and 0 <= self.origin < 10.0:
            return 0.0
        return self.origin + (self.start or 0.0)

    def number(self, index: int) -> int:
        """Frame number of the ``index``-th picture: the index itself, or what the files of a sequence are called."""
        return index

    @abstractmethod
    def pictures(self) -> Iterator[tuple[float, Any]]:
        """Time and undeveloped picture of every frame of the input, in order."""

    @abstractmethod
    def develop(self, picture: Any) -> NDArray[np.uint8]:
        """RGB image [H, W, 3] of what ``pictures`` gave."""

    def frames(self, first: int = 0) -> Iterator[Frame]:
        """The selected frames from the ``first``-th on; those before it are decoded but not converted.

        Frames are counted from the beginning of the input: a container's index cannot be trusted after seeking.
        Raises InputError when nothing is selected or nothing can be decoded.
        """
        self.warning = None
        in_range = selected = seen = 0
        pictures = self.pictures()
        try:
            for index, (time, picture) in enumerate(pictures):
                seen += 1
                self.read_on()
                if self.start is not None and time - self.origin < self.start - TICK:
                    continue
                if self.end is not None and time - self.origin >= self.end - TICK:
                    break
                if in_range % self.every == 0:
                    if selected >= first:
                        yield Frame(self.number(index), time, self.develop(picture))
                    selected += 1
                in_range += 1
        finally:
            pictures.close()  # type: ignore[attr-defined]  # a generator
        if not seen:
            raise InputError(f"{self.info.path}: no frame can be decoded")
        if not selected:
            raise InputError(f"{self.info.path}: no frame between the given start and end")

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(self, *_: object) -> None:
        return None  # nothing is held between passes; one under way lets go of the file when it ends or is dropped


def image_files(folder: Path) -> list[Path]:
    """The images of a folder in natural order (img2 before img10); hidden files and ``mask_files`` are passed over.

    Raises InputError when one of them is no file that can be read: a folder, a pipe, a broken link.
    """
    try:
        paths = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
        for path in paths:
            if not stat.S_ISREG(path.stat().st_mode):
                raise InputError(f"{path}: it is called like an image and is no file")
    except OSError as error:
        raise InputError(f"{error.filename or folder}: it cannot be read ({error.strerror})") from None
    masks = set(_masks(paths))
    return sorted((path for path in paths if path not in masks), key=_natural)


def mask_files(folder: Path) -> list[Path]:
    """Masks, mattes and maps beside the images that they belong to: ``0001_mask.png`` beside ``0001.png``."""
    return _masks([p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")])


def matte_files(images: list[Path]) -> dict[Path, Path]:
    """The matte of each image that has one: ``0001_mask.png`` beside ``0001.png``, or ``mask/0001.png`` (``masks``,
    ``matte``, ``alpha``) where that is in ``image/``.
    """
    if not images:
        return {}
    folder, stems = images[0].parent, {path.stem.lower(): path for path in images}
    found: dict[Path, Path] = {}
    for name in (*_MATTES, *(f"{name}s" for name in _MATTES)):
        beside = folder.parent / name
        if beside.is_dir():
            found |= {stems[m.stem.lower()]: m for m in image_files(beside) if m.stem.lower() in stems}
    for path in mask_files(folder):
        belongs = _MASK.fullmatch(path.stem.lower())
        if belongs and belongs[2].startswith(_MATTES):
            found[stems[belongs[1]]] = path
    return found


def is_mask_folder(folder: Path) -> bool:
    """Whether a folder is called like masks, and one beside it holds images whose names its own have."""
    if not _MASK.fullmatch(f"_.{folder.name.lower()}"):
        return False
    stems = _stems(folder)
    return any(stems & _stems(other) for other in folder.parent.iterdir() if other != folder)


def _stems(folder: Path) -> set[str]:
    """Names of the images of a folder; none where it is no folder, or cannot be read."""
    try:
        return {path.stem.lower() for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
    except OSError:
        return set()


def _masks(paths: list[Path]) -> list[Path]:
    stems = {path.stem.lower() for path in paths}
    return [path for path in paths if (found := _MASK.fullmatch(path.stem.lower())) and found[1] in stems]


def frame_numbers(paths: list[Path]) -> list[int]:
    """Numbers of a sequence's pictures: from their names where these differ in the last number only, else 0, 1, 2..."""
    parts = [re.fullmatch(r"(.*?)(\d+)(\D*)", path.stem) for path in paths]
    if len(paths) > 1 and all(parts) and len({(p[1], p[3]) for p in parts if p}) == 1:
        numbers = [int(p[2]) for p in parts if p]
        rising = all(after > before for before, after in pairwise(numbers))
        if rising and numbers[-1] - numbers[0] < SPARSE * len(numbers):
            return numbers
    return list(range(len(paths)))


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"(\d+)", path.name.lower())
    return [(int(s), "") if s.isdecimal() else (-1, s) for s in parts], path.name
