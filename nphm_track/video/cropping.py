"""Cropping that a container asks for: ``clap`` of MP4 and MOV (ISO/IEC 14496-12), ``PixelCrop`` of Matroska (RFC 9559).

FFmpeg reads both, but PyAV gives no access to what it has read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nphm_track.video.containers import EBML, MP4, SEGMENT, boxes, elements

_LARGEST = 4096
"""Bytes of an element whose content is read."""
_SAMPLE_ENTRY = 78
"""Bytes of a video sample entry before its boxes."""
_CLUSTER, _TRACKS, _ENTRY, _TYPE, _VIDEO = 0x1F43B675, 0x1654AE6B, 0xAE, 0x83, 0xE0
_PIXEL_CROP = (0x54CC, 0x54BB, 0x54DD, 0x54AA)


@dataclass(frozen=True)
class Crop:
    """Pixels that are cut off each side of a stored picture."""

    left: int
    top: int
    right: int
    bottom: int

    def __bool__(self) -> bool:
        return (self.left, self.top, self.right, self.bottom) != (0, 0, 0, 0)


NO_CROP = Crop(0, 0, 0, 0)
"""Of most files."""


def container_crop(path: Path, track: int, size: tuple[int, int]) -> Crop:
    """What is cut off the pictures, ``size`` (width, height), of the ``track``-th video track of a file.

    Nothing where the file does not say, is no such container, or asks for what cannot be.
    """
    try:
        with open(path, "rb") as file:
            begun = file.read(12)
            found = _matroska(file) if begun[:4] == EBML else _mp4(file, size)
            crop = list(found)[track] if begun[:4] == EBML or begun[4:8] in MP4 else NO_CROP
    except (OSError, IndexError, struct.error, ValueError, ZeroDivisionError):
        return NO_CROP
    width, height = size[0] - crop.left - crop.right, size[1] - crop.top - crop.bottom
    return crop if min(crop.left, crop.top, crop.right, crop.bottom) >= 0 and min(width, height) > 0 else NO_CROP


def _mp4(file: BinaryIO, size: tuple[int, int]) -> Iterator[Crop]:
    for kind, start, end in boxes(file, 0, file.seek(0, 2)):
        if kind == b"moov":
            for track, *place in boxes(file, start, end):
                if track == b"trak" and _content(file, place, b"mdia", b"hdlr")[8:12] == b"vide":
                    yield _clap(file, place, size)


def _content(file: BinaryIO, place: list[int], *path: bytes) -> bytes:
    """The first bytes of a box of a box, empty where there is none."""
    start, end = place
    for name in path:
        start, end = next((b for kind, *b in boxes(file, start, end) if kind == name), (0, 0))
    file.seek(start)
    return file.read(min(end - start, _LARGEST))


def _clap(file: BinaryIO, track: list[int], size: tuple[int, int]) -> Crop:
    start, end = track
    for name in (b"mdia", b"minf", b"stbl", b"stsd"):
        start, end = next((b for kind, *b in boxes(file, start, end) if kind == name), (0, 0))
    _, first, last = next(boxes(file, start + 8, end), (b"", 0, 0))
    content = _content(file, [first + _SAMPLE_ENTRY, last], b"clap")
    if not content:
        return NO_CROP
    values = struct.unpack(">8i", content[:32])
    width, height, x, y = (values[k] / values[k + 1] for k in (0, 2, 4, 6))
    left, top = round((size[0] - width) / 2 + x), round((size[1] - height) / 2 + y)
    return Crop(left, top, size[0] - left - round(width), size[1] - top - round(height))


def _matroska(file: BinaryIO) -> Iterator[Crop]:
    for segment, *place in elements(file, 0, file.seek(0, 2)):
        for kind, start, end in elements(file, *place) if segment == SEGMENT else ():
            if kind == _CLUSTER:
                return
            for entry, first, last in elements(file, start, end) if kind == _TRACKS else ():
                parts = {name: (a, b) for name, a, b in elements(file, first, last)} if entry == _ENTRY else {}
                if _TYPE in parts and _number(file, *parts[_TYPE]) == 1:
                    video = {name: (a, b) for name, a, b in elements(file, *parts.get(_VIDEO, (0, 0)))}
                    yield Crop(*(_number(file, *video[name]) if name in video else 0 for name in _PIXEL_CROP))


def _number(file: BinaryIO, start: int, end: int) -> int:
    file.seek(start)
    return int.from_bytes(file.read(min(end - start, 8)), "big")
