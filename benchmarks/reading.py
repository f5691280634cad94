"""Small videos and images, and a process that reads files as tracking does, networks left out."""

from __future__ import annotations

import multiprocessing
import traceback
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray


def picture(index: int, width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """A pattern [height, width, 3] that no two frames share."""
    rows, columns = np.mgrid[:height, :width]
    values = (rows * 3 + columns * 5 + index * 17) % 256
    return np.stack([values, 255 - values, values // 2], -1).astype(np.uint8)


def write_video(
    path: Path, frames: int = 8, size: tuple[int, int] = (64, 48), codec: str = "libx264", pix_fmt: str = "yuv420p",
    times: list[float] | None = None, sound: bool = False, **options: Any,
) -> Path:  # fmt: skip
    """A short clip of 25 frames a second; ``times`` in seconds make its rate vary."""
    with av.open(f"file:{path}", "w", **options) as container:
        video: Any = container.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = *size, pix_fmt
        if times:
            video.time_base = video.codec_context.time_base = Fraction(1, 90000)
        audio: Any = None
        if sound:
            audio = container.add_stream("aac" if path.suffix in (".mp4", ".mov", ".mkv") else "libopus", 48000)
        container.start_encoding()
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(k, *size), "rgb24").reformat(format=pix_fmt)
            if times:
                frame.pts, frame.time_base = round(times[k] * 90000), Fraction(1, 90000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            add_sound(container, audio, frames / 25)
    return path


def add_sound(container: Any, stream: Any, seconds: float) -> None:
    """Encode a tone."""
    resampler = av.AudioResampler(stream.format, stream.layout, stream.rate, frame_size=stream.frame_size or 960)
    tone = np.sin(np.arange(int(48000 * seconds)) / 20).astype(np.float32)[None]
    frame = av.AudioFrame.from_ndarray(tone, "fltp", "mono")
    frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(stream.encode(piece))
    container.mux(stream.encode(None))


class Ending(NamedTuple):
    """How a file ended: "read", "damaged" (read with a warning), "refused" (one clear line) or "finding"."""

    kind: str
    text: str


class Reader:
    """A process that reads files one by one, started again when it dies or takes longer than ``limit`` seconds."""

    def __init__(self, output: Path, limit: float) -> None:
        output.mkdir(parents=True, exist_ok=True)
        self.output, self.limit = output, limit
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.output / "overlay.mp4"), daemon=True)
        self.process.start()
        theirs.close()

    def read(self, path: Path) -> Ending:
        """Read a file to its end and write its overlay; a refusal that leaves files behind is a finding too."""
        ending = self._read(path)
        names = [entry.name for entry in self.output.iterdir() if ending.kind == "refused" or ".partial" in entry.name]
        for entry in self.output.iterdir():
            entry.unlink()
        left_behind = names and ending.kind != "finding"
        return Ending("finding", f"left behind: {', '.join(names)}") if left_behind else ending

    def _read(self, path: Path) -> Ending:
        self.connection.send(path)
        try:
            if self.connection.poll(self.limit):
                return Ending(*self.connection.recv())
            text = f"no end within {self.limit:.0f} s"
        except EOFError:
            self.process.join()
            text = f"the process died (exit code {self.process.exitcode})"
        self.process.kill()
        self._start()
        return Ending("finding", text)


def _serve(connection: Connection, output: Path) -> None:
    from nphm_track.errors import NphmTrackError

    while True:
        try:
            path = connection.recv()
        except EOFError:  # nobody asks any more
            return
        try:
            connection.send(_read_all(path, output))
        except NphmTrackError as error:
            clear = str(error) and len(str(error).splitlines()) <= 2
            connection.send(Ending("refused" if clear else "finding", str(error)))
        except BaseException:
            connection.send(Ending("finding", traceback.format_exc(limit=-3)))


def _read_all(path: Path, output: Path) -> Ending:
    from nphm_track.tracking.records import InputInfo
    from nphm_track.video.reader import open_video
    from nphm_track.video.writer import ImageWriter, VideoWriter

    with open_video(path) as source:
        InputInfo.of(path, source.info)
        info, last, count = source.info, -np.inf, 0
        sound = path if info.kind == "video" else None
        writer: Any = (
            ImageWriter(output.with_suffix(".png"))
            if info.kind == "image"
            else VideoWriter(
                output, (info.width, info.height), frame_rate_hint=info.frame_rate, source=sound,
                origin=source.clip_origin,
            )
        )  # fmt: skip
        with writer:
            for frame in source:
                if not frame.time > last or frame.image.shape != (info.height, info.width, 3):
                    raise AssertionError(f"time {frame.time} after {last}, shape {frame.image.shape}")
                last, count = frame.time, count + 1
                writer.write(frame.image, frame.time)
    warning = source.warning or writer.warning or ""
    return Ending("damaged" if warning else "read", f"{info.width}x{info.height}, {count} frames {warning}".strip())
