"""Videos through PyAV (FFmpeg): the default reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from nphm_track.errors import InputError
from nphm_track.video.source import FrameSource, VideoInfo

_TEXT = frozenset({"tty", "txt", "srt", "ass", "webvtt"})  # formats FFmpeg "recognises" in plain text
_POINTERS = frozenset({"hls", "dash", "concat", "sdp", "rtsp", "rtp"})  # files that name other files or hosts to read


class AvSource(FrameSource):
    """A video file; each pass opens it anew and holds a few frames at a time."""

    def __init__(self, path: Path, start: float | None, end: float | None, every: int) -> None:
        super().__init__(start, end, every)
        self.path = path
        with _open(path) as container:
            stream = _video_stream(container, path)
            errors: list[str] = []
            frame = next(_decode(container, stream, errors), None)
            if frame is None:
                reason = f" ({errors[0]})" if errors else ""
                raise InputError(f"{path}: no frame can be decoded{reason}")
            self.info = _describe(path, container, stream, frame)
            self.origin = (container.start_time or 0) / av.time_base
            self.first_time = self.origin if frame.time is None else frame.time
        self._size = frame.width, frame.height

    def pictures(self) -> Iterator[tuple[float, VideoFrame]]:
        errors: list[str] = []
        count, last, shift = 0, -np.inf, 0.0
        step = 1.0 / (self.info.frame_rate or 25.0)
        with _open(self.path) as container:
            stream = _video_stream(container, self.path)
            expected = stream.frames
            for count, frame in enumerate(_decode(container, stream, errors), start=1):
                time = frame.time
                if time is None:
                    time = last + step if count > 1 else self.first_time
                elif time + shift < last - 1.0:  # the clock was reset in mid-stream
                    shift = last + step - time
                last = max(time + shift, last + 1e-5)
                yield last, frame
        if count and errors:
            self.warning = f"{self.path}: damaged, {count} frames could be decoded ({errors[0]})"
        elif count < 0.9 * expected:
            self.warning = f"{self.path}: ends early, {count} of {expected} frames could be decoded"

    def develop(self, picture: VideoFrame) -> NDArray[np.uint8]:
        width, height = self._size  # a stream may change its size midway; the run does not
        image = picture.to_ndarray(format="rgb24", width=width, height=height)
        turns = self.info.rotation // 90
        return np.ascontiguousarray(np.rot90(image, turns), np.uint8)


def _open(path: Path) -> InputContainer:
    try:
        container = av.open(f"file:{path}", metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError):
        raise InputError(f"{path}: not a video or image this program can read") from None
    if container.format.name in _TEXT | _POINTERS:
        container.close()
        raise InputError(f"{path}: not a video or image this program can read")
    return container


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    covers = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & covers]
    if not streams:
        what = "sound but no picture" if container.streams.audio else "no video stream"
        raise InputError(f"{path}: the file holds {what}")
    stream = streams[0]
    if stream.codec_context is None:
        raise InputError(f"{path}: its video codec is not supported")
    stream.thread_type = "AUTO"
    return stream


def _decode(container: InputContainer, stream: VideoStream, errors: list[str]) -> Iterator[VideoFrame]:
    """Every frame that decodes; what goes wrong after the first one is noted in ``errors``."""
    packets = container.demux(stream)
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
            frames = packet.decode()
        except (av.FFmpegError, OSError, ValueError) as error:
            if started or packet.is_keyframe:  # a stream cut out of another begins with undecodable packets
                errors.append(_reason(error))
            continue
        for frame in frames:
            started = True
            yield frame  # type: ignore[misc]  # a video stream decodes to video frames


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def _describe(path: Path, container: InputContainer, stream: VideoStream, frame: VideoFrame) -> VideoInfo:
    turn = frame.rotation if abs(frame.rotation) <= 360 else 0  # a matrix that is none gives any number
    rotation = round(turn / 90) * 90 % 360
    width, height = (frame.height, frame.width) if rotation % 180 else (frame.width, frame.height)
    duration = None
    if stream.duration and stream.time_base:
        duration = float(stream.duration * stream.time_base)
    elif container.duration:
        duration = container.duration / av.time_base
    rate = float(stream.average_rate) if stream.average_rate else None
    count = stream.frames or (round(duration * rate) if duration and rate else None)
    return VideoInfo(
        path, "video", width, height, rotation, rate, count, duration,
        codec=stream.codec_context.name, has_audio=bool(container.streams.audio),
    )  # fmt: skip
