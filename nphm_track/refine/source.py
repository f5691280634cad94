"""The geometry maps of a clip's frames, decoded and predicted as the refinement asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nphm_track.geometry.maps import GeometryMaps
from nphm_track.video.source import Frame, FrameSource

Predict = Callable[[Sequence[NDArray[np.uint8]], NDArray[np.int64]], GeometryMaps]
"""Maps of images [H, W, 3] uint8 RGB; the second argument are the rows of the clip they belong to."""


class ClipMaps:
    """A ``MapSource`` over a video; it reads forward and keeps only what the last call asked for.

    Frames go through the networks one at a time: in a batch the last bits of a frame's maps depend on the frames beside
    it, which differ after a resume, and the refinement has thresholds that make more of them.

    Args:
        source: the clip.
        positions: [T] which of the source's frames each row is, ascending.
        seen: [T] the rows in which there is a face; the others get maps of confidence 0.
        predict: the networks.
    """

    def __init__(
        self, source: FrameSource, positions: NDArray[np.int64], seen: NDArray[np.bool_], predict: Predict
    ) -> None:
        self.source, self.positions, self.seen, self.predict = source, positions, seen, predict
        self._kept: dict[int, tuple[Tensor, ...]] = {}
        self._frames: Iterator[Frame] = iter(())
        self._next: int | None = None  # position of the frame the iterator gives next

    def __call__(self, rows: NDArray[np.int64]) -> GeometryMaps:
        wanted = [int(row) for row in rows]
        self._kept = {row: maps for row, maps in self._kept.items() if row in wanted}
        for row in wanted:
            if row not in self._kept and self.seen[row]:
                maps = self.predict([self._image(row)], np.array([row]))
                self._kept[row] = tuple(getattr(maps, f.name)[0].cpu() for f in fields(maps))
        blank = self._blank()
        columns = zip(*(self._kept.get(row, blank) for row in wanted), strict=True)
        return GeometryMaps(*(torch.stack(column) for column in columns))

    def _image(self, row: int) -> NDArray[np.uint8]:
        position = int(self.positions[row])
        if self._next is None or position < self._next:
            self._frames, self._next = self.source.frames(position), position
        for frame in self._frames:
            self._next += 1
            if self._next > position:
                return frame.image
        raise IndexError(f"the clip ends before frame {position}")

    def _blank(self) -> tuple[Tensor, ...]:
        """The maps of a frame in which nobody is seen, of the others' size."""
        like = next(iter(self._kept.values()), None)
        if like is None:
            like = (*(torch.empty(8, 8, 3),) * 2, *(torch.empty(8, 8),) * 2, torch.empty(5), torch.empty(3, 8, 8))
        empty = dict(zip((f.name for f in fields(GeometryMaps)), map(torch.zeros_like, like), strict=True))
        return tuple((empty | {"rois": torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0])}).values())
