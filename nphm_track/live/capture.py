"""Pictures of a camera, a stream on the network or a file, of which whoever asks gets the newest."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from nphm_track.errors import InputError
from nphm_track.video.containers import open_container
from nphm_track.video.presentation import Developer, Presentation
from nphm_track.video.pyav_backend import video_stream
from nphm_track.video.source import Frame

SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "srt", "udp", "tcp", "rtp", "http", "https")
"""Of addresses that are opened."""
PROTOCOLS = "rtp,rtmp,rtmps,rtmpt,srt,udp,tcp,tls,http,https,httpproxy,crypto,hls"
"""What a stream may make FFmpeg read from in turn: no file of this machine."""
PATIENCE = 10.0
"""Seconds that an address may take to answer."""
NAP = 0.002
"""Seconds between two looks for a new picture of a camera that does not wait for one."""
DEVICES = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
"""FFmpeg's cameras by platform."""

Item = TypeVar("Item")


class Clock(Protocol):
    """Time in seconds; one of another pace takes its place in tests."""

    def now(self) -> float: ...

    def wait_until(self, moment: float) -> None: ...


class SystemClock:
    """The machine's."""

    def now(self) -> float:
        return time.perf_counter()

    def wait_until(self, moment: float) -> None:
        time.sleep(max(moment - self.now(), 0.0))


class Newest(Generic[Item]):
    """Hands items from one thread to another: one that nobody took gives way to a newer one.

    ``dropped`` counts those that did.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._changed = threading.Condition()
        self._items: list[Item] = []
        self._ended = False
        self._error: BaseException | None = None

    def put(self, item: Item) -> bool:
        """False when nobody will take anything any more."""
        with self._changed:
            self.dropped += len(self._items)
            self._items = [item]
            self._changed.notify()
            return not self._ended

    def end(self, error: BaseException | None = None) -> None:
        """There will be no further item; ``error`` is raised where they are taken."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()

    def __iter__(self) -> Iterator[Item]:
        while True:
            with self._changed:
                while not self._items and not self._ended:
                    self._changed.wait(0.2)  # a wait without end would not hear Ctrl-C on Windows
                if not self._items:
                    if self._error is not None:
                        raise self._error
                    return
                item = self._items.pop()
            yield item


@dataclass(frozen=True)
class Picture:
    """One that has arrived.

    Attributes:
        index: its number, from 0; those that were dropped are counted.
        time: seconds, of the source's clock.
        arrived: seconds, of the machine's clock.
        stored: as decoded.
    """

    index: int
    time: float
    arrived: float
    stored: VideoFrame


