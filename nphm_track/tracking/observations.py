"""Append-only log of fixed-size records that survives being killed at any moment."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np


class ObservationLog:
    """Records of one structured dtype in a flat file. A torn last record (killed writer) is cut off on opening."""

    def __init__(self, path: str | Path, dtype: np.dtype[Any]) -> None:
        if dtype.hasobject or dtype.itemsize == 0:
            raise ValueError(f"records need a fixed size, got {dtype}")
        self.path = Path(path)
        self.dtype = dtype
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab")  # noqa: SIM115 - open for the log's life
        self._length = os.fstat(self._file.fileno()).st_size // dtype.itemsize
        self._file.truncate(self._length * dtype.itemsize)

    def __len__(self) -> int:
        """Complete records."""
        return self._length

    def append(self, record: Any) -> None:
        """Add a record, or an array of them; they outlive the process once this returns."""
        records = np.atleast_1d(np.asarray(record, self.dtype))
        self._file.write(records.tobytes())
        self._file.flush()
        self._length += len(records)

    def truncate(self, length: int) -> None:
        """Forget the records from ``length`` on."""
        if length < self._length:
            self._file.truncate(length * self.dtype.itemsize)
            self._length = length

    def read(self) -> np.ndarray[Any, np.dtype[Any]]:
        """All records so far [N], mapped rather than loaded. Fields of the result are views on the map."""
        if not self._length:
            return np.empty(0, self.dtype)
        return np.memmap(self.path, self.dtype, mode="r", shape=(self._length,))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> ObservationLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


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
