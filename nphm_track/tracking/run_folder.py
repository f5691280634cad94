"""The run folder (version 1): its file names, the rules of resuming, and the typed result of a run.

Every file is written beside its place and moved there, so that what carries its final name is whole. Observations of
frames are appended to a log while the clip is read; a run killed at any moment goes on from the last complete record.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import InputError, NoFaceError, OutputError
from nphm_track.export.meshes import read_ply
from nphm_track.tracking.observations import ObservationLog
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.records import PARTIAL, InputInfo, RunInfo, Track

RUN_JSON = "run.json"
TRACK_NPZ = "track.npz"
CANONICAL_PLY = "canonical.ply"
MESHES = "meshes"
MESH_NAME = "{:06d}.ply"
OVERLAY_MP4 = "overlay.mp4"
OVERLAY_PNG = "overlay.png"
"""Stands for the video when the input is a single image."""
TRANSFORMS_JSON = "transforms.json"
WORK = "work"
OBSERVATIONS_BIN = "observations.bin"


class RunFolder:
    """A run being written. As a context manager it records in run.json how an unfinished run ended."""

    def __init__(self, path: Path, info: RunInfo) -> None:
        self.path = path
        self.info = info
        self._new = False

    @classmethod
    def open(
        cls,
        path: str | Path,
        input_info: InputInfo,
        options: TrackOptions,
        *,
        models: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ) -> RunFolder:
        """Make a run folder, or go on with the one that is there if input, options and models are the same.

        A run that failed is started over when they differ: there is nothing in it to lose.
        ``overwrite`` starts over, deleting the files a run owns and no others. Raises OutputError when the folder
        belongs to another input or is no run folder, holds another run of this input and ``overwrite`` is off, or
        cannot be written.
        """
        path = Path(path)
        fresh = RunInfo(input=input_info, options=options.fingerprint(), models=dict(models or {}))
        try:
            if not (path / RUN_JSON).exists():
                _check_empty(path)
                path.mkdir(parents=True, exist_ok=True)
                folder = cls(path, fresh)._begin()
                folder._new = True
                return folder
            stored = _stored_info(path, overwrite)
            if stored and stored.input.sha256 != input_info.sha256:
                raise OutputError(
                    f"{path} holds the run of another input ({stored.input.path}); choose another with -o"
                )
            changed = _difference(stored, fresh) if stored else ""
            if overwrite or stored is None or (changed and stored.state == "failed"):
                cls(path, stored or fresh).clear()
                return cls(path, fresh)._begin()
            if changed:
                raise OutputError(f"{path} holds a run with other {changed}; pass --overwrite to start over")
            folder = cls(path, stored)
            return folder if folder.complete else folder._begin()
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror})") from None

    @property
    def complete(self) -> bool:
        """The run is done: nothing is left to do."""
        return self.info.state == "done"

    @property
    def track(self) -> Path:
        return self.path / TRACK_NPZ

    @property
    def canonical(self) -> Path:
        return self.path / CANONICAL_PLY

    @property
    def overlay(self) -> Path:
        return self.path / _overlay_name(self.info.input)

    @property
    def transforms(self) -> Path:
        return self.path / TRANSFORMS_JSON

    def mesh_path(self, frame: int) -> Path:
        """Where the mesh of a frame goes; ``frame`` is the index in the clip, an element of ``Track.frame``."""
        return self.path / MESHES / MESH_NAME.format(frame)

    def log(self, dtype: np.dtype[Any]) -> ObservationLog:
        """The log of per-frame observations, with the records an earlier, unfinished run left."""
        return ObservationLog(self.path / WORK / OBSERVATIONS_BIN, dtype)

    def update(self, **changes: Any) -> None:
        """Set fields of run.json and save it."""
        self.info = self.info.model_copy(update=changes)
        self.info.save(self.path / RUN_JSON)

    def finish(self, **changes: Any) -> Run:
        """Mark the run done, drop the intermediates and return the result. Call it last."""
        self.update(state="done", message="", **changes)
        shutil.rmtree(self.path / WORK, ignore_errors=True)
        return Run(self.path, self.info)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or self.complete:
            return
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        if isinstance(error, NoFaceError):  # nothing to go on from
            shutil.rmtree(self.path / WORK, ignore_errors=True)
        with suppress(OSError):  # the error on its way out says more
            unusable = isinstance(error, InputError) and not self.track.exists()
            if self._new and unusable:  # an input that cannot be used leaves nothing behind
                self.clear()
                (self.path / RUN_JSON).unlink()
                self.path.rmdir()
                return
            self.update(state="interrupted" if stopped else "failed", message="" if stopped else str(error))

    def clear(self) -> None:
        """Delete what a run writes except run.json, and nothing else; killed half-way, it is still a run folder."""
        self.update(state="interrupted")
        (self.path / WORK / OBSERVATIONS_BIN).unlink(missing_ok=True)
        for name in (TRACK_NPZ, CANONICAL_PLY, OVERLAY_MP4, OVERLAY_PNG, TRANSFORMS_JSON):
            for file in (self.path / name, self.path / (name + PARTIAL)):
                file.unlink(missing_ok=True)
        (self.path / OVERLAY_MP4).with_suffix(".partial.mp4").unlink(missing_ok=True)  # ffmpeg goes by the last suffix
        for entry in (self.path / MESHES).glob("*.ply*"):
            if entry.name.removesuffix(PARTIAL)[:-4].isdigit():
                entry.unlink()
        for folder in (self.path / MESHES, self.path / WORK):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _begin(self) -> RunFolder:
        self.update(state="running", message="")
        return self


class Run:
    """A finished run, read on demand."""

    def __init__(self, path: str | Path, info: RunInfo) -> None:
        self.path = Path(path)
        self.info = info
        self._track: Track | None = None

    @property
    def track(self) -> Track:
        """Everything per frame, loaded at first use."""
        if self._track is None:
            self._track = Track.load(self.path / TRACK_NPZ)
        return self._track

    @property
    def overlay(self) -> Path:
        """File of the overlay: a video, or an image if the input is one."""
        return self.path / _overlay_name(self.info.input)

    def mesh_path(self, index: int) -> Path:
        """File of the mesh of the ``index``-th tracked frame (row of ``track``)."""
        return self.path / MESHES / MESH_NAME.format(int(self.track.frame[index]))

    def mesh(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Vertices [V, 3] (head space, metres) and faces [F, 3] of the ``index``-th tracked frame.

        Raises InputError when the frame is lost or the run wrote no meshes.
        """
        return read_ply(self.mesh_path(index))

    def canonical(self) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """The person's neutral head: vertices [V, 3] (head space, metres) and faces [F, 3]."""
        return read_ply(self.path / CANONICAL_PLY)