class Capture:
    """A source of pictures; iterate it once for the newest of each moment, in a block that closes it.

    Args:
        where: number of a camera, its device, an address, or a file, which is played at its own pace.
        size: (width, height) asked of a camera, pixels.
        rate: frames a second asked of a camera.

    ``warning`` says why the pictures have ended, where it is not their end. Raises InputError when there is no such
    camera, or nothing can be read.
    """

    def __init__(
        self,
        where: str,
        size: tuple[int, int] | None = None,
        rate: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.where, self.clock, self.warning = where, clock or SystemClock(), ""
        self._container = _opened(where, size, rate)
        try:
            stream = video_stream(self._container, Path(where), None)
            stream.thread_type = "SLICE"  # threads for whole frames hold some back
            self._frames = self._decoded(stream)
            first = next(self._frames, None)
            if first is None:
                raise InputError(f"{where}: no frame can be decoded" + (f" ({self.warning})" if self.warning else ""))
            self.presentation = Presentation.of(stream, first)
        except BaseException:
            self._container.close()
            raise
        self.paced = self._container.duration is not None  # what has an end is there before it is shown
        self.rate = _rate(stream)
        self._first, self._develop = first, Developer(self.presentation)
        self._newest: Newest[Picture] = Newest()
        self._thread = threading.Thread(target=self._read, name="capture", daemon=True)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the pictures as they are shown, pixels."""
        return self.presentation.size

    @property
    def dropped(self) -> int:
        """Pictures that gave way to newer ones."""
        return self._newest.dropped

    def first(self) -> NDArray[np.uint8]:
        """The first picture, which is still to come, as an RGB image."""
        return self._develop(self._first)

    def __iter__(self) -> Iterator[Picture]:
        self._thread.start()
        return iter(self._newest)

    def develop(self, picture: Picture) -> Frame:
        """The picture as an RGB image."""
        return Frame(picture.index, picture.time, self._develop(picture.stored))

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._newest.end()
        if self._thread.ident is not None:
            self._thread.join(1.0)  # a camera that hangs must not keep the program
        if not self._thread.is_alive():
            self._container.close()

    def _decoded(self, stream: VideoStream) -> Iterator[VideoFrame]:
        """Every frame that decodes; ``warning`` tells why there are no more, unless it is the end."""
        packets = self._container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.BlockingIOError:  # a camera without a new picture; the generator that has raised is at its end
                time.sleep(NAP)
                packets = self._container.demux(stream)
                continue
            except (av.FFmpegError, OSError, ValueError) as error:
                self.warning = _reason(error)
                return
            if packet is None:
                return
            with suppress(av.InvalidDataError):  # damaged on the way, or of a stream that was joined in the middle
                yield from packet.decode()  # type: ignore[misc]  # a video stream decodes to video frames

    def _read(self) -> None:
        """What the thread does: every picture at its time."""
        start, origin, last = self.clock.now(), 0.0, 0.0
        try:
            for index, stored in enumerate(_all(self._first, self._frames)):
                moment = stored.time
                if moment is None or (index and not last < moment):  # without a clock, or with one that was set
                    moment = last + 1 / self.rate
                if index == 0:
                    origin = moment
                if self.paced:
                    self.clock.wait_until(start + moment - origin)
                last = moment
                if not self._newest.put(Picture(index, moment - origin, self.clock.now(), stored)):
                    return
            self._newest.end()
        except BaseException as error:  # whatever it is, it belongs to who asks for pictures
            self._newest.end(error)


def _all(first: VideoFrame, rest: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    yield first
    yield from rest


def _rate(stream: VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 30)


def _opened(where: str, size: tuple[int, int] | None, rate: float | None) -> InputContainer:
    scheme = re.match(r"([a-z]+)://", where.lower())
    if where.isdecimal() or where.startswith(("/dev/", "video=")):
        return _camera(where, size, rate)
    if size or rate:
        raise InputError(f"{where}: size and rate are asked of cameras; what else is opened has its own")
    if scheme:
        return _address(where, scheme[1])
    path = Path(where)
    if not path.is_file():
        raise InputError(
            f"{where}: no such file; a camera is a number or a device, an address begins as rtsp:// or http://"
        )
    try:
        return open_container(path)
    except (av.FFmpegError, OSError, ValueError):
        raise InputError(f"{where}: not a video this program can read") from None


def _address(where: str, scheme: str) -> InputContainer:
    if scheme not in SCHEMES:
        raise InputError(f"{where}: addresses begin with one of {', '.join(SCHEMES)}")
    options = {"protocol_whitelist": PROTOCOLS, "fflags": "nobuffer", "flags": "low_delay"}
    try:
        return av.open(where, options=options, timeout=PATIENCE)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{where}: nothing to read there ({_reason(error)})") from None


def _camera(where: str, size: tuple[int, int] | None, rate: float | None) -> InputContainer:
    kind = DEVICES.get(sys.platform)
    if kind is None:
        raise InputError(f"no cameras are known on {sys.platform}; open a file or an address")
    options = {"video_size": "{}x{}".format(*size)} if size else {}
    if rate or kind == "avfoundation":  # which asks for 29.97 otherwise, and few cameras have that
        options["framerate"] = f"{rate or 30:g}"
    name = _device(int(where), kind) if where.isdecimal() else where
    try:
        return av.open(name, format=kind, options=options)
    except (av.FFmpegError, OSError, ValueError) as error:
        hint = "; is it another program's, or is the size or the rate none of its own?" if size or rate else ""
        raise InputError(f"camera {where} cannot be opened ({_reason(error)}){hint}{_known(kind)}") from None


def _device(number: int, kind: str) -> str:
    """FFmpeg's name of the camera of this number."""
    if kind == "v4l2":
        return f"/dev/video{number}"
    cameras = _cameras(kind)
    if cameras and number >= len(cameras):
        raise InputError(f"there is no camera {number}{_known(kind)}")
    if kind == "dshow":
        return f"video={cameras[number].name}" if cameras else f"video={number}"
    return str(number)


def _cameras(kind: str) -> list[Any]:
    """What PyAV knows of the machine's cameras."""
    found: list[Any] = []
    with suppress(av.FFmpegError, OSError, ValueError):
        found = [d for d in av.enumerate_input_devices(kind) if "video" in d.media_types or not d.media_types]
    return found


def _known(kind: str) -> str:
    """The machine's cameras, for a message."""
    names = [f"{i}: {device.description or device.name}" for i, device in enumerate(_cameras(kind))]
    return f"; cameras here: {', '.join(names)}" if names else "; no camera is found here"


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()
