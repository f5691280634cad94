"""A corpus of inputs as users have them and as nobody wants them; every one must end well.

python benchmarks/corpus.py [--keep FOLDER] [--only WORD]

Each file is read to its end in a process of its own, as tracking does: the expected end is success, or one clear line
and exit code 2. A traceback, a crash, or a process that takes longer than --limit seconds is a finding; so is a file
that ends the other way than the corpus says. Exit code 1 when there is one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

READ = """
import sys
from pathlib import Path
from nphm_track.errors import NphmTrackError
from nphm_track.tracking.records import InputInfo
from nphm_track.video.reader import open_video
from nphm_track.video.writer import ImageWriter, VideoWriter
try:
    for path in sys.argv[2:]:
        with open_video(path) as source:
            InputInfo.of(path, source.info)
            size = source.info.width, source.info.height
            if source.info.kind == "image":
                writer = ImageWriter(Path(sys.argv[1]).with_suffix(".png"))
            else:
                writer = VideoWriter(sys.argv[1], size, frame_rate_hint=source.info.frame_rate, source=path if
                    source.info.kind == "video" else None, origin=source.clip_origin)
            last, count = -1.0, 0
            with writer:
                for frame in source:
                    assert frame.image.shape == (size[1], size[0], 3) and frame.image.dtype == "uint8"
                    assert frame.time > last, (frame.time, last)
                    last, count = frame.time, count + 1
                    writer.write(frame.image, frame.time)
            print(f"{size[0]}x{size[1]}, {count} frames", source.warning or writer.warning or "")
except NphmTrackError as error:
    print(error)
    sys.exit(error.exit_code)
"""
"""What tracking does with an input, networks left out."""

GOOD, BAD, EITHER = "good", "bad", "either"


@dataclass
class Case:
    name: str
    path: Path
    end: str


def picture(index: int, width: int, height: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    values = (rows * 3 + columns * 5 + index * 17) % 256
    return np.stack([values, 255 - values, values // 2], -1).astype(np.uint8)


def write_video(
    path: Path, frames: int = 8, size: tuple[int, int] = (64, 48), codec: str = "libx264", pix_fmt: str = "yuv420p",
    times: list[float] | None = None, sound: bool = False, **options: Any,
) -> Path:  # fmt: skip
    """A short clip; ``times`` in seconds make its frame rate vary."""
    with av.open(f"file:{path}", "w", **options) as container:
        video = container.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = *size, pix_fmt
        if times:
            video.time_base = video.codec_context.time_base = Fraction(1, 90000)
        audio: Any = (
            container.add_stream("aac" if path.suffix in (".mp4", ".mov", ".mkv") else "libopus", 48000)
            if sound
            else None
        )
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
    resampler = av.AudioResampler(stream.format, stream.layout, stream.rate, frame_size=stream.frame_size or 960)
    tone = np.sin(np.arange(int(48000 * seconds)) / 20).astype(np.float32)[None]
    frame = av.AudioFrame.from_ndarray(tone, "fltp", "mono")
    frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(stream.encode(piece))
    container.mux(stream.encode(None))


def turned(path: Path, target: Path, values: tuple[int, ...]) -> Path:
    """A display matrix patched into the track header."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in values)
    target.write_bytes(data)
    return target


