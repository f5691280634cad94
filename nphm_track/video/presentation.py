"""How a video asks for its pictures to be shown, and the RGB pictures that come of it.

A decoder gives pictures as they are stored. What a player shows also depends on the shape of their pixels, the display
matrix, transparency, interlacing and the colour space; all of it is settled here, so that whatever reads an RGB picture
sees what a person sees, in square pixels and in BT.709 colours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from nphm_track.errors import InputError
from nphm_track.video.colour import ColourSpace, sdr_cube
from nphm_track.video.cropping import NO_CROP, Crop

OTHER_SHAPE = 0.01
"""Relative change of the aspect ratio in mid-stream from which pictures would be squeezed rather than resized."""
_STRANGEST_PIXEL = 8
"""A pixel more oblong than this is a mistake of the file."""


@dataclass(frozen=True)
class Presentation:
    """What has to be done to a stored picture so that it looks as its file asks.

    Attributes:
        stored: (width, height) of the pictures as they are stored, without what the container crops.
        crop: what it crops.
        pixel_aspect: width over height of a stored pixel.
        rotation: degrees counter-clockwise: 0, 90, 180 or 270.
        mirrored: left and right are swapped after that.
        colours: colour space that is brought to BT.709, or None.
        transparent: the pictures have transparency, which is laid over white.
        interlaced: the pictures are made of two fields each, which are brought to one moment.
    """

    stored: tuple[int, int]
    pixel_aspect: Fraction = Fraction(1)
    rotation: int = 0
    mirrored: bool = False
    colours: ColourSpace | None = None
    transparent: bool = False
    interlaced: bool = False
    crop: Crop = NO_CROP

    @classmethod
    def of(cls, stream: VideoStream, frame: VideoFrame, crop: Crop = NO_CROP) -> Presentation:
        """What the file says about a stream whose first picture is ``frame``."""
        rotation, mirrored = _orientation(frame)
        return cls(
            stored=(frame.width - crop.left - crop.right, frame.height - crop.top - crop.bottom),
            crop=crop,
            pixel_aspect=_pixel_aspect(stream),
            rotation=rotation,
            mirrored=mirrored,
            colours=ColourSpace.of(frame.color_primaries, frame.color_trc, frame.colorspace),
            transparent=any(component.is_alpha for component in frame.format.components),
            interlaced=frame.interlaced_frame,
        )

    @property
    def square(self) -> tuple[int, int]:
        """Stored size resampled to square pixels; neither side loses any."""
        width, height = self.stored
        if self.pixel_aspect > 1:
            return max(1, round(width * self.pixel_aspect)), height
        return width, max(1, round(height / self.pixel_aspect))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the pictures as they are shown."""
        width, height = self.square
        return (height, width) if self.rotation % 180 else (width, height)

    def notes(self) -> list[str]:
        """What is done beyond decoding and turning, in words."""
        notes = []
        if self.crop:
            notes.append(f"cropped to {self.stored[0]}x{self.stored[1]}")
        if self.square != self.stored:
            (w, h), (sw, sh), aspect = self.square, self.stored, self.pixel_aspect
            notes.append(f"pixels of {aspect.numerator}:{aspect.denominator} made square ({sw}x{sh} to {w}x{h})")
        if self.mirrored:
            notes.append("mirrored")
        if self.colours:
            notes.append(f"{self.colours} brought to BT.709")
        if self.transparent:
            notes.append("transparency over white")
        if self.interlaced:
            notes.append("deinterlaced")
        return notes


