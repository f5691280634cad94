"""Pictures as their files ask to be shown; every clip is made on the spot."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from made_clips import HEIGHT, WIDTH, encode, levels, quarters, with_matrix, write_clip

from nphm_track.errors import InputError
from nphm_track.video.colour import DIFFUSE_WHITE, HLG_PEAK, ColourSpace
from nphm_track.video.reader import open_video

SKIN = np.array([[222, 184, 160], [198, 134, 66], [141, 85, 36], [255, 219, 172], [90, 60, 50], [16, 16, 16]])
FROM_BT709 = {"BT.2020": np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])}


@pytest.mark.parametrize(
    ("matrix", "shown", "rotation", "mirrored"),
    [
        ((1, 0, 0, 1), [40, 90, 140, 230], 0, False),
        ((0, 1, -1, 0), [140, 40, 230, 90], 270, False),  # turned clockwise, as phones held upright write it
        ((-1, 0, 0, -1), [230, 140, 90, 40], 180, False),
        ((0, -1, 1, 0), [90, 230, 40, 140], 90, False),
        ((-1, 0, 0, 1), [90, 40, 230, 140], 0, True),  # left and right swapped: a front camera
        ((1, 0, 0, -1), [140, 230, 40, 90], 180, True),  # upside down as in a mirror
        ((0, 1, 1, 0), [40, 140, 90, 230], 270, True),
        ((0, -1, -1, 0), [230, 90, 140, 40], 90, True),
    ],
)
def test_all_eight_display_matrices_are_applied(tmp_path, matrix, shown, rotation, mirrored):
    source = open_video(with_matrix(write_clip(tmp_path / "clip.mp4", [quarters()]), *matrix))
    image = next(iter(source)).image
    assert levels(image) == shown
    assert (source.info.height, source.info.width) == image.shape[:2]
    assert source.info.rotation == rotation and ("mirrored" in source.info.notes) is mirrored


@pytest.mark.parametrize(
    ("aspect", "size"), [(Fraction(64, 45), (137, 64)), (Fraction(15, 16), (96, 68)), (Fraction(1, 50), (96, 64))]
)
def test_oblong_pixels_are_made_square_without_losing_any(tmp_path, aspect, size):
    """A pixel fifty times as high as wide is a mistake of the file."""
    source = open_video(write_clip(tmp_path / "clip.mp4", [quarters()], aspect=aspect))
    image = next(iter(source)).image
    assert (image.shape[1], image.shape[0]) == (source.info.width, source.info.height) == size
    assert levels(image) == [40, 90, 140, 230]
    assert any("square" in note for note in source.info.notes) is (size != (96, 64))


def test_turned_oblong_pixels_are_oblong_the_other_way(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", [quarters()], aspect=Fraction(2))
    image = next(iter(open_video(with_matrix(clip, 0, 1, -1, 0)))).image
    assert image.shape == (2 * WIDTH, HEIGHT, 3) and levels(image) == [140, 40, 230, 90]


def test_of_several_streams_the_default_one_is_read_else_the_largest(tmp_path):
    small, large = np.full((32, 48, 3), 60, np.uint8), np.full((64, 96, 3), 180, np.uint8)

    def write(name: str, default: int | None) -> Path:
        with av.open(str(tmp_path / name), "w") as container:
            streams = []
            for image in (small, large):
                stream = container.add_stream("libx264", rate=25)
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
                streams.append(stream)
            for number, stream in enumerate(streams):
                stream.disposition = av.stream.Disposition.default if number == default else 0
            for stream, image in zip(streams, (small, large), strict=True):
                encode(container, stream, [image] * 3)
        return tmp_path / name

    def level(path: Path, stream: int | None = None) -> int:
        return round(float(next(iter(open_video(path, stream=stream))).image.mean()), -1)

    assert level(write("second.mkv", 1)) == 180
    assert level(write("first.mkv", 0)) == 60
    neither = write("neither.mkv", None)
    assert level(neither) == 180 and level(neither, 0) == 60 and level(neither, 1) == 180
    with pytest.raises(InputError, match="no video stream 2: the file has 2"):
        open_video(neither, stream=2)


def join(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def test_a_picture_that_changes_its_shape_is_refused_and_one_that_only_changes_its_size_is_not(tmp_path):
    wide = write_clip(tmp_path / "wide.h264", [quarters()] * 4)
    tall = write_clip(tmp_path / "tall.h264", [quarters(HEIGHT, WIDTH)] * 4)
    half = write_clip(tmp_path / "half.h264", [quarters(WIDTH // 2, HEIGHT // 2)] * 4)
    with pytest.raises(InputError, match=r"changes from 96x64 to 64x96 at .* track the parts, with --end .* --start"):
        list(open_video(join(tmp_path / "turns.h264", wide, tall)))
    shown = [frame.image for frame in open_video(join(tmp_path / "shrinks.h264", wide, half))]
    assert len(shown) == 8 and all(image.shape == (64, 96, 3) for image in shown)
    assert levels(shown[-1]) == [40, 90, 140, 230]


def test_combing_of_two_fields_is_taken_out_and_the_times_are_kept(tmp_path):
    """A bar that moves between the fields of a frame."""
    images = []
    for index in range(8):
        image = np.full((64, 96, 3), 60, np.uint8)
        for field in range(2):
            left = 8 * index + 4 * field
            image[field::2, left : left + 16] = 200
        images.append(image)
    path = tmp_path / "fields.mkv"
    with av.open(str(path), "w") as container:
        options = {"crf": "4", "x264-params": "tff=1:interlaced=1", "bf": "0"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        encode(container, stream, images)
    source = open_video(path)
    frames = list(source)
    assert source.info.notes == ("deinterlaced",)
    np.testing.assert_allclose([f.time for f in frames], np.arange(8) / 25, atol=2e-3)
    for image, frame in zip(images[1:-1], frames[1:-1], strict=True):
        combing = np.abs(np.diff(image.astype(int), axis=0)).mean()
        assert np.abs(np.diff(frame.image.astype(int), axis=0)).mean() < 0.3 * combing


def coded(space: ColourSpace, rgb: np.ndarray) -> np.ndarray:
    """What a converter writes for SDR colours 0..255 in HLG or PQ, with diffuse white at 203 cd/m2; 0..1."""
    light = (rgb / 255) ** 2.4 @ FROM_BT709["BT.2020"].T
    if space.transfer == "SDR":
        return light ** (1 / 2.4)
    if space.transfer == "HLG":
        scene = (light * DIFFUSE_WHITE / HLG_PEAK) ** (1 / 1.2)
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)
    y = (light * DIFFUSE_WHITE / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)


@pytest.mark.parametrize(("transfer", "code"), [("HLG", 18), ("PQ", 16), ("SDR", 14)])
def test_wide_colours_come_out_as_the_sdr_original(tmp_path, transfer, code):
    space = ColourSpace.of(9, code, 9)
    assert space == ColourSpace("BT.2020", transfer)
    patches = np.repeat(np.repeat(coded(space, SKIN)[None], 32, 0), 32, 1)
    path = tmp_path / "wide.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=25, options={"x265-params": "crf=4:log-level=none"})
        stream.height, stream.width, stream.pix_fmt = patches.shape[0], patches.shape[1], "yuv420p10le"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = 9, code, 9, 1
        frame = av.VideoFrame.from_ndarray(np.round(patches * 65535).astype(np.uint16), format="rgb48le")
        frame = frame.reformat(format="yuv420p10le", dst_colorspace="BT2020")
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    source = open_video(path)
    image = next(iter(source)).image
    assert source.info.notes == (f"{space} brought to BT.709",)
    seen = image[16, 16::32].astype(float)
    assert np.abs(seen - SKIN).mean() < 6, (seen, SKIN)


def test_highlights_are_compressed_without_a_step():
    ramp = np.repeat(np.linspace(0, 1, 1001)[:, None], 3, 1)
    for transfer in ("HLG", "PQ"):
        shown = ColourSpace("BT.2020", transfer).to_sdr(ramp)[:, 0]
        assert (np.diff(shown) >= -1e-9).all() and np.diff(shown).max() < 0.02
        assert shown[0] == 0 and shown[-1] == pytest.approx(1)


def test_ordinary_colours_are_left_alone():
    assert all(ColourSpace.of(*codes) is None for codes in [(2, 2, 2), (1, 1, 1), (5, 6, 5), (6, 6, 6), (1, 13, 0)])


@pytest.mark.parametrize(("codec", "pix_fmt", "suffix"), [("qtrle", "argb", "mov"), ("libvpx-vp9", "yuva420p", "webm")])
def test_transparency_is_laid_over_white(tmp_path, codec, pix_fmt, suffix):
    image = np.zeros((64, 96, 4), np.uint8)
    image[..., :3], image[:, 48:, 3] = 40, 255
    path = tmp_path / f"clip.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, pix_fmt
        stream.metadata["alpha_mode"] = "1"
        encode(container, stream, [image] * 3, pix_fmt, "rgba")
    source = open_video(path)
    frames = list(source)
    assert len(frames) == 3 and source.info.notes == ("transparency over white",)
    np.testing.assert_allclose([f.time for f in frames], [0, 0.04, 0.08], atol=2e-3)
    assert frames[1].image[:, :40].mean() > 250 and abs(frames[1].image[:, 56:].mean() - 40) < 4


def trimmed(clip: Path, skip: int, count: int, rate: int = 25) -> Path:
    """The clip with an edit list that shows ``count`` frames from the ``skip``-th on, as lossless trimmers write it."""
    data = clip.read_bytes()
    scale = int.from_bytes(data[(at := data.index(b"mdhd")) + 16 : at + 20], "big")
    movie = int.from_bytes(data[(at := data.index(b"mvhd")) + 16 : at + 20], "big")
    place = data.index(b"elst") + 4
    entry = (count * movie // rate).to_bytes(4, "big") + (skip * scale // rate).to_bytes(4, "big")
    clip.write_bytes(data[: place + 8] + entry + data[place + 16 :])
    return clip


def test_an_edit_list_says_which_frames_are_shown(tmp_path):
    images = [np.full((64, 96, 3), 20 + 8 * i, np.uint8) for i in range(25)]
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "25", "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        encode(container, stream, images)
    source = open_video(trimmed(path, 12, 10))
    frames = list(source)
    assert source.warning is None  # nothing is missing
    assert source.info.frame_count == len(frames) == 10
    assert abs(frames[0].image.mean() - images[10].mean()) < 20  # B-frames shift the media's clock by two frames


@pytest.mark.parametrize("start", [1000.0, 0.021, 3600.0])
def test_a_stream_may_start_anywhere(tmp_path, start):
    path = tmp_path / "clip.ts"
    with av.open(str(path), "w", options={"mpegts_copyts": "1"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 90_000)
        for index in range(10):
            frame = av.VideoFrame.from_ndarray(quarters(), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round((start + index / 25) * 90_000), Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    source = open_video(path, start=0.2)
    times = [frame.time - source.origin for frame in source]
    np.testing.assert_allclose(times, np.arange(5, 10) / 25, atol=2e-3)
    assert source.origin == pytest.approx(start, abs=0.1)
    whole = open_video(path)
    assert 0 <= next(iter(whole)).time - whole.clip_origin < 10


def test_decord_declines_what_it_would_show_otherwise(tmp_path):
    pytest.importorskip("decord")
    odd = {
        "square": write_clip(tmp_path / "oblong.mp4", [quarters()], aspect=Fraction(2)),
        "mirrored": with_matrix(write_clip(tmp_path / "mirror.mp4", [quarters()]), -1, 0, 0, 1),
    }
    for reason, path in odd.items():
        with pytest.raises(InputError, match=f"decord cannot show .*{reason}"):
            open_video(path, backend="decord")
