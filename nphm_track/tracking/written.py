"""Which files an unfinished run may go on from: those that still are what it wrote."""

from __future__ import annotations

import zlib
from pathlib import Path
from types import TracebackType

import numpy as np

from nphm_track.tracking.observations import ObservationLog

RECORD = np.dtype([("name", "S96"), ("size", "<i8"), ("crc32", "<u4")])


class WrittenFiles:
    """A list of finished files with their sizes and checksums, kept in a log that survives what they may not.

    Files get their final names when they are whole, but not before they have reached the disk: that would cost more
    than writing them again. After a power cut some may be empty, or hold zeros. Such files are not ``in`` the list.

    Args:
        root: the folder that the files are in.
        log: the list's own file, with records of ``RECORD``.
    """

    def __init__(self, root: Path, log: ObservationLog) -> None:
        self.root, self._log = root, log
        self._known = {row["name"].decode(): (int(row["size"]), int(row["crc32"])) for row in np.array(log.read())}

    def add(self, path: Path) -> None:
        """A file is finished. Raises OSError when it cannot be read back."""
        name, state = self._name(path), _state(path)
        self._log.append(np.array([(name.encode(), *state)], RECORD))
        self._known[name] = state

    def __contains__(self, path: Path) -> bool:
        """Whether a file is there and holds what it held when it was added."""
        known = self._known.get(self._name(path))
        try:
            return known is not None and path.stat().st_size == known[0] and _state(path) == known
        except OSError:
            return False

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def close(self) -> None:
        self._log.close()

    def __enter__(self) -> WrittenFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _state(path: Path) -> tuple[int, int]:
    """Size in bytes and CRC-32."""
    size = checksum = 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            size, checksum = size + len(piece), zlib.crc32(piece, checksum)
    return size, checksum
