"""Pictures through Pillow: the formats that are meant and no others, in a bounded size."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import EpsImagePlugin, Image

from nphm_track.files.reading import open_regular

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""What is read, whatever a file is called (MPO counts as JPEG); of the others, some start programs."""
LARGEST_FILE = 2 << 30
"""Bytes."""


@contextmanager
def open_image(path: str | Path, more: tuple[str, ...] = ()) -> Iterator[Image.Image]:
    """An image file, lazily, without Pillow's warnings: what matters is an error, and the rest is not the user's.

    ``more`` names further formats of Pillow's that are meant. Raises OSError, ValueError or
    Image.DecompressionBombError, and reading its pixels whatever Pillow raises.
    """
    with warnings.catch_warnings(), open_regular(path, LARGEST_FILE) as file:
        warnings.simplefilter("ignore")
        with Image.open(file, formats=FORMATS + more) as image:
            yield image


@contextmanager
def without_programs() -> Iterator[None]:
    """While other libraries open pictures through Pillow, none of them starts Ghostscript."""
    before = EpsImagePlugin.gs_binary
    EpsImagePlugin.gs_binary = False
    try:
        yield
    finally:
        EpsImagePlugin.gs_binary = before