class Developer:
    """Makes RGB pictures [H, W, 3] of decoded ones, as a ``Presentation`` says.

    ``origin`` is the time at which the container's clock starts, for messages.
    """

    def __init__(self, presentation: Presentation, origin: float = 0.0) -> None:
        self.presentation, self.origin = presentation, origin
        self._colours = _ColourGraph(presentation) if presentation.colours else None

    def __call__(self, picture: VideoFrame) -> NDArray[np.uint8]:
        """Raises InputError for a picture of another shape than the first one."""
        p = self.presentation
        self._check_shape(picture)
        if self._colours is not None:
            picture = self._colours(picture)
        width, height = p.square
        kind = "rgba" if p.transparent else "rgb24"
        if (picture.width, picture.height) != p.square:
            picture = picture.reformat(width, height, kind, interpolation="BICUBIC")
        image = np.asarray(picture.to_ndarray(format=kind), np.uint8)
        image = over_white(image) if p.transparent else image
        image = np.rot90(image, p.rotation // 90)
        return np.ascontiguousarray(image[:, ::-1] if p.mirrored else image, np.uint8)

    def _check_shape(self, picture: VideoFrame) -> None:
        width, height = self.presentation.stored
        if abs(picture.width * height / (picture.height * width) - 1) > OTHER_SHAPE:
            when = f"{(picture.time or 0) - self.origin:.3f}"
            raise InputError(
                f"the picture changes from {width}x{height} to {picture.width}x{picture.height} at {when} s: "
                f"track the parts, with --end {when} and --start {when}"
            )


class _ColourGraph:
    """FFmpeg's three-dimensional look-up table, from coded RGB of a colour space to that of BT.709."""

    def __init__(self, presentation: Presentation) -> None:
        assert presentation.colours is not None
        self._size = presentation.stored
        width, height = self._size
        self._graph = Graph()
        with sdr_cube(presentation.colours) as table:
            coded = VideoFormat("gbrp16le", width, height)
            source = self._graph.add_buffer(width=width, height=height, format=coded, time_base=Fraction(1, 90_000))
            lut = self._graph.add("lut3d", file=str(table), interp="tetrahedral")
            out = self._graph.add("format", pix_fmts="rgb24")
            sink = self._graph.add("buffersink")
            for one, next_one in ((source, lut), (lut, out), (out, sink)):
                one.link_to(next_one)
            self._graph.configure()

    def __call__(self, picture: VideoFrame) -> VideoFrame:
        self._graph.push(picture.reformat(*self._size, "gbrp16le"))
        return self._graph.pull()  # type: ignore[return-value]


def cropped(frames: Iterator[VideoFrame], shown: Presentation) -> Iterator[VideoFrame]:
    """The frames without what the container crops; those of another size than the first have nothing to crop."""
    c, (width, height) = shown.crop, shown.stored
    whole = (width + c.left + c.right, height + c.top + c.bottom)
    graph, layout = Graph(), None
    for frame in frames:
        if not c or (frame.width, frame.height) != whole:
            yield frame
            continue
        if _layout(frame) != layout:
            graph, layout = _filter(frame, "crop", x=str(c.left), y=str(c.top), w=str(width), h=str(height), exact="1")
        graph.push(frame)
        yield graph.pull()  # type: ignore[misc]


def deinterlaced(frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    """The same frames at the same times; from the first one on that is flagged as two fields, through ``bwdif``, which
    leaves those alone that are not.
    """
    for frame in frames:
        if frame.interlaced_frame:
            yield from _through_bwdif(frame, frames)
            return
        yield frame


_Stamps = deque[tuple[int | None, Fraction | None]]
"""Time stamps of the frames that a filter holds, with their time bases."""


def _through_bwdif(first: VideoFrame, rest: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    graph, layout = _filter(first, "bwdif", mode="send_frame", deint="interlaced")
    stamps: _Stamps = deque([(first.pts, first.time_base)])
    graph.push(first)
    for frame in rest:
        if _layout(frame) != layout:  # the filter cannot change in mid-stream: another one goes on
            yield from _drained(graph, stamps)
            yield from _through_bwdif(frame, rest)
            return
        stamps.append((frame.pts, frame.time_base))
        graph.push(frame)
        yield from _pulled(graph, stamps)
    yield from _drained(graph, stamps)


_Layout = tuple[int, int, str]


def _layout(frame: VideoFrame) -> _Layout:
    return frame.width, frame.height, frame.format.name


def _filter(frame: VideoFrame, name: str, **settings: str) -> tuple[Graph, _Layout]:
    """One filter for frames of the layout that ``frame`` has."""
    graph = Graph()
    clock = frame.time_base or Fraction(1, 1000)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=clock)
    made = graph.add(name, **settings)
    sink = graph.add("buffersink")
    source.link_to(made)
    made.link_to(sink)
    graph.configure()
    return graph, _layout(frame)


def _pulled(graph: Graph, stamps: _Stamps) -> Iterator[VideoFrame]:
    """What the filter has ready, each with the time stamp of its source."""
    while True:
        try:
            frame = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        frame.pts, clock = stamps.popleft()
        if clock is not None:
            frame.time_base = clock
        yield frame  # type: ignore[misc]


def _drained(graph: Graph, stamps: _Stamps) -> Iterator[VideoFrame]:
    graph.push(None)
    yield from _pulled(graph, stamps)


def over_white(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB [H, W, 3] of RGBA [H, W, 4] whose colours are not multiplied by their alpha."""
    alpha = image[..., 3:].astype(np.uint16)
    mixed = image[..., :3] * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def _pixel_aspect(stream: VideoStream) -> Fraction:
    aspect = stream.sample_aspect_ratio
    if not aspect or not 1 / _STRANGEST_PIXEL <= aspect <= _STRANGEST_PIXEL:
        return Fraction(1)
    return Fraction(aspect)


def _orientation(frame: VideoFrame) -> tuple[int, bool]:
    """Rotation in degrees counter-clockwise, and whether the picture is mirrored after it, from the display matrix.

    Its first four numbers map stored to shown coordinates: x' = a x + c y, y' = b x + d y (ISO/IEC 14496-12).
    """
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # side data of a kind that this PyAV has no name for, beside which it tells of the turn alone
        return frame.rotation % 360, False
    if matrix is None:
        return 0, False
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).astype(np.float64)  # type: ignore[call-overload]
    mirrored = bool(a * d - b * c < 0)
    if a * d - b * c == 0:  # a matrix that is none
        return 0, False
    if mirrored:
        a, c = -a, -c
    return round(float(np.degrees(np.arctan2(c - b, a + d))) / 90) * 90 % 360, mirrored
