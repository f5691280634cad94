"""Carries the sound of one file into another, copied where mp4 can hold it and re-encoded to AAC where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import OutputContainer

from nphm_track.video.containers import open_container

_COPIED = frozenset({"aac", "mp3", "mp3float", "ac3", "eac3", "alac", "opus"})
_AAC_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000})


def _prominence(stream: AudioStream) -> tuple[bool, int]:
    """Sorts sound streams as players do; of equals, the first is the greatest for ``max``."""
    context = stream.codec_context
    return bool(stream.disposition & av.stream.Disposition.default), context.channels if context else 0


class SoundTrack:
    """The default sound stream of ``source``, else that with most channels, added to ``output`` before its header is
    written.

    Args:
        origin: source time that becomes 0 in the output, seconds; what sounds before it is left out.

    Raises LookupError when the source has no sound, and av.FFmpegError when it cannot be opened.
    """

    def __init__(self, source: Path, output: OutputContainer, origin: float) -> None:
        self.output, self.origin = output, origin
        self.warning: str | None = None
        self._input = open_container(source)
        if not self._input.streams.audio:
            self._input.close()
            raise LookupError(f"{source} has no sound")
        self._heard = max(self._input.streams.audio, key=_prominence)
        if origin > 1.0:
            self._input.seek(int(origin * av.time_base))
        self._resampler: av.AudioResampler | None = None
        self._stream: Any
        if self._heard.codec_context.name in _COPIED:
            self._stream = output.add_stream_from_template(self._heard)
            pieces = self._packets()
        else:
            rate = self._heard.rate if self._heard.rate in _AAC_RATES else 48_000
            layout = "mono" if self._heard.channels == 1 else "stereo"
            self._stream = output.add_stream("aac", rate=rate, layout=layout)
            self._resampler = av.AudioResampler("fltp", layout, rate, frame_size=1024)
            pieces = self._samples()
        self._pieces = self._tolerant(pieces)
        self._pending = next(self._pieces, None)

    def advance(self, until: float) -> None:
        """Write what sounds before ``until``, seconds of the output's clock."""
        while self._pending is not None and self._pending[0] < until:
            piece = self._pending[1]
            if self._resampler is None:
                piece.stream = self._stream
                self.output.mux(piece)
            else:
                self.output.mux(self._stream.encode(piece))
            self._pending = next(self._pieces, None)

    def finish(self, until: float) -> None:
        """Write the rest up to ``until`` and let go of the source."""
        self.advance(until)
        if self._resampler is not None:
            self.output.mux(self._stream.encode(None))
        self.close()

    def close(self) -> None:
        """Let go of the source."""
        self._input.close()

    def _packets(self) -> Iterator[tuple[float, Any]]:
        for packet in self._input.demux(self._heard):
            if packet.pts is None or packet.dts is None or packet.time_base is None or packet.is_discard:
                continue  # the flush packet, and priming samples nobody is meant to hear
            time_base = packet.time_base
            shift = round(self.origin / time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            if packet.pts + (packet.duration or 0) > 0:
                yield float(packet.pts * time_base), packet

    def _samples(self) -> Iterator[tuple[float, Any]]:
        for frame in self._input.decode(self._heard):
            yield from self._resampled(frame)
        yield from self._resampled(None)

    def _resampled(self, frame: Any) -> Iterator[tuple[float, Any]]:
        assert self._resampler is not None
        for piece in self._resampler.resample(frame):
            if piece.pts is None or piece.time_base is None:
                continue
            clock = piece.time_base
            piece.pts -= round(self.origin / clock)
            if piece.pts >= 0:
                yield float(piece.pts * clock), piece

    def _tolerant(self, pieces: Iterator[tuple[float, Any]]) -> Iterator[tuple[float, Any]]:
        """Sound that breaks off must not cost the picture."""
        try:
            yield from pieces
        except (av.FFmpegError, OSError, ValueError) as error:
            self.warning = f"the sound breaks off ({getattr(error, 'strerror', None) or error})"
