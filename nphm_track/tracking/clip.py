"""The clip of a run: opened as its options say, and found again when it or the run has moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from nphm_track.cameras.intrinsics import Intrinsics, focal_from_exif
from nphm_track.errors import InputError, OutputError
from nphm_track.files.names import path_of, text_of
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.records import InputInfo, input_digest, relative_path
from nphm_track.tracking.run_folder import RUN_JSON, Run
from nphm_track.video.reader import open_video
from nphm_track.video.source import FrameSource

READING = ("start", "end", "every", "stream", "fps", "mattes")
"""Options that decide which pictures of an input are its frames, beside the reader."""


def open_input(path: str | Path, options: TrackOptions) -> FrameSource:
    """The frames that ``options`` choose of an input. Raises InputError when it cannot be read."""
    return open_video(path, **{name: getattr(options, name) for name in READING}, backend=options.reader)


def given_camera(
    source: FrameSource, options: TrackOptions, note: Callable[[str], None] = lambda line: None
) -> Intrinsics | None:
    """The camera that the options or a photograph's metadata give; None when it is to be solved.

    ``note`` is told of the metadata. Raises InputError when a calibration cannot be used.
    """
    size = (source.info.width, source.info.height)
    camera = options.camera(size, source.info.presentation)
    if camera is None and source.info.kind == "image":
        focal = focal_from_exif(source.info.path, size)
        if focal is not None:
            note(f"focal length {focal:.0f} px, from the image's metadata")
            return Intrinsics.from_focal(focal, size)
    return camera


def open_clip(run: Run, clip: str | Path | None = None) -> FrameSource:
    """The frames a run was made of. ``clip`` and errors as in :func:`find_clip`."""
    stored = {name: run.info.options[name] for name in READING if name in run.info.options}
    return open_video(find_clip(run, clip), **stored, backend=run.info.options.get("reader", "av"))


def find_clip(run: Run, clip: str | Path | None = None) -> Path:
    """Where the clip of a run is now: ``clip`` if given, else where it was, else beside the run.

    Beside the run are the place it had relative to the run, and the run's own folder and the one above; there a file is
    known by its size and SHA-256, whatever it is called now.

    Raises InputError when it is nowhere, or ``clip`` is another one.
    """
    info = run.info.input
    if clip is not None:
        if not is_clip(Path(clip), info):
            raise InputError(f"{clip} is not the clip {run.path} was made of: its contents differ")
        return Path(clip)
    found = next((place for place in _places(run) if is_clip(place, info)), None)
    if found is not None:
        return found
    remedy = f"nphm-track relink {run.path} CLIP says where it is"
    if info.place.exists():
        raise InputError(f"{info.path} is not the clip this run was made of: it has changed; {remedy}")
    raise InputError(f"the clip of this run, {info.path}, is not there any more; {remedy}")


def check_not_clip(run: Run, target: Path) -> None:
    """Raises OutputError when ``target`` is the run's clip, wherever that is now, or an image of it."""
    info = run.info.input
    part = info.kind == "folder" and is_clip(target.parent, info) and target.exists()
    if part or is_clip(target, info):
        raise OutputError(f"{target} is the clip of this run, which stays as it is; choose another name with -o")


def relink(run: Run, clip: str | Path) -> None:
    """Write into run.json where the clip of a run is. Raises InputError when ``clip`` is another one."""
    place = find_clip(run, clip).absolute()
    moved = run.info.input.model_copy(update={"path": text_of(place), "relative": relative_path(place, run.path)})
    run.info.model_copy(update={"input": moved}).save(run.path / RUN_JSON)


def is_clip(path: Path, info: InputInfo) -> bool:
    """Whether a file or folder holds what ``info`` describes."""
    try:
        if info.kind == "folder":
            return path.is_dir() and input_digest(path)[0] == info.sha256
        return path.is_file() and path.stat().st_size == info.size and input_digest(path)[0] == info.sha256
    except (OSError, InputError):
        return False


def _places(run: Run) -> Iterator[Path]:
    info = run.info.input
    yield info.place
    if info.relative is not None:
        yield run.path / path_of(info.relative)
    for folder in (run.path.absolute().parent, run.path):
        yield folder / info.place.name
        if folder.is_dir():
            yield from sorted(folder.iterdir())
