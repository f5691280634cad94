from __future__ import annotations

import io
import os
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from nphm_track.errors import InputError
from nphm_track.video.reader import FOLDER_RATE, open_video
from nphm_track.video.source import image_files


def picture(value: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A flat background with a bright top-left corner, so that turns show."""
    image = np.full((height, width, 3), value, np.uint8)
    image[: height // 4, : width // 4] = 250
    return image


def write_clip(
    path: Path, times: list[float], codec: str = "libx264", size: tuple[int, int] = (64, 48), noise: int = 0
) -> Path:
    """Frame i has the grey level 20 + 6 i; ``noise`` makes the file larger."""
    grain = np.random.default_rng(1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options={"g": "6"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        if codec == "libx264":
            stream.time_base = stream.codec_context.time_base = Fraction(1, 90_000)
        for i, time in enumerate(times):
            image = picture(20 + 6 * i, *size) + grain.integers(0, noise + 1, (size[1], size[0], 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.time_base = Fraction(1, 90_000)
            frame.pts = round(time / frame.time_base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


VARIABLE = [0.0, 0.033, 0.1, 0.11, 0.25, 0.4, 0.41, 0.5, 0.62, 0.75, 0.76, 0.9, 1.0, 1.2, 1.25, 1.3]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "variable.mp4", VARIABLE)


def level(image: np.ndarray) -> float:
    return float(image[30:, 30:].mean())


def test_reads_every_frame_with_the_containers_times(clip):
    with open_video(clip) as source:
        frames = list(source)
        assert (source.info.kind, source.info.width, source.info.height) == ("video", 64, 48)
        assert source.info.codec == "h264" and not source.info.has_audio and source.warning is None
        assert source.info.frame_count == len(VARIABLE)
    assert [f.index for f in frames] == list(range(len(VARIABLE)))
    np.testing.assert_allclose([f.time for f in frames], VARIABLE, atol=1e-3)
    np.testing.assert_allclose([level(f.image) for f in frames], 20 + 6 * np.arange(len(VARIABLE)), atol=4)
    assert all(f.image.shape == (48, 64, 3) and f.image.dtype == np.uint8 for f in frames)


def test_selection_keeps_true_indices_and_can_resume(clip):
    source = open_video(clip, start=0.1, end=1.0, every=2)
    frames = list(source)
    inside = [i for i, t in enumerate(VARIABLE) if 0.1 <= t < 1.0][::2]
    assert [f.index for f in frames] == inside
    rest = list(source.frames(first=3))
    assert [f.index for f in rest] == inside[3:]
    assert np.array_equal(rest[0].image, frames[3].image)
    assert list(source.frames(first=99)) == []  # a finished run resumes to nothing
    assert source.clip_origin == pytest.approx(0.1) and open_video(clip).clip_origin == 0.0


@pytest.mark.parametrize("options", [{"every": 0}, {"start": 2.0, "end": 1.0}, {"backend": "vhs"}])
def test_refuses_bad_options(clip, options):
    with pytest.raises(InputError):
        open_video(clip, **options)


def test_nothing_between_start_and_end(clip):
    with pytest.raises(InputError, match="between"):
        list(open_video(clip, start=50))


@pytest.mark.parametrize(("angle", "turns"), [(90, 1), (-90, 3), (180, 2)])
def test_rotation_tag_is_applied(clip, tmp_path, angle, turns):
    """A display matrix patched into the track header: ``angle`` counter-clockwise, as FFmpeg's -display_rotation."""
    data = bytearray(clip.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    cos, sin = {90: (0, 1), -90: (0, -1), 180: (-1, 0)}[angle]
    one = 1 << 16
    values = [cos * one, -sin * one, 0, sin * one, cos * one, 0, 0, 0, 1 << 30]
    data[matrix : matrix + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in values)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data)
    plain, source = next(iter(open_video(clip))).image, open_video(turned)
    frame = next(iter(source))
    assert (source.info.height, source.info.width) == frame.image.shape[:2]
    assert source.info.rotation == angle % 360
    np.testing.assert_array_equal(frame.image, np.rot90(plain, turns))


def test_a_clock_that_is_set_in_mid_clip_makes_no_pause(tmp_path):
    """A camera that sets its clock by the network: 30 days between two frames, which no MP4 could hold."""
    path = write_clip(tmp_path / "clip.mkv", [0, 1 / 30, 2 / 30, 2592000.1, 2592000.1 + 1 / 30])
    times = [frame.time for frame in open_video(path)]
    np.testing.assert_allclose(np.diff(times), 1 / 30, atol=0.01)
    pause = write_clip(tmp_path / "pause.mkv", [0, 1 / 30, 1800, 1800 + 1 / 30])
    np.testing.assert_allclose([frame.time for frame in open_video(pause)][2], 1800, atol=0.01)


class TestFolders:
    @pytest.fixture
    def folder(self, tmp_path):
        for name in ("img2.png", "img10.png", "img1.png"):
            Image.fromarray(picture(int(name[3:-4]) * 10)).save(tmp_path / name)
        return tmp_path

    def test_what_is_called_like_an_image_and_is_none_is_one_line(self, folder):
        odd = {
            "a folder": lambda path: path.mkdir(),
            "a broken link": lambda path: path.symlink_to("nothing"),
            "a link to itself": lambda path: path.symlink_to(path.name),
            "a pipe": os.mkfifo,
        }
        for what, make in odd.items():
            make(folder / "zz.png")
            with pytest.raises(InputError, match=r"zz.png: it ") as refused:
                open_video(folder)
            assert "\n" not in str(refused.value), what
            (folder / "zz.png").rmdir() if what == "a folder" else (folder / "zz.png").unlink()

    def test_hidden_files_are_passed_over(self, folder):
        (folder / "._x.png").symlink_to("nothing")
        (folder / ".thumbnails.png").mkdir()
        assert [path.name for path in image_files(folder)] == ["img1.png", "img2.png", "img10.png"]

    def test_frames_that_are_passed_over_are_work(self, folder):
        source = open_video(folder, start=0.05)
        read = []
        source.read_on = lambda: read.append(1)
        assert len(list(source)) == 1 and len(read) == 3


def test_clockwise_phone_video_is_upright(clip, tmp_path):
    """A phone held upright writes the matrix (0, 1, -1, 0): players turn the picture clockwise."""
    data = bytearray(clip.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    values = [0, one, 0, -one, 0, 0, 48 * one, 0, 1 << 30]
    data[matrix : matrix + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in values)
    turned = tmp_path / "phone.mov"
    turned.write_bytes(data)
    image = next(iter(open_video(turned))).image
    assert image[:16, -12:].min() > 200 and image[:16, :12].max() < 100  # the bright corner went to the top right


@pytest.mark.parametrize(("suffix", "codec"), [(".mkv", "libx265"), (".webm", "libvpx-vp9"), (".mov", "mpeg4")])
def test_other_containers_and_codecs(tmp_path, suffix, codec):
    frames = list(open_video(write_clip(tmp_path / f"clip{suffix}", [i / 30 for i in range(8)], codec)))
    assert len(frames) == 8
    np.testing.assert_allclose([f.time for f in frames], np.arange(8) / 30, atol=2e-3)


def test_clip_that_breaks_midway(tmp_path):
    whole = write_clip(tmp_path / "whole.mp4", [i / 30 for i in range(36)], noise=60)
    fast, short = tmp_path / "fast.mp4", tmp_path / "short.mp4"
    with av.open(str(fast), "w", options={"movflags": "+faststart"}) as out, av.open(str(whole)) as container:
        stream = out.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    data = fast.read_bytes()
    short.write_bytes(data[: data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2])
    source = open_video(short)
    assert 8 < len(list(source)) < 32
    assert source.warning is not None and "\n" not in source.warning and "short.mp4" in source.warning


def test_damaged_packets_are_passed_over(tmp_path):
    data = bytearray(write_clip(tmp_path / "whole.mp4", [i / 30 for i in range(36)], noise=60).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    (tmp_path / "broken.mp4").write_bytes(data)
    source = open_video(tmp_path / "broken.mp4")
    times = [f.time for f in source]
    assert 24 < len(times) <= 36 and (np.diff(times) > 0).all()
    assert source.warning is not None and "damaged" in source.warning


def test_unusable_inputs_say_so_in_one_line(tmp_path, clip):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "empty.png").touch()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "notes.txt").write_text("shot 1: anna smiles\n" * 50)
    (tmp_path / "notes.png").write_text("not a picture")
    (tmp_path / "head.mp4").write_bytes(clip.read_bytes()[:300])
    (tmp_path / "folder").mkdir()
    with av.open(str(tmp_path / "sound.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    names = [
        "empty.mp4",
        "empty.png",
        "noise.mp4",
        "notes.txt",
        "notes.png",
        "head.mp4",
        "folder",
        "sound.m4a",
        "none.mp4",
    ]
    for name in names:
        with pytest.raises(InputError) as caught:
            list(open_video(tmp_path / name))
        assert name in str(caught.value) and "\n" not in str(caught.value), name


def test_single_images(tmp_path):
    grey = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    cases = {
        "rgb.png": Image.fromarray(picture(90)),
        "grey.png": Image.fromarray(picture(90)[..., 0]),
        "deep.png": Image.fromarray(grey),
        "cmyk.jpg": Image.fromarray(picture(90)).convert("CMYK"),
        "photo.webp": Image.fromarray(picture(90)),
        "palette.png": Image.fromarray(picture(90)).convert("P"),
    }
    for name, image in cases.items():
        image.save(tmp_path / name)
        with open_video(tmp_path / name) as source:
            (frame,) = source
            assert source.info.kind == "image" and (frame.index, frame.time) == (0, 0.0)
        assert frame.image.shape == (48, 64, 3) and frame.image.dtype == np.uint8
        if name == "deep.png":
            assert abs(frame.image[..., 0].astype(float) - grey / 257).max() <= 1
        else:
            assert abs(level(frame.image) - 90) < 6, name


def test_transparent_and_turned_images(tmp_path):
    clear = np.zeros((48, 64, 4), np.uint8)
    clear[:, :32] = (200, 10, 10, 255)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    (frame,) = open_video(tmp_path / "clear.png")
    assert (frame.image[:, 40:] == 255).all() and tuple(frame.image[0, 0]) == (200, 10, 10)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it 90 degrees clockwise
    Image.fromarray(picture(90)).save(tmp_path / "turned.jpg", exif=exif)
    source = open_video(tmp_path / "turned.jpg")
    (frame,) = source
    assert frame.image.shape == (64, 48, 3) and (source.info.width, source.info.height) == (48, 64)
    assert frame.image[:12, -8:].min() > 200


def test_folder_in_natural_order(tmp_path):
    for i in (10, 2, 1):
        Image.fromarray(picture(20 * i)).save(tmp_path / f"img{i}.png")
    (tmp_path / "notes.txt").write_text("ignored")
    with open_video(tmp_path) as source:
        frames = list(source)
        assert source.info.kind == "folder" and source.info.frame_count == 3
    assert [round(level(f.image)) for f in frames] == [20, 40, 200]
    assert [f.index for f in frames] == [1, 2, 10]
    assert [f.time for f in frames] == [0, 1 / FOLDER_RATE, 9 / FOLDER_RATE]
    Image.fromarray(picture(9, 32, 32)).save(tmp_path / "img11.png")
    with pytest.raises(InputError, match="img11"):
        list(open_video(tmp_path))


def test_animated_gif_is_a_video(tmp_path):
    pictures = [Image.fromarray(picture(60 * i)) for i in range(3)]
    pictures[0].save(tmp_path / "moving.gif", save_all=True, append_images=pictures[1:], duration=[100, 300, 100])
    with open_video(tmp_path / "moving.gif") as source:
        frames = list(source)
        assert source.info.kind == "video"
    np.testing.assert_allclose([f.time for f in frames], [0, 0.1, 0.4], atol=0.011)
    assert [round(level(f.image) / 60) for f in frames] == [0, 1, 2]


def test_animated_webp_is_a_video(tmp_path):
    pictures = [Image.fromarray(picture(60 * i)) for i in range(3)]
    path = tmp_path / "moving.webp"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 300, 100], lossless=True)
    source = open_video(path, every=2)
    assert source.info.kind == "video" and source.info.frame_count == 3
    frames = list(source)
    assert [(f.index, round(f.time, 3), round(level(f.image))) for f in frames] == [(0, 0.0, 0), (2, 0.4, 120)]


