"""A face that moves a little: a portrait, cut out of a picture from a place that goes round."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

RATE, FRAMES = 25, 20


def portrait(i: int) -> NDArray[np.uint8]:
    """The ``i``-th picture [288, 384, 3]."""
    from skimage import data

    x, y = 40 + round(12 * np.sin(i / 6)), 10 + round(8 * np.cos(i / 6))
    return np.ascontiguousarray(data.astronaut()[y : y + 288, x : x + 384])


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("live") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 384, 288, "yuv420p"
        for i in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(portrait(i))))
        container.mux(stream.encode(None))
    return path
