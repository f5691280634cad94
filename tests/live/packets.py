"""Readers of the packets, written from the protocols and not from the code that writes them."""

from __future__ import annotations

import struct
from typing import Any


def read_live_link(data: bytes) -> dict[str, Any]:
    """As the readers people use do: a little-endian version in front of an identifier whose length they take for
    its first letter, the name at byte 41."""
    (length,) = struct.unpack_from("!i", data, 41)
    end = 45 + length
    frame, part, rate, denominator, count = struct.unpack_from("!if2ib", data, end)
    assert len(data) == end + 17 + 4 * count
    return {
        "version": struct.unpack_from("<B", data)[0],
        "device": data[5:41].decode(),
        "name": data[45:end].decode(),
        "time": (frame + part) * denominator / rate,
        "values": struct.unpack_from(f"!{count}f", data, end + 17),
    }


def read_osc(data: bytes) -> list[tuple[str, list[Any]]]:
    """Messages of an OSC 1.0 packet, bundled or not."""
    if not data.startswith(b"#bundle\0"):
        return [_message(data)]
    out, place = [], 16
    while place < len(data):
        (size,) = struct.unpack_from(">i", data, place)
        assert size % 4 == 0 and size > 0
        out += read_osc(data[place + 4 : place + 4 + size])
        place += 4 + size
    assert place == len(data)
    return out


def _message(data: bytes) -> tuple[str, list[Any]]:
    address, place = _string(data, 0)
    tags, place = _string(data, place)
    assert tags[0] == ","
    values: list[Any] = []
    for tag in tags[1:]:
        if tag == "s":
            text, place = _string(data, place)
            values.append(text)
        else:
            values.append(struct.unpack_from({"i": ">i", "f": ">f"}[tag], data, place)[0])
            place += 4
    assert place == len(data)
    return address, values


def _string(data: bytes, place: int) -> tuple[str, int]:
    end = data.index(b"\0", place)
    return data[place:end].decode(), end + 4 - (end - place) % 4