def test_image_without_a_suffix(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(picture(90)).save(buffer, "PNG")
    (tmp_path / "upload").write_bytes(buffer.getvalue())
    (frame,) = open_video(tmp_path / "upload")
    assert abs(level(frame.image) - 90) < 2


def test_decord_gives_the_same_frames(clip):
    pytest.importorskip("decord")
    ours, theirs = list(open_video(clip, every=3)), list(open_video(clip, every=3, backend="decord"))
    assert [f.index for f in ours] == [f.index for f in theirs]
    np.testing.assert_allclose([f.time for f in ours], [f.time for f in theirs], atol=1e-3)
    for a, b in zip(ours, theirs, strict=True):
        assert abs(a.image.astype(int) - b.image).max() <= 3


def test_a_display_matrix_of_zeros_turns_nothing(clip, tmp_path):
    data = bytearray(clip.read_bytes())
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 36] = bytes(36)
    (tmp_path / "zeros.mp4").write_bytes(data)
    source = open_video(tmp_path / "zeros.mp4")
    assert (source.info.width, source.info.height, source.info.rotation) == (64, 48, 0)


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4"])
def test_files_that_only_name_other_files_are_refused(clip, tmp_path, name):
    """What they name is outside the digest that says which clip a run belongs to."""
    with av.open(str(clip)) as source, av.open(str(tmp_path / "a.ts"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert open_video(tmp_path / "a.ts").info.width == 64
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:2", "#EXTINF:1.3,", "a.ts", "#EXT-X-ENDLIST"]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="not a video"):
        open_video(tmp_path / name)


def test_an_image_that_claims_to_be_huge(tmp_path):
    Image.fromarray(picture(5)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + data[24:29]
    (tmp_path / "a.png").write_bytes(data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:])
    with pytest.raises(InputError, match="too large"):
        open_video(tmp_path / "a.png")


def test_odd_metadata_of_images_is_no_news(tmp_path, recwarn):
    Image.fromarray(picture(5)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*" + b"\xff" * 40)
    assert open_video(tmp_path / "a.jpg").info.width == 64 and not recwarn.list
