"""Image files as 8-bit RGB pictures: photographs, and the plates of film work (12 and 16 bits, float, EXR, DPX)."""

from __future__ import annotations

import contextlib
import io
import logging
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from nphm_track.errors import InputError
from nphm_track.files.images import LARGEST_FILE, open_image
from nphm_track.files.reading import open_regular
from nphm_track.video.containers import open_container
from nphm_track.video.presentation import over_white

BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, EOFError, ArithmeticError, struct.error,
    zlib.error,
)  # fmt: skip
"""What Pillow raises for damaged files; UnidentifiedImageError is an OSError."""
PLATES = frozenset({".exr", ".dpx"})
"""Suffixes that FFmpeg reads and Pillow does not."""
_BRANDS = {
    "HEIF": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"),
    "AVIF": (b"avif", b"avis"),
}
"""Major brands of the two families of ISO pictures; phones give them other names than their own."""
_BY_SUFFIX = {".tga": "TGA", ".ppm": "PPM", ".pgm": "PPM", ".jp2": "JPEG2000"}
"""Formats that are read where the name says so."""
_WHITES = (1023, 4095, 65535)
"""White of 10, 12 and 16 bits in a 16-bit file, which seldom says how many it uses."""
_ROWS = 256
_BRIGHTEST_LIGHT = 64.0
"""Float values up to here are light, 1 at diffuse white; beyond, they are display values of 0..255."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """RGB [H, W, 3] of an image file: EXIF orientation applied, transparency over white, deep pictures brought to 8
    bits. Raises InputError when it cannot be read.
    """
    suffix = path.suffix.lower()
    try:
        open_regular(path, LARGEST_FILE).close()
        if suffix in PLATES:
            return to_8_bits(_plate(path))
        if suffix in (".tif", ".tiff") and (deep := _deep_tiff(path)) is not None:
            return to_8_bits(deep)
        with opened(path) as file:
            ImageOps.exif_transpose(file, in_place=True)
            file = in_srgb(file)
            return to_8_bits(np.asarray(file)) if file.mode.startswith(("I", "F")) else flatten(file)
    except Image.DecompressionBombError:
        raise InputError(f"{path}: the image is too large") from None
    except (*BROKEN, av.FFmpegError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a readable image"
        raise InputError(f"{path}: {reason}") from None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image file, without Pillow's warnings: what matters is an error, and the rest is not the user's."""
    with open_regular(path, LARGEST_FILE) as begun:
        brand = begun.read(12)[4:]
    more = tuple(name for name, brands in _BRANDS.items() if brand[:4] == b"ftyp" and brand[4:] in brands)
    more += tuple(name for suffix, name in _BY_SUFFIX.items() if path.suffix.lower() == suffix)
    if "HEIF" in more:
        _enable_heif(path)
    with open_image(path, more) as file:
        yield file


def _enable_heif(path: Path) -> None:
    """FFmpeg would give one tile of such a picture."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise InputError(f"{path}: HEIC pictures need an extra; pip install 'nphm-track[heic]'") from None
    register_heif_opener()


def in_srgb(image: Image.Image) -> Image.Image:
    """The picture in the colours of sRGB, when it brings a profile of others along (Display P3 of phones, Adobe RGB, a
    printer's CMYK); one that is damaged or of another kind of picture is passed over.
    """
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    with contextlib.suppress(ImportError, OSError, ValueError, TypeError, ImageCms.PyCMSError):
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" not in ImageCms.getProfileDescription(given).lower():
            mode = "RGB" if image.mode == "CMYK" else image.mode
            return ImageCms.profileToProfile(image, given, ImageCms.createProfile("sRGB"), outputMode=mode) or image
    return image


def flatten(image: Image.Image) -> NDArray[np.uint8]:
    """RGB [H, W, 3] of an 8-bit image of any mode, over white where it is transparent."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """RGB [H, W, 3] of grey [H, W] or colour [H, W, 3 or 4] values deeper than 8 bits.

    Integers up to 255 stay; larger ones are parts of 10, 12 or 16 bits, whichever the brightest fits. Floats are light,
    encoded as sRGB, unless they are display values already.
    """
    white = max(float(np.nanmax(values, initial=0)), 0.0)
    image: NDArray[np.uint8] = np.empty_like(values, np.uint8)
    for row in range(0, len(values), _ROWS):  # a whole picture in floats would be many times the file
        image[row : row + _ROWS] = _shown(values[row : row + _ROWS], white)
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return over_white(image) if image.shape[2] == 4 else image


def _shown(values: NDArray[Any], white: float) -> NDArray[np.uint8]:
    """Display values of a picture, or of rows of it, whose brightest value is ``white``."""
    shown = np.nan_to_num(values.astype(np.float32))
    if values.dtype.kind == "f" and white <= _BRIGHTEST_LIGHT:
        light = np.clip(shown, 0, 1)
        shown = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
        if values.ndim == 3 and values.shape[2] == 4:
            shown[..., 3] = 255 * light[..., 3]
    elif white > 255:
        shown *= 255 / next((limit for limit in _WHITES if white <= limit), white)
    return np.clip(shown + 0.5, 0, 255).astype(np.uint8)


def _deep_tiff(path: Path) -> NDArray[Any] | None:
    """Values of a TIFF with more than 8 bits a sample, of which Pillow keeps the upper 8; None for others."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it reports every tag that is wrong; one line says it all
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            limit = Image.MAX_IMAGE_PIXELS or np.inf
            if page.dtype is None or page.dtype.itemsize < 2 or np.prod(page.shape) > 4 * limit:
                return None
            values = page.asarray()
    except (tifffile.TiffFileError, *BROKEN):
        return None  # Pillow says why
    if values.ndim == 3 and values.shape[0] in (1, 3, 4) and values.shape[2] not in (1, 3, 4):
        values = np.moveaxis(values, 0, 2)  # a plane for each colour
    readable = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (1, 3, 4))
    return values if readable else None


def _plate(path: Path) -> NDArray[Any]:
    """Values of an EXR (float) or DPX (16 bits) picture."""
    with open_container(path) as container:
        frame = next(container.decode(video=0))
    name = frame.format.name
    if "f32" in name or "f16" in name:
        return frame.to_ndarray(format="gbrpf32le")
    return frame.to_ndarray(format="rgb48le")
