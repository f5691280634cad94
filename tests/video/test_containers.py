from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import ExifTags, Image

from nphm_track.errors import InputError
from nphm_track.video.containers import missing_bytes, open_container
from nphm_track.video.reader import open_video


def test_a_title_that_is_not_utf8_does_not_cost_the_video(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Un café, une clé"
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 64, "yuv420p", Fraction(1, 25)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    assert "café".encode() in content
    path.write_bytes(content.replace("é".encode(), b"\xe9\xff"))  # invalid, and as long
    with open_container(path) as opened:
        assert opened.metadata["title"].startswith("Un caf")
        assert sum(1 for _ in opened.decode(video=0)) == 1


def some_clip(path: Path, codec: str = "mpeg4", **options: str) -> Path:
    """Twelve frames of noise."""
    noise = np.random.default_rng(0)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(12):
            picture = noise.integers(0, 256, (64, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
def test_a_download_that_broke_off_is_said_to_be_one(tmp_path: Path, name: str) -> None:
    whole = some_clip(tmp_path / name, **({"movflags": "+faststart"} if name.endswith("mp4") else {}))
    source = open_video(whole)
    assert missing_bytes(whole) == 0 and len(list(source)) == 12 and source.warning is None
    size = whole.stat().st_size
    whole.write_bytes(whole.read_bytes()[: size * 6 // 10])
    source = open_video(whole)
    assert 0 < len(list(source)) < 12
    assert "incomplete" in str(source.warning) and str(size - size * 6 // 10) in str(source.warning)


def test_what_cameras_append_to_a_file_is_nothing_that_is_missing(tmp_path: Path) -> None:
    whole = some_clip(tmp_path / "clip.mp4")
    whole.write_bytes(whole.read_bytes() + b"\x7f\0\0\0SEFHlong after the end")
    assert missing_bytes(whole) == 0


def test_a_file_whose_index_did_not_arrive_is_refused_as_incomplete(tmp_path: Path) -> None:
    clip = some_clip(tmp_path / "clip.mp4")
    clip.write_bytes(clip.read_bytes()[:4000])
    with pytest.raises(InputError, match=r"clip\.mp4: incomplete, \d+ bytes are missing"):
        open_video(clip)


def test_a_clock_is_no_frame_rate(tmp_path: Path) -> None:
    """FFmpeg gives 60000 as the average rate of DV."""
    with av.open(str(tmp_path / "tape.dv"), "w") as container:
        stream = container.add_stream("dvvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 720, 576, "yuv420p"
        for _ in range(3):
            picture = np.full((576, 720, 3), 90, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    info = open_video(tmp_path / "tape.dv").info
    assert info.frame_rate == 25 and info.frame_count == 3


def test_frames_with_a_cameras_notes_are_read(tmp_path: Path) -> None:
    """PyAV has no name for what newer FFmpegs make of EXIF, and fails over all that they know of such a frame."""
    notes = Image.Exif()
    notes[ExifTags.Base.Model], notes[ExifTags.Base.Orientation] = "PowerShot", 3
    photograph = io.BytesIO()
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(photograph, "JPEG", exif=notes)
    with av.open(str(tmp_path / "clip.mov"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for index in range(3):
            packet = av.Packet(photograph.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 25)
            container.mux(packet)
    source = open_video(tmp_path / "clip.mov")
    assert len(list(source)) == 3 and source.info.rotation == 180
