"""Reads files that were damaged at random; every one must end with success or one clear line.

python benchmarks/fuzz.py [--files 500] [--seed 0] [--keep FOLDER]

Short clips and images of many formats are mutated (bytes flipped, runs overwritten, cut out, doubled, files cut short)
and read to their end, overlay and sound included, in a process that is started again when it dies. A traceback, a crash
and a file that takes longer than --limit seconds are findings and kept in FOLDER. Exit code 1 when there is one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from corpus import picture, write_video
from PIL import Image


def make_seeds(folder: Path) -> list[Path]:
    """Small valid files."""
    folder.mkdir(parents=True)
    seeds = [
        write_video(folder / "h264.mp4", sound=True),
        write_video(folder / "h264.mkv", sound=True),
        write_video(folder / "h264.ts"),
        write_video(folder / "vp9.webm", codec="libvpx-vp9", sound=True),
        write_video(folder / "mpeg4.avi", codec="mpeg4"),
        write_video(folder / "mjpeg.mov", codec="mjpeg", pix_fmt="yuvj420p"),
        write_video(folder / "mpeg2.mpg", codec="mpeg2video"),
        write_video(folder / "ffv1.mkv", codec="ffv1", pix_fmt="yuv444p"),
        write_video(folder / "prores.mov", codec="prores_ks", pix_fmt="yuv422p10le"),
    ]
    frames = [Image.fromarray(picture(k, 64, 48)) for k in range(4)]
    for name in ("moving.gif", "moving.webp", "moving.png"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], duration=80)
        seeds.append(folder / name)
    for name in ("still.jpg", "still.png", "still.webp", "still.tif", "still.bmp"):
        frames[0].save(folder / name)
        seeds.append(folder / name)
    return seeds


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


def read_all(connection: Connection) -> None:
    """Read what is sent until the end: path and place for the overlay in, verdict out."""
    from nphm_track.errors import NphmTrackError
    from nphm_track.video.reader import open_video
    from nphm_track.video.writer import ImageWriter, VideoWriter

    while True:
        path, output = connection.recv()
        try:
            with open_video(path) as source:
                info = source.info
                writer: Any = (
                    ImageWriter(output.with_suffix(".png"))
                    if info.kind == "image"
                    else VideoWriter(output, (info.width, info.height), source=path, origin=source.clip_origin)
                )
                last = -np.inf
                with writer:
                    for frame in source:
                        if not frame.time > last or frame.image.shape != (info.height, info.width, 3):
                            raise AssertionError(f"time {frame.time} after {last}, shape {frame.image.shape}")
                        last = frame.time
                        writer.write(frame.image, frame.time)
            connection.send(("damaged" if source.warning or writer.warning else "read", ""))
        except NphmTrackError as error:
            text = str(error)
            connection.send(("refused", "") if text and "\n" not in text else ("finding", f"unclear: {text!r}"))
        except BaseException:
            connection.send(("finding", traceback.format_exc(limit=-3)))


class Reader:
    """A process that reads files one by one."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=read_all, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def read(self, path: Path, output: Path) -> tuple[str, str]:
        self.connection.send((path, output))
        try:
            if self.connection.poll(self.limit):
                return self.connection.recv()
            verdict = f"no end within {self.limit:.0f} s"
        except EOFError:
            self.process.join()
            verdict = f"the process died (exit code {self.process.exitcode})"
        self.process.kill()
        self._start()
        return "finding", verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds a file may take")
    parser.add_argument("--keep", type=Path, help="folder for files that are findings")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        seeds, reader = make_seeds(folder / "seeds"), Reader(arguments.limit)
        (folder / "out").mkdir()
        for number in range(arguments.files):
            seed = seeds[number % len(seeds)]
            path = folder / f"{number:04d}_{seed.name}"
            path.write_bytes(mutate(seed.read_bytes(), rng))
            kind, text = reader.read(path, folder / "out" / "overlay.mp4")
            left = [entry.name for entry in (folder / "out").iterdir() if kind == "refused" or ".partial" in entry.name]
            if left and kind != "finding":
                kind, text = "finding", f"left behind: {', '.join(left)}"
            for entry in (folder / "out").iterdir():
                entry.unlink()
            counts[kind] += 1
            if kind == "finding":
                print(f"{path.name}: {text}", flush=True)
                if arguments.keep:
                    arguments.keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, arguments.keep / path.name)
            path.unlink()
    print(
        f"{arguments.files} files: " + ", ".join(f"{counts[k]} {k}" for k in ("read", "damaged", "refused", "finding"))
    )
    sys.exit(bool(counts["finding"]))


if __name__ == "__main__":
    main()
