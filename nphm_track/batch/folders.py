"""Which files of a folder of takes are takes, and why the others are not: camera cards hold much that is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nphm_track.batch.manifest import SESSION_JSON
from nphm_track.errors import InputError
from nphm_track.video.source import IMAGE_SUFFIXES, RAW_SUFFIXES, is_mask_folder, mask_files

VIDEO_SUFFIXES = frozenset({
    ".3gp", ".avi", ".dv", ".flv", ".gif", ".m2t", ".m2ts", ".m4v", ".mkv", ".mod", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".mxf", ".ogv", ".qt", ".tod", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})  # fmt: skip
PROXIES = frozenset({".lrv", ".lrf"})
"""Small copies that cameras write beside their clips."""
THUMBNAILS = frozenset({"thmbnl", "icon", "thumb", "thumbs", "thumbnail", "thumbnails"})
"""Folders in which cameras keep a picture of each clip."""


@dataclass(frozen=True, order=True)
class Found:
    """A file or folder: a take, or passed over for a ``reason``."""

    path: Path
    reason: str = ""


def walk(root: Path, session: Path, *, photos: bool = False) -> Iterator[Found]:
    """What lies below a folder, in no order. Links to folders are followed, each folder once, and ``session`` is not.

    Each video is a take, and so is each folder that directly holds two images or more and no video; with ``photos``
    each image is, and no folder.

    Raises InputError when the folder cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            status = folder.stat()
            entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
        except OSError as error:
            if folder == root:
                raise InputError(f"{root}: {error.strerror}") from None
            yield Found(folder, f"cannot be read ({error.strerror})")
            continue
        if (status.st_dev, status.st_ino) in seen or folder.resolve() == session:
            continue
        seen.add((status.st_dev, status.st_ino))
        names = {entry.name for entry in entries}
        if "run.json" in names or SESSION_JSON in names:
            yield Found(folder, "written by this program")
            continue
        waiting += [e for e in entries if e.is_dir() and not e.name.startswith(".")]
        yield from _files(folder, [e for e in entries if not e.is_dir()], is_root=folder == root, photos=photos)


def _files(folder: Path, files: list[Path], *, is_root: bool, photos: bool) -> Iterator[Found]:
    """The files directly in a folder, and the folder itself where its images are a take."""
    visible = [file for file in files if not file.name.startswith(".")]
    videos = [file for file in visible if file.suffix.lower() in VIDEO_SUFFIXES]
    masks = mask_files(folder)
    images = [file for file in visible if file.suffix.lower() in IMAGE_SUFFIXES and file not in masks]
    thumbnails = folder.name.lower() in THUMBNAILS
    masked = bool(images) and not is_root and is_mask_folder(folder)
    sequence = len(images) > 1 and not (videos or is_root or thumbnails or masked or photos)
    if sequence:
        yield Found(folder)
    stems = {video.stem.lower(): video.name for video in videos}
    for file in files:
        suffix = file.suffix.lower()
        if file in videos or (photos and file in images and not (thumbnails or masked)):
            yield Found(file)
        elif file.name.startswith("."):
            yield Found(file, "hidden")
        elif suffix in PROXIES:
            yield Found(file, "a camera's small copy of a clip")
        elif masked and file in images:
            yield Found(file, "a mask, by its folder, of an image of another one")
        elif file in masks:
            yield Found(file, "a mask of the image beside it")
        elif suffix in RAW_SUFFIXES:
            yield Found(file, "a raw photograph, which is not developed here")
        elif file not in images:
            yield Found(file, "neither a video nor an image")
        elif not sequence:
            yield Found(file, _reason(file, stems, is_root=is_root, with_videos=bool(videos)))


def _reason(image: Path, stems: dict[str, str], *, is_root: bool, with_videos: bool) -> str:
    """Why an image is no part of a take."""
    if image.parent.name.lower() in THUMBNAILS:
        return "a camera's thumbnail"
    if image.stem.lower() in stems:
        return f"the still of {stems[image.stem.lower()]}"
    if with_videos:
        return "an image beside videos"
    return "an image, in no folder of its own" if is_root else "a single image"
