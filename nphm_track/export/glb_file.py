"""The binary glTF file: its chunks, and arrays with their accessors."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

BYTE, UINT, FLOAT = 5121, 5125, 5126
VERTEX_DATA, INDEX_DATA = 34962, 34963
WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}


class Buffer:
    """The binary chunk: arrays with their accessors."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.length = 0
        self.views: list[dict[str, int]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, values: ArrayLike, type: str, *, target: int | None = None, bounds: bool = False) -> int:
        """Index of the accessor of an array: uint8 as it is, other integers as uint32, the rest as float32.

        Rows are elements; those of uint8 have four components.
        """
        array = np.asarray(values)
        kind = BYTE if array.dtype == np.uint8 else UINT if array.dtype.kind in "iu" else FLOAT
        array = np.ascontiguousarray(array, {BYTE: "u1", UINT: "<u4", FLOAT: "<f4"}[kind])
        width = WIDTH[type]
        accessor = {
            "bufferView": self._view(array, target),
            "componentType": kind,
            "count": array.size // width,
            "type": type,
        }
        if bounds:
            table = array.reshape(-1, width)
            accessor |= {"min": table.min(0).tolist(), "max": table.max(0).tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def displacements(self, points: NDArray[np.floating]) -> int:
        """Index of the accessor of vectors [V, 3], most of which may be zero."""
        moving = np.flatnonzero(points.any(1))
        if not len(moving):  # zeros take no room
            zero = [0.0, 0.0, 0.0]
            self.accessors.append(
                {"componentType": FLOAT, "count": len(points), "type": "VEC3", "min": zero, "max": zero}
            )
            return len(self.accessors) - 1
        if not sparse(len(moving), len(points)):
            return self.add(points, "VEC3", target=VERTEX_DATA, bounds=True)
        values = np.ascontiguousarray(points[moving], "<f4")
        self.accessors.append(
            {
                "componentType": FLOAT,
                "count": len(points),
                "type": "VEC3",
                "min": values.min(0, initial=0).tolist(),
                "max": values.max(0, initial=0).tolist(),
                "sparse": {
                    "count": len(moving),
                    "indices": {"bufferView": self._view(moving.astype("<u4")), "componentType": UINT},
                    "values": {"bufferView": self._view(values)},
                },
            }
        )
        return len(self.accessors) - 1

    def add_file(self, data: bytes) -> int:
        """Index of the view of a file."""
        view = self._view(np.frombuffer(data + bytes(-len(data) % 4), np.uint8))
        self.views[view]["byteLength"] = len(data)
        return view

    def _view(self, array: NDArray[Any], target: int | None = None) -> int:
        self.views.append({"buffer": 0, "byteOffset": self.length, "byteLength": array.nbytes})
        if target is not None:
            self.views[-1]["target"] = target
        self.parts.append(array.tobytes())
        self.length += array.nbytes  # elements have four bytes or a multiple: alignment is kept
        return len(self.views) - 1


def write_chunks(path: Path, content: dict[str, Any], buffer: Buffer) -> None:
    """Write the file: its JSON chunk and its binary one."""
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    with open(path, "wb") as file:
        file.write(struct.pack("<4sII", b"glTF", 2, 28 + len(text) + buffer.length))
        file.write(struct.pack("<I4s", len(text), b"JSON") + text)
        file.write(struct.pack("<I4s", buffer.length, b"BIN\0"))
        file.writelines(buffer.parts)


def sparse(moving: int, vertices: int) -> bool:
    """Whether a target that moves so many of the vertices takes less room with their numbers beside them."""
    return 16 * moving < 12 * vertices
