"""Cropping that containers ask for, and pictures beside those of the ffmpeg command where there is one."""

from __future__ import annotations

import shutil
import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from made_clips import HEIGHT, WIDTH, levels, quarters, with_matrix, write_clip

from nphm_track.video.cropping import NO_CROP, Crop, container_crop
from nphm_track.video.reader import open_video

SIZE = (WIDTH, HEIGHT)
FFMPEG = shutil.which("ffmpeg")


def with_clap(clip: Path, width: int, height: int, x: int, y: int) -> Path:
    """The clip with a clean aperture around ``x``, ``y`` pixels off its middle."""
    data = bytearray(clip.read_bytes())
    entry = data.index(b"avc1", data.index(b"stsd")) - 4
    end = entry + int.from_bytes(data[entry : entry + 4], "big")
    data[end:end] = struct.pack(">I4s8i", 40, b"clap", width, 1, height, 1, x, 1, y, 1)
    moov = data.index(b"moov")
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        place = data.index(name, moov) - 4
        data[place : place + 4] = (int.from_bytes(data[place : place + 4], "big") + 40).to_bytes(4, "big")
    clip.write_bytes(data)
    return clip


def element(identifier: int, content: bytes) -> bytes:
    name = identifier.to_bytes((identifier.bit_length() + 7) // 8, "big")
    return name + bytes([0x40 | len(content) >> 8, len(content) & 255]) + content


def test_what_a_clean_aperture_leaves_is_shown(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", [quarters(), quarters()])
    whole = next(iter(open_video(clip))).image
    source = open_video(with_clap(clip, 64, 40, 8, -2))
    assert source.info.notes == ("cropped to 64x40",) and (source.info.width, source.info.height) == (64, 40)
    shown = [frame.image for frame in source]
    assert len(shown) == 2 and np.abs(shown[0].astype(int) - whole[10:50, 24:88]).mean() < 1


def test_cropped_pictures_are_turned_and_stretched_like_others(tmp_path):
    clip = with_clap(write_clip(tmp_path / "clip.mp4", [quarters()], aspect=Fraction(2)), 48, 32, 0, 0)
    image = next(iter(open_video(with_matrix(clip, 0, 1, -1, 0)))).image
    assert image.shape == (96, 32, 3) and levels(image) == [140, 40, 230, 90]


@pytest.mark.parametrize("asked", [(128, 64, 0, 0), (64, 40, 60, 0), (0, 40, 0, 0)])
def test_apertures_that_cannot_be_are_left_alone(tmp_path, asked):
    assert container_crop(with_clap(write_clip(tmp_path / "clip.mp4", [quarters()]), *asked), 0, SIZE) == NO_CROP


def test_matroska_crops_by_the_side(tmp_path):
    sound = element(0xAE, element(0x83, b"\2"))
    video = element(0x54CC, b"\3") + element(0x54BB, b"\2") + element(0x54AA, b"\1")
    tracks = element(0x1654AE6B, sound + element(0xAE, element(0x83, b"\1") + element(0xE0, video)))
    segment = b"\x18\x53\x80\x67\x01" + b"\xff" * 7 + tracks  # of unknown size, as recorders write it
    path = tmp_path / "clip.mkv"
    path.write_bytes(element(0x1A45DFA3, b"\0" * 12) + segment)
    assert container_crop(path, 0, SIZE) == Crop(3, 2, 0, 1)
    assert container_crop(path, 1, SIZE) == NO_CROP
    whole = path.read_bytes()
    for length in range(len(whole)):  # a file that breaks off is for the decoder to judge
        path.write_bytes(whole[:length])
        assert container_crop(path, 0, SIZE).right == 0


@pytest.mark.skipif(FFMPEG is None, reason="no ffmpeg command")
@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
def test_pictures_are_those_of_ffmpeg(tmp_path, matrix):
    clip = with_matrix(write_clip(tmp_path / "clip.mp4", [np.roll(quarters(), k, 1) for k in range(3)]), *matrix)
    source = open_video(clip)
    command = [str(FFMPEG), "-v", "error", "-i", str(clip), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    shown = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    theirs = shown.reshape(3, source.info.height, source.info.width, 3).astype(int)
    assert np.abs(theirs - np.stack([frame.image for frame in source])).mean() < 1
