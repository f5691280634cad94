"""Photographs, plates and sequences; every file is made on the spot."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import tifffile
from PIL import Image, features

from nphm_track.errors import InputError
from nphm_track.video.colour import ColourSpace
from nphm_track.video.reader import open_video
from nphm_track.video.source import image_files
from nphm_track.video.stills import read_image, to_8_bits

RAMP = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(48, 0)


def save(path: Path, level: int = 90) -> Path:
    Image.fromarray(np.full((8, 12, 3), level, np.uint8)).save(path)
    return path


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("colours", [1, 3, 4])
def test_deep_tiffs_are_not_black(tmp_path, bits, colours):
    values = np.round(RAMP * (2**bits - 1)).astype(np.uint16)
    values[0, 0] = 2**bits - 1  # something white
    picture = values if colours == 1 else np.stack([values] * 3 + [np.full_like(values, 65535)] * (colours == 4), -1)
    if colours == 4 and bits < 16:
        picture[..., 3] = 2**bits - 1
    photometric = "minisblack" if colours == 1 else "rgb"
    tifffile.imwrite(tmp_path / "deep.tif", picture, photometric=photometric)
    seen = read_image(tmp_path / "deep.tif")
    assert seen.shape == (48, 64, 3)
    assert np.abs(seen[1:].astype(float) - 255 * RAMP[1:, :, None]).max() <= 1


def test_float_plates_are_light_and_are_encoded_for_displays(tmp_path):
    light = np.stack([RAMP, RAMP / 2, 3 * RAMP], -1)  # brighter than white in places
    encoded = 255 * np.clip(np.where(light < 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055), 0, 1)
    tifffile.imwrite(tmp_path / "light.tif", light, photometric="rgb")
    assert np.abs(read_image(tmp_path / "light.tif") - encoded).max() <= 1
    with av.open(str(tmp_path / "light.exr"), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("exr", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "gbrpf32le"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(light, format="gbrpf32le")))
        container.mux(stream.encode(None))
    assert np.abs(read_image(tmp_path / "light.exr") - encoded).max() <= 1


def test_dpx_is_read(tmp_path):
    deep = np.round(np.stack([RAMP, RAMP / 2, RAMP / 4], -1) * 65535).astype(np.uint16)
    with av.open(str(tmp_path / "plate.dpx"), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("dpx", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "gbrp10be"
        frame = av.VideoFrame.from_ndarray(deep, format="rgb48le").reformat(format="gbrp10be")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert np.abs(read_image(tmp_path / "plate.dpx").astype(float) - deep / 257).max() <= 2


def test_heic_is_one_whole_picture_or_says_what_it_needs(tmp_path):
    path = tmp_path / "phone.heic"
    try:
        import pillow_heif
    except ImportError:
        path.write_bytes(b"\0\0\0\x18ftypheic")
        with pytest.raises(InputError, match=r"nphm-track\[heic\]"):
            open_video(path)
        return
    pillow_heif.register_heif_opener()
    Image.fromarray(np.full((600, 800, 3), 120, np.uint8)).save(path)
    source = open_video(path)
    assert (source.info.kind, source.info.width, source.info.height) == ("image", 800, 600)
    assert abs(next(iter(source)).image.mean() - 120) < 3


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_avif_is_read_whatever_it_is_called_and_also_when_it_moves(tmp_path):
    pictures = [Image.fromarray(np.full((48, 64, 3), level, np.uint8)) for level in (60, 200)]
    for name in ("still.avif", "still.jpg"):
        pictures[0].save(tmp_path / name, "AVIF")
        assert abs(read_image(tmp_path / name).mean() - 60) < 3
    pictures[0].save(tmp_path / "moving.avif", save_all=True, append_images=pictures[1:], duration=40)
    frames = list(open_video(tmp_path / "moving.avif"))
    assert [round(frame.time, 2) for frame in frames] == [0, 0.04]
    assert [abs(frame.image.mean() - level) < 3 for frame, level in zip(frames, (60, 200), strict=True)] == [True] * 2


def test_gaps_in_a_sequence_keep_their_time_and_pictures_their_numbers(tmp_path):
    for number in (1001, 1002, 1003, 1007, 1008):
        save(tmp_path / f"shot_{number}.png")
    source = open_video(tmp_path, fps=24, every=2)
    assert (source.info.frame_rate, source.info.duration) == (24, 8 / 24)
    assert [(f.index, f.time) for f in source] == [(1001, 0), (1003, 2 / 24), (1008, 7 / 24)]
    assert [f.index for f in open_video(tmp_path, fps=24, start=0.2)] == [1007, 1008]


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", "b.png", "c.png"],
        ["IMG_1.png", "photo_2.png", "scan_9.png"],
        ["20240101.png", "20240315.png", "20250101.png"],  # days, not frames
    ],
)
def test_names_that_are_no_sequence_are_counted(tmp_path, names):
    for name in names:
        save(tmp_path / name)
    assert [f.index for f in open_video(tmp_path)] == [0, 1, 2]


def test_masks_beside_the_images_are_no_frames(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number:04d}.png", 90)
        save(tmp_path / f"{number:04d}_mask.png", 255)
    save(tmp_path / "the_mask.png")  # a picture of one: nothing is called "the"
    (tmp_path / "the_mask.png").rename(tmp_path / "0003.png")
    source = open_video(tmp_path)
    assert source.info.notes == ("3 masks beside the images are no frames",)
    assert [f.image.mean() for f in source] == [90] * 4
    lone = tmp_path / "lone"
    lone.mkdir()
    assert image_files(lone) == [] and image_files(save(lone / "a_mask.png").parent) == [lone / "a_mask.png"]


def test_a_frame_rate_is_for_folders(tmp_path):
    with pytest.raises(InputError, match="--fps is for folders"):
        open_video(save(tmp_path / "a.png"), fps=24)


def test_a_deep_picture_is_not_held_as_floats():
    values = np.full((4096, 512), 60000, np.uint16)
    tracemalloc.start()
    try:
        assert (to_8_bits(values) == 233).all()
        assert tracemalloc.get_traced_memory()[1] < 4 * values.nbytes
    finally:
        tracemalloc.stop()


def profile(description: str, primaries: tuple[tuple[float, float, float], ...], gamma: float) -> bytes:
    """An ICC profile of a display (ICC.1, version 2): colours of red, green and blue in the white of D50."""

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * value) for value in values))

    named = description.encode() + b"\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", len(named)) + named + bytes(78)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma))
    tags = {b"desc": text, b"wtpt": xyz((0.9642, 1, 0.8249))}
    tags |= {name + b"XYZ": xyz(values) for name, values in zip((b"r", b"g", b"b"), primaries, strict=True)}
    tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    table, content, start = b"", b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI4s4s4s12x4s28x3i", start + len(content), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ",
                       b"acsp", 63190, 65536, 54061)  # fmt: skip
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + content


DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_colours_of_a_phones_photographs_are_brought_to_srgb(tmp_path, suffix):
    """Like those of its videos."""
    skin = np.full((16, 16, 3), (200, 140, 120), np.uint8)
    path = tmp_path / f"phone.{suffix}"
    Image.fromarray(skin).save(path, icc_profile=profile("Display P3", DISPLAY_P3, 2.2))
    wanted = 255 * ColourSpace("Display P3", "SDR").to_sdr(skin[0, 0] / 255)
    assert np.abs(read_image(path)[8, 8] - wanted).max() <= 3 < np.abs(skin[0, 0] - wanted).max()
    Image.fromarray(skin).save(path, icc_profile=b"damaged" * 40)
    assert np.abs(read_image(path)[8, 8].astype(int) - skin[0, 0]).max() <= 2


@pytest.mark.parametrize("name", ["a.mpo", "a.jfif", "a.jpe", "a.tga", "a.ppm", "a.pgm", "a.jp2"])
def test_pictures_by_rarer_names_are_frames_of_a_folder(tmp_path, name):
    formats = {".mpo": "MPO", ".tga": "TGA", ".ppm": "PPM", ".pgm": "PPM", ".jp2": "JPEG2000"}
    image = Image.fromarray(np.full((24, 32, 3), 90, np.uint8))
    (image.convert("L") if name.endswith("pgm") else image).save(
        tmp_path / name, formats.get(Path(name).suffix, "JPEG")
    )
    assert open_video(tmp_path).info.frame_count == 1
    assert np.abs(read_image(tmp_path / name).astype(int) - 90).max() <= 2


def test_raw_photographs_are_refused_with_the_reason(tmp_path):
    (tmp_path / "IMG_1.CR2").write_bytes(b"II*\0")
    for path in (tmp_path / "IMG_1.CR2", tmp_path):
        with pytest.raises(InputError, match=r"raw photograph.* TIFF or JPEG"):
            open_video(path)


def matted(folder: Path, name: str, matte: Path) -> Path:
    """A dark image whose left half is somebody."""
    matte.parent.mkdir(parents=True, exist_ok=True)
    white = np.zeros((8, 12), np.uint8)
    white[:, :6] = 255
    Image.fromarray(white).save(matte)
    folder.mkdir(exist_ok=True)
    return save(folder / name, 40)


@pytest.mark.parametrize("matte", ["image/0001_mask.png", "image/0001.alpha.png", "mask/0001.png", "mattes/0001.jpg"])
def test_mattes_lay_the_images_over_white_when_asked(tmp_path, matte):
    matted(tmp_path / "image", "0001.png", tmp_path / matte)
    save(tmp_path / "image" / "0002.png", 40)
    source = open_video(tmp_path / "image", mattes=True)
    first, second = (frame.image for frame in source)
    assert np.abs(first[:, :5].astype(int) - 40).max() <= 4 and first[:, 7:].min() >= 251 and (second == 40).all()
    assert source.info.notes[-1] == "1 of 2 images over white by their mattes"
    assert all((frame.image == 40).all() for frame in open_video(tmp_path / "image"))


def test_mattes_that_cannot_be_used_are_refused(tmp_path):
    image = matted(tmp_path / "image", "0001.png", tmp_path / "image" / "0001_normal.png")
    with pytest.raises(InputError, match="has no mattes"):
        open_video(tmp_path / "image", mattes=True)
    with pytest.raises(InputError, match="for folders of images"):
        open_video(image, mattes=True)
    Image.new("L", (6, 4)).save(tmp_path / "image" / "0001_mask.png")
    with pytest.raises(InputError, match="6x4, its image is 12x8"):
        list(open_video(tmp_path / "image", mattes=True))
