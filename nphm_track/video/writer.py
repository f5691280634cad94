"""H.264 videos with the source's timestamps and sound; single images behind the same interface."""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nphm_track.errors import InputError, OutputError
from nphm_track.video.sound import SoundTrack

_CLOCK = Fraction(1, 90_000)
_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
_BT709 = 1  # FFmpeg's number for the matrix, primaries and transfer of HD video


class VideoWriter:
    """Writes frames at their own times; the file appears under its name only when it is complete.

    Args:
        path: an .mp4 file; until ``close`` the frames go to ``<stem>.partial.mp4`` beside it.
        size: (width, height) of the images; odd sizes are padded to even ones by repeating the edge.
        frame_rate_hint: frames per second, for the last frame's duration and the encoder's rate control.
        source: a file whose sound is kept, as it is where mp4 can hold it; it is cut to the frames' time span.
        origin: source time that becomes 0 in the file (``FrameSource.clip_origin``), seconds.

    As a context manager it closes, or on an exception removes what it wrote. ``warning`` is set when the sound could
    not be kept. Raises OutputError when the file cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        size: tuple[int, int],
        *,
        frame_rate_hint: float | None = None,
        source: str | Path | None = None,
        origin: float = 0.0,
    ) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(f"{self.path.stem}.partial.mp4")
        self.size, self.origin = size, origin
        self.warning: str | None = None
        rate = Fraction(min(max(frame_rate_hint or 25.0, 1.0), 240.0)).limit_denominator(1001)
        self._step = round(1 / rate / _CLOCK)
        self._last_pts: int | None = None
        self._sound: SoundTrack | None = None
        try:
            self.partial.write_bytes(b"")  # FFmpeg itself looks at the place only when the first packet comes
        except OSError as error:
            raise self._failure(error) from None
        self._container = av.open(f"file:{self.partial}", "w", format="mp4", options={"movflags": "+faststart"})
        try:
            # No B-frames: with them x264 reads memory of its own that it has not set, in small pictures.
            options = {"crf": "20", "preset": "veryfast", "bf": "0"}
            self._video = self._container.add_stream("libx264", rate=rate, options=options)
            self._video.width, self._video.height = size[0] + size[0] % 2, size[1] + size[1] % 2
            self._video.pix_fmt = "yuv420p"
            self._video.time_base = self._video.codec_context.time_base = _CLOCK
            context = self._video.codec_context
            context.colorspace = context.color_primaries = context.color_trc = context.color_range = _BT709
            if source is not None:
                self._sound = self._open_sound(Path(source))
        except (av.FFmpegError, OSError) as error:
            self.abort()
            raise self._failure(error) from None

    def write(self, image: NDArray[np.uint8], time: float) -> None:
        """Append an image [H, W, 3] RGB shown from ``time`` (seconds, the source's clock), after the last one."""
        width, height = self.size
        if image.shape != (height, width, 3):
            raise ValueError(f"expected an image of shape {(height, width, 3)}, got {image.shape}")
        if width % 2 or height % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
        pts = round((time - self.origin) / _CLOCK)
        floor = 0 if self._last_pts is None else self._last_pts + 1
        frame.pts, frame.time_base, frame.duration = max(pts, floor), _CLOCK, self._step
        try:
            self._container.mux(self._video.encode(frame))
            if self._sound is not None:
                self._sound.advance(frame.pts * float(_CLOCK))
        except (av.FFmpegError, OSError) as error:
            self.abort()
            raise self._failure(error) from None
        if self._last_pts is not None:
            self._step = frame.pts - self._last_pts
        self._last_pts = frame.pts

    def close(self) -> None:
        """Finish the file and give it its name; without frames there is no file."""
        if self._last_pts is None:
            return self.abort()
        try:
            self._container.mux(self._video.encode(None))
            if self._sound is not None:
                self._sound.finish((self._last_pts + self._step) * float(_CLOCK))
                self.warning = self._sound.warning
            self._container.close()
            os.replace(self.partial, self.path)
        except (av.FFmpegError, OSError) as error:
            self.abort()
            raise self._failure(error) from None

    def abort(self) -> None:
        """Drop what was written."""
        if self._sound is not None:
            self._sound.close()
        with contextlib.suppress(av.FFmpegError, OSError):
            self._container.close()
        with contextlib.suppress(OSError):
            self.partial.unlink(missing_ok=True)

    def _open_sound(self, source: Path) -> SoundTrack | None:
        try:
            return SoundTrack(source, self._container, self.origin)
        except LookupError:
            return None
        except (av.FFmpegError, OSError, ValueError) as error:
            self.warning = f"the sound of {source} cannot be read ({getattr(error, 'strerror', None) or error})"
            return None

    def _failure(self, error: Exception) -> OutputError:
        return OutputError(f"cannot write {self.path}: {getattr(error, 'strerror', None) or error}")

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class ImageWriter:
    """Writes one image, atomically, in the format its suffix names. Raises InputError for another suffix."""

    warning: str | None = None

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in _IMAGES:
            raise InputError(f"the overlay of an image is an image, too: {self.path} does not end in .png or .jpg")

    def write(self, image: NDArray[np.uint8], time: float) -> None:
        """Write an image [H, W, 3] RGB; ``time`` is that of ``VideoWriter``. Raises OutputError when it cannot."""
        partial = self.path.with_name(self.path.name + ".partial")
        try:
            Image.fromarray(image).save(partial, Image.registered_extensions()[self.path.suffix.lower()])
            os.replace(partial, self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from None

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, *_: object) -> None:
        return None
