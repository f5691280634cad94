"""Append-only log of fixed-size records that survives a killed writer, a power cut and a torn disk."""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

CHECKSUM = "crc32"


class ObservationLog:
    """Records of one structured dtype in a flat file, each followed by its checksum.

    On opening, the log is cut off at the first record that is torn or not what was written (a power cut leaves blocks
    of zeros): what is left can be gone on from.

    Args:
        path: the file; its folder is made.
        dtype: of the records.
        guard: called before anything is written; raises when this process must not write any more.
    """

    def __init__(self, path: str | Path, dtype: np.dtype[Any], guard: Callable[[], None] = lambda: None) -> None:
        if dtype.hasobject or dtype.itemsize == 0:
            raise ValueError(f"records need a fixed size, got {dtype}")
        self.path, self.dtype, self._guard = Path(path), dtype, guard
        self._stored = np.dtype([("record", dtype), (CHECKSUM, "<u4")])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab")  # noqa: SIM115 - open for the log's life
        self._length = os.fstat(self._file.fileno()).st_size // self._stored.itemsize
        self._length = self._sound()
        self._file.truncate(self._length * self._stored.itemsize)

    def __len__(self) -> int:
        """Complete records."""
        return self._length

    def append(self, record: Any) -> None:
        """Add a record, or an array of them; they outlive the process once this returns."""
        self._guard()
        records = np.atleast_1d(np.asarray(record, self.dtype))
        stored = np.zeros(len(records), self._stored)
        stored["record"], stored[CHECKSUM] = records, _checksums(records)
        self._file.write(stored.tobytes())
        self._file.flush()
        self._length += len(records)

    def truncate(self, length: int) -> None:
        """Forget the records from ``length`` on."""
        if length < self._length:
            self._guard()
            self._file.truncate(length * self._stored.itemsize)
            self._length = length

    def read(self) -> np.ndarray[Any, np.dtype[Any]]:
        """All records so far [N], mapped rather than loaded. Fields of the result are views on the map."""
        if not self._length:
            return np.empty(0, self.dtype)
        return np.memmap(self.path, self._stored, mode="r", shape=(self._length,))["record"]

    def _sound(self) -> int:
        """How many records from the first on are what was written."""
        if not self._length:
            return 0
        count = 0
        for piece in pieces(np.memmap(self.path, self._stored, mode="r", shape=(self._length,))):
            good = piece[CHECKSUM] == _checksums(np.ascontiguousarray(piece["record"]))
            if not good.all():
                return count + int(good.argmin())
            count += len(piece)
        return count

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> ObservationLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _checksums(records: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Of each record [N]."""
    return np.array([zlib.crc32(record.tobytes()) for record in records], "<u4")


def pieces(array: np.ndarray[Any, Any], rows: int = 1024) -> Iterator[np.ndarray[Any, Any]]:
    """An array in pieces of ``rows`` rows. Pages of a mapped one are given back after each piece: memory stays flat."""
    for k in range(0, max(len(array), 1), rows):
        yield array[k : k + rows]
        release(array)


def release(array: np.ndarray[Any, Any]) -> None:
    """Give the pages of a mapped array back to the system; they are read again when needed."""
    mapping = getattr(array, "_mmap", None)
    if isinstance(mapping, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def column(records: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    """A copy of one field of mapped records."""
    return np.concatenate([np.array(piece[name]) for piece in pieces(records)])
