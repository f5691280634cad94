"""Cropping that a container asks for: ``clap`` of MP4 and MOV (ISO/IEC 14496-12), ``PixelCrop`` of Matroska (RFC 9559).

FFmpeg reads both, but PyAV gives no access to what it has read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_LARGEST = 4096
"""Bytes of an element whose content is read."""
_SAMPLE_ENTRY = 78
"""Bytes of a video sample entry before its boxes."""
_SEGMENT, _CLUSTER, _TRACKS, _ENTRY, _TYPE, _VIDEO = 0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE, 0x83, 0xE0
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
            found = _matroska(file) if begun[:4] == b"\x1aE\xdf\xa3" else _mp4(file, size)
            crop = list(found)[track] if begun[:4] == b"\x1aE\xdf\xa3" or begun[4:8] in _FIRST else NO_CROP
    except (OSError, IndexError, struct.error, ValueError, ZeroDivisionError):
        return NO_CROP
    width, height = size[0] - crop.left - crop.right, size[1] - crop.top - crop.bottom
    return crop if min(crop.left, crop.top, crop.right, crop.bottom) >= 0 and min(width, height) > 0 else NO_CROP


_FIRST = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
"""Boxes that MP4 and MOV files begin with."""


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, first and last byte of the content of each box of MP4 between two places."""
    while start + 8 <= end:
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1:
            (size,), head = struct.unpack(">Q", file.read(8)), 16
        size = size or end - start
        if size < head:
            return
        yield kind, start + head, min(start + size, end)
        start += size


def _mp4(file: BinaryIO, size: tuple[int, int]) -> Iterator[Crop]:
    for kind, start, end in _boxes(file, 0, file.seek(0, 2)):
        if kind == b"moov":
            for track, *place in _boxes(file, start, end):
                if track == b"trak" and _content(file, place, b"mdia", b"hdlr")[8:12] == b"vide":
                    yield _clap(file, place, size)


def _content(file: BinaryIO, place: list[int], *path: bytes) -> bytes:
    """The first bytes of a box of a box, empty where there is none."""
    start, end = place
    for name in path:
        start, end = next((b for kind, *b in _boxes(file, start, end) if kind == name), (0, 0))
    file.seek(start)
    return file.read(min(end - start, _LARGEST))


def _clap(file: BinaryIO, track: list[int], size: tuple[int, int]) -> Crop:
    start, end = track
    for name in (b"mdia", b"minf", b"stbl", b"stsd"):
        start, end = next((b for kind, *b in _boxes(file, start, end) if kind == name), (0, 0))
    _, first, last = next(_boxes(file, start + 8, end), (b"", 0, 0))
    content = _content(file, [first + _SAMPLE_ENTRY, last], b"clap")
    if not content:
        return NO_CROP
    values = struct.unpack(">8i", content[:32])
    width, height, x, y = (values[k] / values[k + 1] for k in (0, 2, 4, 6))
    left, top = round((size[0] - width) / 2 + x), round((size[1] - height) / 2 + y)
    return Crop(left, top, size[0] - left - round(width), size[1] - top - round(height))


def _elements(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Identifier, first and last byte of the content of each element of Matroska between two places."""
    while start < end:
        file.seek(start)
        identifier, _ = _varint(file, keep_marker=True)
        size, unknown = _varint(file)
        first = file.tell()
        last = end if unknown else min(first + size, end)
        yield identifier, first, last
        start = last


def _varint(file: BinaryIO, *, keep_marker: bool = False) -> tuple[int, bool]:
    """A number of one to eight bytes, and whether all its bits are set: a size that is not known."""
    (first,) = file.read(1) or b"\0"
    length = 9 - first.bit_length()
    if length > 8:
        raise ValueError("no EBML")
    value = int.from_bytes(bytes([first]) + file.read(length - 1), "big")
    bits = value & ((1 << 7 * length) - 1)
    return (value if keep_marker else bits), bits == (1 << 7 * length) - 1


def _matroska(file: BinaryIO) -> Iterator[Crop]:
    for segment, *place in _elements(file, 0, file.seek(0, 2)):
        for kind, start, end in _elements(file, *place) if segment == _SEGMENT else ():
            if kind == _CLUSTER:
                return
            for entry, first, last in _elements(file, start, end) if kind == _TRACKS else ():
                parts = {name: (a, b) for name, a, b in _elements(file, first, last)} if entry == _ENTRY else {}
                if _TYPE in parts and _number(file, *parts[_TYPE]) == 1:
                    video = {name: (a, b) for name, a, b in _elements(file, *parts.get(_VIDEO, (0, 0)))}
                    yield Crop(*(_number(file, *video[name]) if name in video else 0 for name in _PIXEL_CROP))


def _number(file: BinaryIO, start: int, end: int) -> int:
    file.seek(start)
    return int.from_bytes(file.read(min(end - start, 8)), "big")
