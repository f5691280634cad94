"""Packets of Epic's Live Link Face app, which Unreal Engine and many other programs listen for on UDP port 11111.

In network byte order: version (one byte, 6), identifier of the device and name of the subject (each its length as int32
and UTF-8), frame number (int32) and part of a frame (float32) at a rate (numerator and denominator, int32), count of
the values (one byte, 61), the values (float32) in the order of ``export.blendshapes.HEADER``. Readers that are not
Epic's find the name at byte 41, so that the identifier has 36 characters.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence

from nphm_track.export.blendshapes import TIMECODE_RATE

PORT = 11111
VERSION = 6
MOST_NAME = 255
"""Bytes of a subject's name; readers refuse longer packets."""


class LiveLinkFace:
    """Packets of one subject, of one device."""

    def __init__(self, subject: str, device: uuid.UUID | None = None) -> None:
        name = subject.encode()[:MOST_NAME].decode(errors="ignore")
        self._head = struct.pack("!B", VERSION) + _text(str(device or uuid.uuid4()).upper()) + _text(name)

    def packet(self, time: float, values: Sequence[float]) -> bytes:
        """The packet of a moment (seconds, not below 0) with the 61 values of a row of the app's CSV."""
        frame, part = divmod(time * TIMECODE_RATE, 1)
        moment = struct.pack("!ifii", int(frame), part, TIMECODE_RATE, 1)
        return self._head + moment + struct.pack(f"!B{len(values)}f", len(values), *values)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("!i", len(data)) + data
