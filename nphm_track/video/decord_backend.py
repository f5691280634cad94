"""Videos through decord, an optional reader behind the same interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import InputError
from nphm_track.video.pyav_backend import AvSource


class DecordSource(AvSource):
    """Like ``AvSource``, which describes the file and knows its rotation, but decord decodes the pictures."""

    def __init__(
        self, path: Path, start: float | None, end: float | None, every: int, stream_number: int | None = None
    ) -> None:
        try:
            import decord
        except (ImportError, OSError) as error:
            raise InputError(f"decord is not usable ({error}); pip install 'nphm-track[decord]'") from None
        super().__init__(path, start, end, every, stream_number)
        for unable in self._beyond_decord():
            raise InputError(f"{path}: decord cannot show it as the file asks ({unable}); use the default backend")
        try:
            self._reader = decord.VideoReader(str(path), num_threads=2)
        except (decord.DECORDError, RuntimeError):
            raise InputError(f"{path}: decord cannot read this video; use the default backend") from None

    def _beyond_decord(self) -> Iterator[str]:
        """What decord would do wrong without a word."""
        yield from self.info.notes
        if self.streams > 1:
            yield "several video streams"
        if self.trimmed:
            yield "an edit list"
        if self.format == "mpegts":  # recordings of broadcasts: decord would squeeze pictures of another shape
            yield "a transport stream"

    def pictures(self) -> Iterator[tuple[float, int]]:  # type: ignore[override]
        for index in range(len(self._reader)):  # decord's clock starts at the stream's beginning, not the container's
            yield float(self._reader.get_frame_timestamp(index)[0]) + self.first_time, index

    def develop(self, picture: int) -> NDArray[np.uint8]:  # type: ignore[override]
        image = self._reader[picture].asnumpy()
        if image.shape != (self.info.height, self.info.width, 3):  # seen with very small turned videos
            raise InputError(f"{self.path}: decord misreads this video; use the default backend")
        return image
