"""Videos through PyAV (FFmpeg): the default reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from nphm_track.errors import InputError
from nphm_track.video.containers import missing_bytes, open_container
from nphm_track.video.cropping import container_crop
from nphm_track.video.presentation import Developer, Presentation, cropped, deinterlaced
from nphm_track.video.source import FrameSource, VideoInfo

LONGEST_PAUSE = 3600.0
"""Seconds between two frames; more is no pause but a clock that was set (and more than an MP4 file can hold)."""
FASTEST = 10_000
"""Frames per second; what is said to be faster is no rate."""
_TEXT = frozenset({"tty", "txt", "srt", "ass", "webvtt"})  # formats FFmpeg "recognises" in plain text
_POINTERS = frozenset({"hls", "dash", "concat", "sdp", "rtsp", "rtp"})  # files that name other files or hosts to read


class AvSource(FrameSource):
    """A video file; each pass opens it anew and holds a few frames at a time."""

    def __init__(
        self, path: Path, start: float | None, end: float | None, every: int, stream_number: int | None = None
    ) -> None:
        super().__init__(start, end, every)
        self.path, self._stream_number = path, stream_number
        with _open(path) as container:
            stream = video_stream(container, path, stream_number)
            errors: list[str] = []
            frame = next(_decode(container, stream, errors), None)
            if frame is None:
                reason = f" ({errors[0]})" if errors else ""
                raise InputError(f"{path}: no frame can be decoded{reason}")
            track = list(container.streams.video).index(stream)
            crop = container_crop(path, track, (frame.width, frame.height))
            self.presentation = Presentation.of(stream, frame, crop)
            self.info = _describe(path, container, stream, self.presentation)
            self._counted = stream.frames > 0  # the container knows, rather than guesses, how many there are
            self.streams, self.format = len(_pictured(container)), container.format.name
            self.trimmed = stream.frames > (self.info.frame_count or 0)
            self.origin = (container.start_time or 0) / av.time_base
            self.first_time = self.origin if frame.time is None else frame.time
        self._develop = Developer(self.presentation, self.origin)

    def pictures(self) -> Iterator[tuple[float, VideoFrame]]:
        errors: list[str] = []
        count, last, shift = 0, -np.inf, 0.0
        step = 1.0 / (self.info.frame_rate or 25.0)
        with _open(self.path) as container:
            stream = video_stream(container, self.path, self._stream_number)
            frames = cropped(deinterlaced(_decode(container, stream, errors)), self.presentation)
            for count, frame in enumerate(frames, start=1):
                time = frame.time
                if time is None:
                    time = last + step if count > 1 else self.first_time
                elif count > 1 and not -1.0 <= time + shift - last <= LONGEST_PAUSE:  # the clock was set in mid-stream
                    shift = last + step - time
                last = max(time + shift, last + 1e-5)
                yield last, frame
        if count and (missing := missing_bytes(self.path)):
            self.warning = f"{self.path}: incomplete, {count} frames could be decoded ({missing} bytes are missing)"
        elif count and errors:
            self.warning = f"{self.path}: damaged, {count} frames could be decoded ({errors[0]})"
        elif self._counted and count < 0.9 * (self.info.frame_count or 0):
            self.warning = f"{self.path}: ends early, {count} of {self.info.frame_count} frames could be decoded"

    def develop(self, picture: VideoFrame) -> NDArray[np.uint8]:
        return self._develop(picture)


def _open(path: Path) -> InputContainer:
    try:
        container = open_container(path)
    except (av.FFmpegError, OSError, ValueError):
        if missing := missing_bytes(path):
            raise InputError(f"{path}: incomplete, {missing} bytes are missing") from None
        raise InputError(f"{path}: not a video or image this program can read") from None
    if container.format.name in _TEXT | _POINTERS:
        container.close()
        raise InputError(f"{path}: not a video or image this program can read")
    return container


def video_stream(container: InputContainer, path: Path, number: int | None) -> VideoStream:
    """The ``number``-th video stream; without a number the one players show: the default one, else the largest."""
    streams = _pictured(container)
    if not streams:
        what = "sound but no picture" if container.streams.audio else "no video stream"
        raise InputError(f"{path}: the file holds {what}")
    if number is not None and number >= len(streams):
        raise InputError(f"{path}: no video stream {number}: the file has {len(streams)}, counted from 0")
    stream = max(streams, key=_prominence) if number is None else streams[number]
    if stream.codec_context is None:
        raise InputError(f"{path}: its video codec is not supported")
    stream.thread_type = "AUTO"
    return stream


def _pictured(container: InputContainer) -> list[VideoStream]:
    covers = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & covers]


def _prominence(stream: VideoStream) -> tuple[bool, int]:
    """Sorts video streams; of equals, the first is the greatest for ``max``."""
    context = stream.codec_context
    size = context.width * context.height if context else 0
    return bool(stream.disposition & av.stream.Disposition.default), size


def _decode(container: InputContainer, stream: VideoStream, errors: list[str]) -> Iterator[VideoFrame]:
    """Every frame that decodes; what goes wrong after the first one is noted in ``errors``."""
    packets = container.demux(stream)
    decoder = _decoder(stream)
    started = False
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError, ValueError) as error:
            errors.append(_reason(error))
            return
        if packet is None:
            return
        try:
            frames = decoder.decode(packet)
        except (av.FFmpegError, OSError, ValueError) as error:
            if started or packet.is_keyframe:  # a stream cut out of another begins with undecodable packets
                errors.append(_reason(error))
            continue
        for frame in frames:
            started = True
            yield frame  # type: ignore[misc]  # a video stream decodes to video frames


def _decoder(stream: VideoStream) -> VideoCodecContext:
    """The stream's own decoder; libvpx for VP8 and VP9 with transparency, which FFmpeg's own leaves out."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    transparent = any(k.lower() == "alpha_mode" and v == "1" for k, v in stream.metadata.items())
    if name and transparent and name in av.codecs_available:
        return av.CodecContext.create(name, "r")  # type: ignore[return-value]
    return stream.codec_context


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def _frame_rate(stream: VideoStream) -> float | None:
    """The average; where that is a clock's (FFmpeg gives DV's as 60000), what FFmpeg guesses of the single frames."""
    rates = [rate for rate in (stream.average_rate, stream.guessed_rate) if rate and rate <= FASTEST]
    return float(rates[0]) if rates else None


def _describe(path: Path, container: InputContainer, stream: VideoStream, shown: Presentation) -> VideoInfo:
    duration = None
    if stream.duration and stream.time_base:
        duration = float(stream.duration * stream.time_base)
    elif container.duration:
        duration = container.duration / av.time_base
    rate = _frame_rate(stream)
    lasting = round(duration * rate) if duration and rate else None
    count = min(stream.frames or lasting or 0, lasting or stream.frames) or None  # an edit list shows fewer than stored
    return VideoInfo(
        path, "video", *shown.size, shown.rotation, rate, count, duration,
        codec=stream.codec_context.name, has_audio=bool(container.streams.audio), presentation=shown,
        notes=tuple(shown.notes()),
    )  # fmt: skip
