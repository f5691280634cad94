"""Media files: opening one with PyAV, whichever of its versions is installed, and the parts it is made of, for what
PyAV does not tell (ISO/IEC 14496-12, RFC 9559).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.container import InputContainer

# Titles and comments that are not UTF-8 must not cost the video. Newer versions never fail over them and have dropped
# the option, which older ones need.
_TOLERANT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def open_container(path: str | Path) -> InputContainer:
    """A local media file opened for reading; raises av.FFmpegError, OSError or ValueError when it is none."""
    return av.open(f"file:{path}", **_TOLERANT)


EBML = b"\x1aE\xdf\xa3"
"""What Matroska files begin with."""
SEGMENT = 0x18538067
MP4 = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
"""Boxes that MP4 and MOV files begin with."""
_CONTENT = (b"moov", b"mdat", b"moof")
"""Boxes that are believed: what cameras append to a file is none, and looks like anything."""
_OPEN_END = (0, 0xFFFFFFFF)
"""Sizes of an AVI file whose recorder never came to write one."""


def missing_bytes(path: str | Path) -> int:
    """How much of an MP4, MOV, Matroska or AVI file is not there, by the sizes that it states: a copy or download that
    broke off. 0 for a whole file, for other kinds and where no size is stated.
    """
    parts: list[int] = []
    try:
        with open(path, "rb") as file:
            length = file.seek(0, 2)
            file.seek(0)
            begun = file.read(12)
            if begun[:4] == EBML:
                parts = [last for kind, _, last in elements(file, 0, length, whole=True) if kind == SEGMENT]
            elif begun[:4] == b"RIFF":
                size = int.from_bytes(begun[4:8], "little")
                parts = [] if size in _OPEN_END else [8 + size]
            elif begun[4:8] in MP4:
                parts = [last for kind, _, last in boxes(file, 0, length, whole=True) if kind in _CONTENT]
    except (OSError, struct.error, ValueError):
        return 0
    return max(0, max(parts, default=0) - length)


def boxes(file: BinaryIO, start: int, end: int, *, whole: bool = False) -> Iterator[tuple[bytes, int, int]]:
    """Type, first and last byte of the content of each box of MP4 between two places; with ``whole``, the last one ends
    where it says, though that be behind ``end``.
    """
    while start + 8 <= end:
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1:
            (size,), head = struct.unpack(">Q", file.read(8)), 16
        size = size or end - start
        if size < head:
            return
        yield kind, start + head, start + size if whole else min(start + size, end)
        start += size


def elements(file: BinaryIO, start: int, end: int, *, whole: bool = False) -> Iterator[tuple[int, int, int]]:
    """Identifier, first and last byte of the content of each element of Matroska between two places, likewise."""
    while start < end:
        file.seek(start)
        identifier, _ = _varint(file, keep_marker=True)
        size, unknown = _varint(file)
        first = file.tell()
        last = end if unknown else first + size if whole else min(first + size, end)
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
