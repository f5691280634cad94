"""A corpus of inputs as users have them and as nobody wants them; every one must end well.

Each file is read to its end as tracking does: the expected end is success, or one clear line. A traceback, a crash, a
process that takes longer than --limit seconds and a file that ends the other way than the corpus says are findings.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image

from benchmarks.harness import Only, Out, Report, table
from benchmarks.reading import Ending, Reader, add_sound, picture, write_video

GOOD, BAD, EITHER = "good", "bad", "either"
UNEVEN = [0.0, 0.01, 0.05, 0.3, 0.31, 1.2, 1.25, 4.0]
VIDEOS: dict[str, tuple[str, dict[str, Any]]] = {
    "one frame": ("one.mp4", {"frames": 1}),
    "1x1 video": ("1x1.mkv", {"size": (1, 1), "codec": "ffv1", "pix_fmt": "bgr0"}),
    "2x2 video": ("2x2.mp4", {"size": (2, 2)}),
    "odd size": ("odd.mkv", {"size": (63, 47), "codec": "ffv1", "pix_fmt": "yuv444p"}),
    "8k": ("8k.mp4", {"size": (7680, 4320), "frames": 2}),
    "very wide": ("wide.mp4", {"size": (4096, 16)}),
    "1 frame/s": ("slow.mp4", {"times": [float(k) for k in range(8)]}),
    "10 bit": ("10bit.mp4", {"codec": "libx265", "pix_fmt": "yuv420p10le"}),
    "4:2:2": ("422.mp4", {"pix_fmt": "yuv422p"}),
    "4:4:4": ("444.mp4", {"pix_fmt": "yuv444p"}),
    "grey video": ("grey.mkv", {"codec": "ffv1", "pix_fmt": "gray"}),
    "16 bit grey video": ("grey16.mkv", {"codec": "ffv1", "pix_fmt": "gray16le"}),
    "video with alpha": ("alpha.mov", {"codec": "qtrle", "pix_fmt": "argb"}),
    "webm": ("vp9.webm", {"codec": "libvpx-vp9", "sound": True}),
    "AV1": ("av1.mp4", {"codec": "libsvtav1", "size": (128, 96)}),
    "MPEG-4 avi": ("mpeg4.avi", {"codec": "mpeg4"}),
    "motion JPEG": ("mjpeg.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "ProRes": ("prores.mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le"}),
    "uncompressed": ("raw.avi", {"codec": "rawvideo"}),
    "MPEG program stream": ("mpeg2.mpg", {"codec": "mpeg2video"}),
    "raw H.264": ("raw.h264", {"format": "h264"}),
    "variable frame rate": ("vfr.mp4", {"times": UNEVEN}),
    "equal timestamps": ("equal.mkv", {"times": [0, 0.04, 0.0401, 0.0402, 0.08, 0.12, 0.16, 0.2]}),
    "starts late": ("offset.mkv", {"times": [100 + t for t in UNEVEN]}),
}
NOT_VIDEOS: dict[str, tuple[str, bytes]] = {
    "empty file": ("empty.mp4", b""),
    "text": ("text.mp4", b"this is no video\n" * 100),
    "text, .txt": ("notes.txt", "Grüße\n".encode() * 100),
    "subtitles": ("lines.srt", b"1\n00:00:00,000 --> 00:00:01,000\nhello\n\n" * 9),
    "noise": ("random.mp4", np.random.default_rng(1).bytes(50_000)),
    "zip": ("zip.mp4", b"PK\x03\x04" + bytes(1000)),
    "playlist": ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nwhole.ts\n#EXT-X-ENDLIST\n"),
    "playlist called .mp4": ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"),
    "concat script": ("concat.mp4", b"ffconcat version 1.0\nfile clip.mp4\n"),
    "sdp": ("stream.sdp", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n"),
    "text called .png": ("text.png", b"no image"),
}
COPIES = {
    "wrong extension": "other.avi", "no extension": "clip", "non-ASCII name": "Größe 顔 🎬.mp4",
    "very long name": "n" * 240 + ".mp4", "name with a protocol": "concat:a.mp4",
    "name with percent": "frame%03d.mp4", "name with newline": "two\nlines.mp4",
}  # fmt: skip
IMAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JPEG": ("photo.jpg", "RGB", {}), "CMYK JPEG": ("cmyk.jpg", "CMYK", {}), "grey JPEG": ("grey.jpg", "L", {}),
    "JPEG with damaged EXIF": ("badexif.jpg", "RGB", {"exif": b"Exif\0\0MM\0*" + b"\xff" * 40}),
    "still GIF": ("still.gif", "P", {}), **{f"PNG {m}": (f"{m}.png", m, {}) for m in ("RGBA", "P", "1", "LA")},
}  # fmt: skip
TURNS = {
    "rotated by 90": (0, -1, 1, 0), "rotated by 180": (-1, 0, 0, -1), "rotated by 270": (0, 1, -1, 0),
    "mirrored": (-1, 0, 0, 1), "matrix of zeros": (0, 0, 0, 0),
}  # fmt: skip


class Case(NamedTuple):
    name: str
    path: Path
    end: str


def run(out: Out, only: Only = None, limit: float = 60.0) -> Report:
    """``only`` takes cases with that word in their name. The corpus is made in ``out`` and stays there."""
    rows, findings = [], []
    folder = out / "corpus"
    with tempfile.TemporaryDirectory() as scratch:
        reader = Reader(Path(scratch), limit)
        for case in make(folder):
            if only and not any(word in case.name for word in only):
                continue
            ending = reader.read(case.path)
            wrong = problem(ending, case.end)
            shown = (wrong or ending.text).replace(str(folder), "").replace("\n", " ")[:110]
            rows.append(["FINDING" if wrong else ending.kind, case.name, shown])
            findings += [f"{case.name}: {wrong}"] * bool(wrong)
    head = f"{len(rows)} inputs, {len(findings)} findings"
    return Report({"findings": findings}, [table(["", "input", "what is said"], rows), head], not findings)


def problem(ending: Ending, end: str) -> str:
    """What is wrong with how a file ended; empty when nothing is."""
    if ending.kind == "finding":
        return ending.text
    good = ending.kind != "refused"
    return "" if end == EITHER or good == (end == GOOD) else f"it ended {'well' if good else 'badly'}: {ending.text}"


def make(folder: Path) -> Iterator[Case]:
    """The corpus, made in ``folder``, which must not exist or hold an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    clip = write_video(folder / "clip.mp4", frames=30, sound=True)
    yield Case("plain", clip, GOOD)
    yield from _damaged(folder, clip.read_bytes())
    for name, (file, options) in VIDEOS.items():
        yield Case(name, write_video(folder / file, **options), GOOD)
    for name, (a, b, c, d) in TURNS.items():
        yield Case(name, _blob(folder, f"{name}.mp4", _turned(clip.read_bytes(), a, b, c, d)), GOOD)
    yield Case("webm without duration", _blob(folder, "live.webm", _without_duration(folder / "vp9.webm")), GOOD)
    for name, (file, data) in NOT_VIDEOS.items():
        yield Case(name, _blob(folder, file, data), BAD)
    for name, file in COPIES.items():
        yield Case(name, _blob(folder, file, clip.read_bytes()), GOOD)
    yield from _images(folder)
    yield from _places(folder, clip.read_bytes())


