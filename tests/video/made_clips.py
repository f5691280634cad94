"""Clips made on the spot, whose files ask for this or that."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 96, 64
ONE = 1 << 16


def quarters(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Four grey levels, so that every turn and mirror image differs: 40, 90 above 140, 230."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2], image[: height // 2, width // 2 :] = 40, 90
    image[height // 2 :, : width // 2], image[height // 2 :, width // 2 :] = 140, 230
    return image


def levels(image: np.ndarray) -> list[int]:
    """The level in the middle of each quarter, row by row, to the nearest of those of ``quarters``."""
    h, w = image.shape[:2]
    values = [float(image[y, x].mean()) for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4)]
    return [min((40, 90, 140, 230), key=lambda level: abs(level - v)) for v in values]


def write_clip(path: Path, images: list[np.ndarray], *, aspect: Fraction | None = None, rate: int = 25) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "6", "g": "5"})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        encode(container, stream, images)
    return path


def encode(container, stream, images: list[np.ndarray], pix_fmt: str = "yuv420p", kind: str = "rgb24") -> None:
    for index, image in enumerate(images):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=kind).reformat(format=pix_fmt)
        frame.pts = index
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def with_matrix(clip: Path, a: int, b: int, c: int, d: int) -> Path:
    """The clip with a display matrix in its track header: x' = a x + c y, y' = b x + d y."""
    data = bytearray(clip.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    values = [a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30]
    data[place : place + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in values)
    clip.write_bytes(data)
    return clip
