"""Files damaged at random; every one must end with success or one clear line.

Short clips and images of many formats are mutated (bytes flipped, runs overwritten, cut out, doubled, files cut short)
and read to their end, overlay and sound included. A traceback, a crash, a file left behind and a file that takes longer
than --limit seconds are findings, and are kept in --out.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.harness import Out, Report, table
from benchmarks.reading import Reader, picture, write_video

VIDEOS: dict[str, dict[str, str | bool]] = {
    "h264.mp4": {"sound": True},
    "h264.mkv": {"sound": True},
    "h264.ts": {},
    "vp9.webm": {"codec": "libvpx-vp9", "sound": True},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "ffv1.mkv": {"codec": "ffv1", "pix_fmt": "yuv444p"},
    "prores.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
}
MOVING = ("moving.gif", "moving.webp", "moving.png")
STILL = ("still.jpg", "still.png", "still.webp", "still.tif", "still.bmp")
KINDS = ("read", "damaged", "refused", "finding")


def run(out: Out, files: int = 500, seed: int = 0, limit: float = 60.0) -> Report:
    """Counts how the files ended."""
    rng = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    findings = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        seeds, reader = make_seeds(folder / "seeds"), Reader(folder / "out", limit)
        for number in range(files):
            original = seeds[number % len(seeds)]
            path = folder / f"{number:04d}_{original.name}"
            path.write_bytes(mutate(original.read_bytes(), rng))
            ending = reader.read(path)
            counts[ending.kind] += 1
            if ending.kind == "finding":
                findings.append(f"{path.name}: {ending.text}")
                print(findings[-1], flush=True)
                out.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, out / path.name)
            path.unlink()
    rows = [[kind, counts[kind]] for kind in KINDS]
    return Report({"counts": counts, "findings": findings}, [table(["", "files"], rows), *findings], not findings)


def make_seeds(folder: Path) -> list[Path]:
    """Small valid files."""
    folder.mkdir(parents=True)
    for name, options in VIDEOS.items():
        write_video(folder / name, **options)  # type: ignore[arg-type]
    frames = [Image.fromarray(picture(k)) for k in range(4)]
    for name in MOVING:
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], duration=80)
    for name in STILL:
        frames[0].save(folder / name)
    return [folder / name for name in (*VIDEOS, *MOVING, *STILL)]


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """A damaged copy: one to four things happen to it."""
    values = np.frombuffer(data, np.uint8).copy()
    for _ in range(rng.integers(1, 5)):
        n = len(values)
        if n < 16:
            break
        start = int(rng.integers(n) if rng.random() < 0.6 else rng.integers(min(n, 512)))  # headers are most fragile
        length = int(min(n - start, rng.choice([1, 4, 16, 256])))
        match rng.integers(6):
            case 0:
                values[rng.integers(n, size=max(1, n // 500))] ^= np.uint8(1 << rng.integers(8))
            case 1:
                values[start : start + length] = rng.integers(0, 256, length)
            case 2:
                values[start : start + length] = rng.choice([0, 255, 127])
            case 3:
                values = np.delete(values, slice(start, start + length))
            case 4:
                values = np.insert(values, start, values[start : start + length])
            case _:
                values = values[: max(16, int(n * rng.random()))]
    return values.tobytes()
