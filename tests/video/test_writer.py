from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from nphm_track.errors import InputError, OutputError
from nphm_track.video.reader import open_video
from nphm_track.video.writer import ImageWriter, VideoWriter

VARIABLE = [0.0, 0.033, 0.1, 0.11, 0.25, 0.4, 0.41, 0.5, 0.62, 0.75, 0.76, 0.9, 1.0, 1.2, 1.25, 1.3]


def image(value: int, width: int = 64, height: int = 48) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def write_tone(path: Path, seconds: float, codec: str) -> Path:
    """A sine wave of 440 Hz, silent in the first half second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=48000, layout="mono")
        time = np.arange(round(seconds * 48000)) / 48000
        wave = (np.sin(2 * np.pi * 440 * time) * (time >= 0.5) * 20000).astype(np.int16)
        resampler = av.AudioResampler(stream.format, "mono", 48000, frame_size=stream.frame_size or 1024)
        frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        for piece in (*resampler.resample(frame), *resampler.resample(None), None):
            container.mux(stream.encode(piece))
    return path


def heard(path: Path) -> tuple[str, float, float]:
    """Codec, seconds of sound, and the time the tone sets in."""
    with av.open(str(path)) as container:
        name = container.streams.audio[0].codec_context.name
        frames = list(container.decode(audio=0))
    samples = np.concatenate([f.to_ndarray().reshape(f.samples, -1)[:, 0] for f in frames]).astype(float)
    onset = np.argmax(np.abs(samples) > 0.3 * np.abs(samples).max()) / frames[0].sample_rate + frames[0].time
    return name, frames[-1].time + frames[-1].samples / frames[-1].sample_rate, onset


def write_all(path: Path, times: list[float], **options) -> Path:
    with VideoWriter(path, (64, 48), **options) as writer:
        for i, time in enumerate(times):
            writer.write(image(20 + 8 * i), time)
    return path


def test_variable_times_and_pixels_survive(tmp_path):
    path = write_all(tmp_path / "out.mp4", VARIABLE, frame_rate_hint=12.3)
    frames = list(open_video(path))
    np.testing.assert_allclose([f.time for f in frames], VARIABLE, atol=1e-3)
    np.testing.assert_allclose([f.image.mean() for f in frames], 20 + 8 * np.arange(len(VARIABLE)), atol=4)
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # starts to play before it is all there
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")


def test_colours_survive(tmp_path):
    colour = np.empty((48, 64, 3), np.uint8)
    colour[:] = (200, 90, 30)
    with VideoWriter(tmp_path / "out.mp4", (64, 48)) as writer:
        writer.write(colour, 0.0)
    (frame,) = open_video(tmp_path / "out.mp4")
    np.testing.assert_allclose(frame.image.mean((0, 1)), (200, 90, 30), atol=3)


@pytest.mark.parametrize("size", [(63, 47), (64, 47), (2, 1)])
def test_odd_sizes_are_padded(tmp_path, size):
    with VideoWriter(tmp_path / "out.mp4", size, frame_rate_hint=30) as writer:
        writer.write(image(120, *size), 0.0)
    source = open_video(tmp_path / "out.mp4")
    (frame,) = source
    assert frame.image.shape == (size[1] + size[1] % 2, size[0] + size[0] % 2, 3)
    assert abs(frame.image.astype(int) - 120).max() < 6


def test_times_that_stand_still_are_nudged(tmp_path):
    path = write_all(tmp_path / "out.mp4", [0.5, 0.5, 0.4, 0.6], origin=0.5)
    times = [f.time for f in open_video(path)]
    assert len(times) == 4 and (np.diff(times) > 0).all() and times[0] == 0
    np.testing.assert_allclose(times, [0, 0, 0, 0.1], atol=1e-3)


@pytest.mark.parametrize(("codec", "suffix"), [("aac", ".mp4"), ("pcm_s16le", ".wav"), ("flac", ".mka")])
def test_sound_is_kept_in_time(tmp_path, codec, suffix):
    tone = write_tone(tmp_path / f"tone{suffix}", 2.0, codec)
    whole = write_all(tmp_path / "whole.mp4", [i / 10 for i in range(20)], frame_rate_hint=10, source=tone)
    name, end, onset = heard(whole)
    assert name == "aac" and end == pytest.approx(2.0, abs=0.05) and onset == pytest.approx(0.5, abs=0.03)
    cut = write_all(tmp_path / "cut.mp4", [0.3 + i / 10 for i in range(10)], source=tone, origin=0.3)
    _, end, onset = heard(cut)
    assert end == pytest.approx(1.0, abs=0.05) and onset == pytest.approx(0.2, abs=0.03)


def test_of_several_sounds_the_default_one_is_kept(tmp_path):
    """A commentary comes first; the default sound is a tone, the other is silence."""
    source = tmp_path / "two.mka"
    with av.open(str(source), "w") as container:
        streams = [container.add_stream("aac", rate=48000, layout="mono") for _ in range(2)]
        streams[0].disposition, streams[1].disposition = 0, av.stream.Disposition.default
        for loudness, stream in zip((0, 20000), streams, strict=True):
            wave = (np.sin(np.arange(48000) / 10) * loudness).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            resampler = av.AudioResampler("fltp", "mono", 48000, frame_size=1024)
            for piece in (*resampler.resample(frame), *resampler.resample(None), None):
                container.mux(stream.encode(piece))
    kept = write_all(tmp_path / "kept.mp4", [i / 10 for i in range(10)], source=source)
    with av.open(str(kept)) as container:
        assert np.abs(np.concatenate([f.to_ndarray().ravel() for f in container.decode(audio=0)])).max() > 0.3


def test_source_without_sound(tmp_path):
    silent = write_all(tmp_path / "silent.mp4", VARIABLE)
    copy = write_all(tmp_path / "copy.mp4", VARIABLE, source=silent)
    assert not open_video(copy).info.has_audio
    with VideoWriter(tmp_path / "other.mp4", (64, 48), source=tmp_path / "gone.mp4") as writer:
        writer.write(image(9), 0.0)
    assert writer.warning is not None and (tmp_path / "other.mp4").exists()


def test_nothing_is_left_after_an_exception(tmp_path):
    write_all(tmp_path / "out.mp4", [0.0])
    before = (tmp_path / "out.mp4").read_bytes()
    with pytest.raises(KeyError), VideoWriter(tmp_path / "out.mp4", (64, 48)) as writer:
        writer.write(image(5), 0.0)
        raise KeyError
    with VideoWriter(tmp_path / "none.mp4", (64, 48)):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == before


def test_unwritable_places(tmp_path):
    with pytest.raises(OutputError, match="no_such_folder"):
        VideoWriter(tmp_path / "no_such_folder" / "out.mp4", (64, 48))
    with pytest.raises(ValueError, match="shape"), VideoWriter(tmp_path / "out.mp4", (64, 48)) as writer:
        writer.write(image(5, 10, 10), 0.0)


@pytest.mark.parametrize("name", ["out.png", "OUT.JPG"])
def test_image(tmp_path, name):
    with ImageWriter(tmp_path / name) as writer:
        writer.write(image(120, 33, 21), 0.0)
    (frame,) = open_video(tmp_path / name)
    assert frame.image.shape == (21, 33, 3) and abs(frame.image.astype(int) - 120).max() < 3
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_image_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"out\.mp4"):
        ImageWriter(tmp_path / "out.mp4")
    with pytest.raises(OutputError, match="no_such_folder"), ImageWriter(tmp_path / "no_such_folder/out.png") as writer:
        writer.write(image(5), 0.0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(tmp_path):
    (tmp_path / "out.partial.mp4").symlink_to("/dev/full")
    grain = np.random.default_rng(0)
    with pytest.raises(OutputError, match=r"out\.mp4"), VideoWriter(tmp_path / "out.mp4", (256, 256)) as writer:
        for i in range(60):
            writer.write(grain.integers(0, 255, (256, 256, 3), np.uint8), i / 30)
    assert not list(tmp_path.iterdir())


def test_real_clip_keeps_times_and_sound(shared_data, tmp_path):
    clip = shared_data / "videos" / "d02_face_then_noface_hevc_vfr.mov"
    with open_video(clip, start=2.0, end=3.0) as source:
        size = source.info.width, source.info.height
        rate, origin = source.info.frame_rate, source.clip_origin
        times = []
        with VideoWriter(tmp_path / "out.mp4", size, frame_rate_hint=rate, source=clip, origin=origin) as writer:
            for frame in source:
                writer.write(frame.image, frame.time)
                times.append(frame.time)
    np.testing.assert_allclose([f.time for f in open_video(tmp_path / "out.mp4")], np.array(times) - 2.0, atol=1e-3)
    with av.open(str(clip)) as container:
        first = next(container.decode(audio=0)).time
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert next(container.decode(audio=0)).time == pytest.approx(first - 2.0, abs=0.03)