def read_run(path: str | Path) -> Run:
    """Open a finished run folder. Raises InputError when it is not one."""
    path = Path(path)
    if not (path / RUN_JSON).is_file():
        raise InputError(f"{path} is not a run folder: it has no {RUN_JSON}")
    info = RunInfo.load(path / RUN_JSON)
    if info.state != "done":
        raise InputError(f"{path} is not finished (state: {info.state}); the command that began it goes on with it")
    return Run(path, info)


def default_output(input: str | Path) -> Path:
    """Run folder of an input nobody named one for: ``<stem>_nphm`` in the working directory."""
    return Path(f"{Path(input).resolve().stem}_nphm")


def _overlay_name(input_info: InputInfo) -> str:
    return OVERLAY_PNG if input_info.kind == "image" else OVERLAY_MP4


def _check_empty(path: Path) -> None:
    """Raises OutputError unless a new run may go to ``path``; run.json is written first, so nothing else is ours."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file, not a folder")
    if path.is_dir() and any(entry.name != RUN_JSON + PARTIAL for entry in path.iterdir()):
        raise OutputError(f"{path} is not empty and not a run folder; choose another with -o")


def _stored_info(path: Path, overwrite: bool) -> RunInfo | None:
    """run.json of a folder; None when it is damaged and may be overwritten."""
    try:
        return RunInfo.load(path / RUN_JSON)
    except InputError as error:
        if overwrite:
            return None
        raise OutputError(f"{error}; pass --overwrite to start over") from None


def _difference(stored: RunInfo, fresh: RunInfo) -> str:
    """What sets two runs of one input apart, in words; empty when nothing does."""
    names = sorted(stored.options.keys() | fresh.options.keys())
    changed = [name for name in names if stored.options.get(name) != fresh.options.get(name)]
    if changed:
        return f"options ({', '.join(changed)})"
    if stored.models != fresh.models:
        return "model files"
    return "" if stored.package_version == fresh.package_version else f"software (version {stored.package_version})"