def make(folder: Path) -> Iterator[Case]:
    """The corpus, made in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    clip = write_video(folder / "clip.mp4", frames=30, sound=True)
    data = clip.read_bytes()

    def blob(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    def image(name: str, mode: str = "RGB", size: tuple[int, int] = (64, 48), **options: Any) -> Path:
        source = Image.fromarray(picture(0, *size))
        converted = (
            source.convert(mode)
            if mode not in ("I;16", "F", "I")
            else Image.fromarray(
                np.asarray(source.convert("L")).astype({"I;16": np.uint16, "F": np.float32, "I": np.int32}[mode]) * 200
            )
        )
        converted.save(folder / name, **options)
        return folder / name

    def video(name: str, **options: Any) -> Path:
        return write_video(folder / name, **options)

    one = 1 << 16
    yield Case("plain", clip, GOOD)
    # Truncated and corrupt
    for percent in (1, 10, 50, 90, 99):
        yield Case(f"truncated to {percent} %", blob(f"cut{percent}.mp4", data[: len(data) * percent // 100]), BAD)
    mkv = video("whole.mkv", frames=60).read_bytes()
    yield Case("truncated mkv", blob("cut.mkv", mkv[: len(mkv) // 2]), GOOD)
    yield Case("truncated mkv header", blob("head.mkv", mkv[:200]), BAD)
    middle = len(data) // 2
    noise = np.random.default_rng(0).bytes(len(data) // 10)
    yield Case("corrupt packets", blob("noise.mp4", data[:middle] + noise + data[middle + len(noise) :]), EITHER)
    yield Case(
        "zeros in the middle",
        blob("zeros.mp4", data[:middle] + bytes(len(noise)) + data[middle + len(noise) :]),
        EITHER,
    )
    yield Case("bytes behind the end", blob("tail.mp4", data + noise), GOOD)
    yield Case("beginning missing", blob("late.mp4", data[1000:]), BAD)
    yield Case("raw H.264", blob("raw.h264", write_video(folder / "raw0.h264", format="h264").read_bytes()), GOOD)
    ts = video("whole.ts", frames=60, codec="mpeg2video").read_bytes()
    yield Case("transport stream cut on both sides", blob("cut.ts", ts[len(ts) // 3 + 7 : -99]), GOOD)
    # Few frames, odd sizes
    with av.open(str(folder / "none.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    yield Case("no frames", folder / "none.mkv", BAD)
    yield Case("one frame", video("one.mp4", frames=1), GOOD)
    yield Case("1x1 video", video("1x1.mkv", size=(1, 1), codec="ffv1", pix_fmt="bgr0"), GOOD)
    yield Case("2x2 video", video("2x2.mp4", size=(2, 2)), GOOD)
    yield Case("odd size", video("odd.mkv", size=(63, 47), codec="ffv1", pix_fmt="yuv444p"), GOOD)
    yield Case("8k", video("8k.mp4", size=(7680, 4320), frames=2), GOOD)
    yield Case("very wide", video("wide.mp4", size=(4096, 16)), GOOD)
    yield Case("1 frame/s", video("slow.mp4", times=[float(k) for k in range(8)]), GOOD)
    # Pixel formats and codecs
    yield Case("10 bit", video("10bit.mp4", codec="libx265", pix_fmt="yuv420p10le"), GOOD)
    yield Case("4:2:2", video("422.mp4", pix_fmt="yuv422p"), GOOD)
    yield Case("4:4:4", video("444.mp4", pix_fmt="yuv444p"), GOOD)
    yield Case("grey video", video("grey.mkv", codec="ffv1", pix_fmt="gray"), GOOD)
    yield Case("16 bit grey video", video("grey16.mkv", codec="ffv1", pix_fmt="gray16le"), GOOD)
    yield Case("video with alpha", video("alpha.mov", codec="qtrle", pix_fmt="argb"), GOOD)
    yield Case("webm", video("vp9.webm", codec="libvpx-vp9", sound=True), GOOD)
    yield Case("AV1", video("av1.mp4", codec="libsvtav1", size=(128, 96)), GOOD)
    yield Case("MPEG-4 avi", video("mpeg4.avi", codec="mpeg4"), GOOD)
    yield Case("motion JPEG", video("mjpeg.avi", codec="mjpeg", pix_fmt="yuvj420p"), GOOD)
    yield Case("ProRes", video("prores.mov", codec="prores_ks", pix_fmt="yuv422p10le"), GOOD)
    yield Case("uncompressed", video("raw.avi", codec="rawvideo"), GOOD)
    yield Case("H.264 in mpeg program stream", video("mpeg2.mpg", codec="mpeg2video"), GOOD)
    # Time
    times = [0.0, 0.01, 0.05, 0.3, 0.31, 1.2, 1.25, 4.0]
    yield Case("variable frame rate", video("vfr.mp4", times=times), GOOD)
    yield Case("equal timestamps", video("equal.mkv", times=[0, 0.04, 0.0401, 0.0402, 0.08, 0.12, 0.16, 0.2]), GOOD)
    yield Case("starts late", video("offset.mkv", times=[100 + t for t in times]), GOOD)
    yield Case("webm without duration", blob("live.webm", _without_duration(folder / "vp9.webm")), GOOD)
    for angle, (cos, sin) in {90: (0, 1), 180: (-1, 0), 270: (0, -1)}.items():
        matrix = (cos * one, -sin * one, 0, sin * one, cos * one, 0, 0, 0, 1 << 30)
        yield Case(f"rotated by {angle}", turned(clip, folder / f"turn{angle}.mp4", matrix), GOOD)
    yield Case("mirrored", turned(clip, folder / "mirror.mp4", (-one, 0, 0, 0, one, 0, 0, 0, 1 << 30)), GOOD)
    yield Case("matrix of zeros", turned(clip, folder / "matrix.mp4", (0,) * 9), GOOD)
    # Not videos
    yield Case("empty file", blob("empty.mp4", b""), BAD)
    yield Case("text", blob("text.mp4", b"this is no video\n" * 100), BAD)
    yield Case("text, .txt", blob("notes.txt", "Grüße\n".encode() * 100), BAD)
    yield Case("subtitles", blob("lines.srt", b"1\n00:00:00,000 --> 00:00:01,000\nhello\n\n" * 9), BAD)
    yield Case("noise", blob("random.mp4", np.random.default_rng(1).bytes(50_000)), BAD)
    yield Case("zip", blob("zip.mp4", b"PK\x03\x04" + bytes(1000)), BAD)
    yield Case(
        "playlist that points elsewhere", blob("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nwhole.ts\n#EXT-X-ENDLIST\n"), BAD
    )
    yield Case(
        "playlist called .mp4", blob("list.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"), BAD
    )
    yield Case("concat script", blob("concat.mp4", f"ffconcat version 1.0\nfile {clip}\n".encode()), BAD)
    yield Case(
        "sdp", blob("stream.sdp", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n"), BAD
    )
    with av.open(str(folder / "sound.m4a"), "w", format="mp4") as container:
        add_sound(container, container.add_stream("aac", 48000), 1.0)
    yield Case("sound only", folder / "sound.m4a", BAD)
    yield Case("device", Path("/dev/zero"), BAD)
    os.mkfifo(folder / "pipe.mp4")
    yield Case("pipe nobody writes to", folder / "pipe.mp4", BAD)
    # Names
    yield Case("wrong extension", blob("clip.avi", data), GOOD)
    yield Case("video called .png", blob("clip.png", data), EITHER)
    yield Case("no extension", blob("clip", data), GOOD)
    yield Case("non-ASCII name", blob("Größe 顔 🎬.mp4", data), GOOD)
    yield Case("very long name", blob("n" * 240 + ".mp4", data), GOOD)
    yield Case("name with a protocol", blob("concat:a.mp4", data), GOOD)
    yield Case("name with percent", blob("frame%03d.mp4", data), GOOD)
    yield Case("name with newline", blob("two\nlines.mp4", data), GOOD)
    yield Case("bad bytes in the name", Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.mp4")), BAD)
    yield Case("path too long", folder / ("x" * 300), BAD)
    yield Case("missing", folder / "nothing.mp4", BAD)
    loop = folder / "loop.mp4"
    loop.symlink_to(loop)
    yield Case("link to itself", loop, BAD)
    (folder / "ring").mkdir()
    (folder / "ring" / "back").symlink_to(folder / "ring")
    yield Case("folder with a link to itself", folder / "ring", BAD)
    (folder / "broken.mp4").symlink_to(folder / "gone.mp4")
    yield Case("broken link", folder / "broken.mp4", BAD)
    secret = blob("secret.mp4", data)
    secret.chmod(0)
    yield Case("no permission", secret, EITHER if os.geteuid() == 0 else BAD)
    # Images
    yield Case("JPEG", image("photo.jpg"), GOOD)
    yield Case("CMYK JPEG", image("cmyk.jpg", "CMYK"), GOOD)
    yield Case("grey JPEG", image("grey.jpg", "L"), GOOD)
    yield Case("JPEG turned by EXIF", image("exif.jpg", exif=_turned_exif()), GOOD)
    yield Case("JPEG with damaged EXIF", image("badexif.jpg", exif=b"Exif\0\0MM\0*" + b"\xff" * 40), GOOD)
    jpeg = (folder / "photo.jpg").read_bytes()
    yield Case("truncated JPEG", blob("half.jpg", jpeg[: len(jpeg) // 2]), BAD)
    yield Case("JPEG of 20 bytes", blob("stub.jpg", jpeg[:20]), BAD)
    for mode in ("RGBA", "P", "1", "LA", "I;16"):
        yield Case(f"PNG {mode}", image(f"{mode.replace(';', '')}.png", mode), GOOD)
    yield Case("float TIFF", image("float.tif", "F"), GOOD)
    yield Case("1x1 PNG", image("1x1.png", size=(1, 1)), GOOD)
    yield Case("PNG that claims to be huge", blob("bomb.png", _bomb((folder / "1x1.png").read_bytes())), BAD)
    frames = [Image.fromarray(picture(k, 64, 48)) for k in range(5)]
    for name in ("moving.gif", "moving.webp", "moving.png"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], duration=80)
        yield Case(f"animated {name[-3:]}", folder / name, GOOD)
    webp = (folder / "moving.webp").read_bytes()
    yield Case("truncated animated WebP", blob("half.webp", webp[: len(webp) // 2]), EITHER)
    yield Case("still GIF", image("still.gif", "P"), GOOD)
    yield Case("text called .png", blob("text.png", b"no image"), BAD)
    # Folders
    for name, sizes in {"images": [(64, 48)] * 3, "mixed sizes": [(64, 48), (48, 64)]}.items():
        (folder / name).mkdir()
        for k, size in enumerate(sizes):
            image(f"{name}/{k}.png", size=size)
        yield Case(f"folder of {name}", folder / name, GOOD if name == "images" else BAD)
    (folder / "nothing").mkdir()
    yield Case("empty folder", folder / "nothing", BAD)
    (folder / "hollow").mkdir()
    (folder / "hollow" / "a.png").mkdir()
    yield Case("folder that holds a folder called a.png", folder / "hollow", BAD)


def _without_duration(path: Path) -> bytes:
    """A webm whose duration element is renamed to one that means nothing, as live recorders write it."""
    data = bytearray(path.read_bytes())
    at = data.index(b"\x44\x89\x88")
    data[at : at + 3] = b"\xec\x89"[:1] + b"\x40\x08"  # an EBML void of 8 bytes with a two-byte length
    return bytes(data)


def _turned_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def _bomb(png: bytes) -> bytes:
    """A PNG header that announces 60000x60000 pixels, with its checksum."""
    import zlib

    header = b"IHDR" + (60000).to_bytes(4, "big") * 2 + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


def read(path: Path, output: Path, limit: float) -> tuple[int | None, str]:
    """Exit code (None: too slow) and what was said."""
    command = [sys.executable, "-c", READ, str(output), str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return None, ""
    except UnicodeEncodeError:
        return 2, "a name this system cannot pass on"
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace").strip()


def problem(code: int | None, text: str, end: str, left: list[str]) -> str:
    """What is wrong with how a file ended; empty when nothing is."""
    if code is None:
        return "it hangs"
    if code not in (0, 2) or "Traceback" in text:
        return f"exit code {code}: {text[-400:]}"
    if code == 2 and (not text or len(text.splitlines()) > 2 or left):
        return f"not one clear line, or files left behind ({left}): {text[:400]}"
    if end != EITHER and (code == 0) != (end == GOOD):
        return f"it ended {'well' if code == 0 else 'badly'}: {text}"
    return ""


def check(folder: Path, only: str, limit: float, report: Callable[[str], None]) -> int:
    """Number of findings."""
    findings = count = 0
    for case in make(folder / "corpus"):
        if only not in case.name:
            continue
        output = folder / "out"
        output.mkdir(exist_ok=True)
        start = time.monotonic()
        code, text = read(case.path, output / "overlay.mp4", limit)
        left = [entry.name for entry in output.iterdir() if code or ".partial" in entry.name]
        wrong = problem(code, text, case.end, left)
        for entry in output.iterdir():
            entry.unlink()
        count, findings = count + 1, findings + bool(wrong)
        shown = text.replace(str(folder), "").replace("\n", " | ")[:110]
        report(f"{'FINDING' if wrong else 'ok'}  {case.name} ({time.monotonic() - start:.1f} s): {wrong or shown}")
    report(f"{count} inputs, {findings} findings")
    return findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="make the corpus here and keep it")
    parser.add_argument("--only", default="", help="cases with this word in their name")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds a file may take")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        sys.exit(bool(check(folder, arguments.only, arguments.limit, lambda line: print(line, flush=True))))


if __name__ == "__main__":
    main()