def _blob(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def _damaged(folder: Path, data: bytes) -> Iterator[Case]:
    """Truncated and corrupt files."""
    for percent in (1, 10, 50, 90, 99):
        yield Case(
            f"truncated to {percent} %", _blob(folder, f"{percent}.mp4", data[: len(data) * percent // 100]), BAD
        )
    mkv = write_video(folder / "whole.mkv", frames=60).read_bytes()
    ts = write_video(folder / "whole.ts", frames=60, codec="mpeg2video").read_bytes()
    middle, noise = len(data) // 2, np.random.default_rng(0).bytes(len(data) // 10)
    behind = data[middle + len(noise) :]
    yield Case("truncated mkv", _blob(folder, "cut.mkv", mkv[: len(mkv) // 2]), GOOD)
    yield Case("truncated mkv header", _blob(folder, "head.mkv", mkv[:200]), BAD)
    yield Case("corrupt packets", _blob(folder, "noise.mp4", data[:middle] + noise + behind), EITHER)
    yield Case("zeros in the middle", _blob(folder, "zeros.mp4", data[:middle] + bytes(len(noise)) + behind), EITHER)
    yield Case("bytes behind the end", _blob(folder, "tail.mp4", data + noise), GOOD)
    yield Case("beginning missing", _blob(folder, "late.mp4", data[1000:]), BAD)
    yield Case("transport stream cut on both sides", _blob(folder, "cut.ts", ts[len(ts) // 3 + 7 : -99]), GOOD)
    yield Case("no frames", write_video(folder / "none.mkv", frames=0), BAD)


def _images(folder: Path) -> Iterator[Case]:
    image = Image.fromarray(picture(0))
    for name, (file, mode, options) in IMAGES.items():
        image.convert(mode).save(folder / file, **options)
        yield Case(name, folder / file, GOOD)
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / "exif.jpg", exif=turned.tobytes())
    yield Case("JPEG turned by EXIF", folder / "exif.jpg", GOOD)
    for file, kind in {"16bit.png": np.uint16, "float.tif": np.float32}.items():
        Image.fromarray(np.asarray(image.convert("L")).astype(kind) * 200).save(folder / file)
        yield Case(file, folder / file, GOOD)
    Image.fromarray(picture(0, 1, 1)).save(folder / "1x1.png")
    yield Case("1x1 PNG", folder / "1x1.png", GOOD)
    yield Case("PNG that claims to be huge", _blob(folder, "bomb.png", _bomb((folder / "1x1.png").read_bytes())), BAD)
    jpeg = (folder / "photo.jpg").read_bytes()
    yield Case("truncated JPEG", _blob(folder, "half.jpg", jpeg[: len(jpeg) // 2]), BAD)
    yield Case("JPEG of 20 bytes", _blob(folder, "stub.jpg", jpeg[:20]), BAD)
    frames = [Image.fromarray(picture(k)) for k in range(5)]
    for suffix in ("gif", "webp", "png"):
        frames[0].save(folder / f"moving.{suffix}", save_all=True, append_images=frames[1:], duration=80)
        yield Case(f"animated {suffix}", folder / f"moving.{suffix}", GOOD)
    webp = (folder / "moving.webp").read_bytes()
    yield Case("truncated animated WebP", _blob(folder, "half.webp", webp[: len(webp) // 2]), EITHER)


def _places(folder: Path, data: bytes) -> Iterator[Case]:
    """Folders, links, pipes, and what may not be read."""
    with av.open(str(folder / "sound.m4a"), "w", format="mp4") as container:
        add_sound(container, container.add_stream("aac", 48000), 1.0)
    yield Case("sound only", folder / "sound.m4a", BAD)
    yield Case("video called .png", _blob(folder, "clip.png", data), EITHER)
    yield Case("device", Path("/dev/zero"), BAD)
    pipe, loop, broken, secret = (folder / f"{name}.mp4" for name in ("pipe", "loop", "broken", "secret"))
    for path in (pipe, loop, broken, folder / "ring" / "back"):
        path.unlink(missing_ok=True)
    os.mkfifo(pipe)
    yield Case("pipe nobody writes to", pipe, BAD)
    loop.symlink_to(loop)
    yield Case("link to itself", loop, BAD)
    broken.symlink_to(folder / "gone.mp4")
    yield Case("broken link", broken, BAD)
    secret.write_bytes(data)
    secret.chmod(0)
    yield Case("no permission", secret, EITHER if os.geteuid() == 0 else BAD)
    yield Case("bad bytes in the name", Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.mp4")), BAD)
    yield Case("path too long", folder / ("x" * 300), BAD)
    yield Case("missing", folder / "nothing.mp4", BAD)
    for name in ("images", "mixed", "empty", "ring", "hollow/a.png"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for k in range(3):
        Image.fromarray(picture(k)).save(folder / "images" / f"{k}.png")
        Image.fromarray(picture(k, 64 - k, 48)).save(folder / "mixed" / f"{k}.png")
    (folder / "ring" / "back").symlink_to(folder / "ring")
    yield Case("folder of images", folder / "images", GOOD)
    for name in ("mixed", "empty", "ring", "hollow"):
        yield Case(f"folder: {name}", folder / name, BAD)


def _turned(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 file with another display matrix in its track header."""
    one = 1 << 16
    matrix = (a * one, b * one, 0, c * one, d * one, 0, 0, 0, (1 << 30) * any((a, b, c, d)))
    at = data.index(b"tkhd") + 44
    return data[:at] + b"".join(v.to_bytes(4, "big", signed=True) for v in matrix) + data[at + 36 :]


def _without_duration(path: Path) -> bytes:
    """A webm whose duration element is renamed to an EBML void of the same length, as live recorders write it."""
    return path.read_bytes().replace(b"\x44\x89\x88", b"\xec\x40\x08", 1)


def _bomb(png: bytes) -> bytes:
    """A PNG header that announces 60000x60000 pixels, with its checksum."""
    header = b"IHDR" + (60000).to_bytes(4, "big") * 2 + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]
