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
from nphm_track.locking import RunLock
from nphm_track.rendering.ply import read_ply
from nphm_track.tracking.mesh_stream import StreamReader
from nphm_track.tracking.observations import ObservationLog
from nphm_track.tracking.options import IDENTITY_OPTIONS, TrackOptions
from nphm_track.tracking.records import PARTIAL, InputInfo, RunInfo, Track

RUN_JSON = "run.json"
TRACK_NPZ = "track.npz"
CANONICAL_PLY = "canonical.ply"
MESHES = "meshes"
MESH_NAME = "{:06d}.ply"
MESHES_NPZ = "meshes.npz"
"""Stands for the folder when ``mesh_format`` is npz."""
OVERLAY_MP4 = "overlay.mp4"
OVERLAY_PNG = "overlay.png"
"""Stands for the video when the input is a single image."""
TRANSFORMS_JSON = "transforms.json"
REPORT_HTML = "report.html"
LOCK = "run.lock"
"""There while a process writes the folder."""
PATIENCE = 5.0
"""Seconds to wait for it: a process that was told to end may need a moment."""
WORK = "work"
OBSERVATIONS_BIN = "observations.bin"
REFINEMENT = "refinement"
"""Folder of the refinement's finished stages."""
VERTICES = "vertices"
"""Folder of finished blocks of MESHES_NPZ."""


class RunFolder:
    """A run being written, by this process alone. As a context manager it records in run.json how it ended."""

    def __init__(self, path: Path, info: RunInfo) -> None:
        self.path = path
        self.info = info
        self._new = False
        self._lock = RunLock(path / LOCK, str(path))

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
        folder = cls(path, fresh)
        try:
            stored = None
            if (path / RUN_JSON).exists():
                stored = _stored_info(path, overwrite)
                _check_same(path, stored, fresh, overwrite)
                if stored and stored.state == "done" and not overwrite:
                    folder._lock.sweep()
                    return cls(path, stored)
            else:
                _check_empty(path)
                path.mkdir(parents=True, exist_ok=True)
                folder._new = True
            folder._lock.acquire(PATIENCE)
            if not folder._untouched_since(stored, overwrite):
                folder._lock.release()
                return cls.open(path, input_info, options, models=models, overwrite=overwrite)
            if not folder._new:
                folder._take_over(stored, overwrite)
            folder.update(state="running", message="")
            return folder
        except OSError as error:
            folder._lock.release()
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

    @property
    def mesh_stream(self) -> Path:
        return self.path / MESHES_NPZ

    @property
    def refinement(self) -> Path:
        """Folder of the refinement's finished stages."""
        return self.path / WORK / REFINEMENT

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
        self._lock.release()
        return Run(self.path, self.info)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is not None and not self.complete:
                self._record(error)
        finally:
            self._lock.release()

    def _record(self, error: BaseException) -> None:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        if isinstance(error, NoFaceError):  # nothing to go on from
            shutil.rmtree(self.path / WORK, ignore_errors=True)
        with suppress(OSError):  # the error on its way out says more
            unusable = isinstance(error, InputError) and not self.track.exists()
            if self._new and unusable:  # an input that cannot be used leaves nothing behind
                self.clear()
                (self.path / RUN_JSON).unlink()
                self._lock.release()
                self.path.rmdir()
                return
            self.update(state="interrupted" if stopped else "failed", message="" if stopped else str(error))

    def clear(self, *, observations: bool = True) -> None:
        """Delete what a run writes except run.json, and nothing else; killed half-way, it is still a run folder.

        Without ``observations`` their log stays.
        """
        self.update(state="interrupted")
        if observations:
            (self.path / WORK / OBSERVATIONS_BIN).unlink(missing_ok=True)
        for name in (TRACK_NPZ, CANONICAL_PLY, MESHES_NPZ, OVERLAY_MP4, OVERLAY_PNG, TRANSFORMS_JSON, REPORT_HTML):
            for file in (self.path / name, self.path / (name + PARTIAL)):
                file.unlink(missing_ok=True)
        (self.path / OVERLAY_MP4).with_suffix(".partial.mp4").unlink(missing_ok=True)  # ffmpeg goes by the last suffix
        for entry in (self.path / MESHES).glob("*.ply*"):
            if entry.name.removesuffix(PARTIAL)[:-4].isdigit():
                entry.unlink()
        for part in (*(self.path / WORK / VERTICES).glob("*.npy*"), *self.refinement.glob("*.bin")):
            part.unlink()
        for folder in (self.path / MESHES, self.path / WORK / VERTICES, self.refinement, self.path / WORK):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _untouched_since(self, stored: RunInfo | None, overwrite: bool) -> bool:
        """Whether run.json still is what it was before the lock was held."""
        if not (self.path / RUN_JSON).exists():
            return self._new
        return not self._new and _stored_info(self.path, overwrite) == stored

    def _take_over(self, stored: RunInfo | None, overwrite: bool) -> None:
        """Go on with an earlier run, from its observations when only the identity is another, or start over."""
        difference = _difference(stored, self.info) if stored else ""
        if stored is not None and not difference and not overwrite:
            self.info = stored
            return
        keep = stored is not None and not overwrite and _differ_in_identity(stored, self.info)
        RunFolder(self.path, stored or self.info).clear(observations=not keep)


class Run:
    """A finished run, read on demand."""

    def __init__(self, path: str | Path, info: RunInfo) -> None:
        self.path = Path(path)
        self.info = info
        self._track: Track | None = None
        self._stream: StreamReader | None = None

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
        """File of the mesh of the ``index``-th tracked frame (row of ``track``), where each has its own."""
        return self.path / MESHES / MESH_NAME.format(int(self.track.frame[index]))

    def mesh(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Vertices [V, 3] (head space, metres) and faces [F, 3] of the ``index``-th tracked frame.

        Raises InputError when the frame is lost, or the run did not write its mesh.
        """
        if self.info.options.get("mesh_format") == "npz":
            stream = self.mesh_stream
            return stream.vertices(int(self.track.frame[index])), stream.faces
        return read_ply(self.mesh_path(index))

    @property
    def mesh_stream(self) -> StreamReader:
        """The meshes of a run whose ``mesh_format`` is npz. Raises InputError when they cannot be read."""
        if self._stream is None:
            self._stream = StreamReader(self.path / MESHES_NPZ)
        return self._stream

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
    if path.is_dir() and any(entry.name not in (RUN_JSON + PARTIAL, LOCK) for entry in path.iterdir()):
        raise OutputError(f"{path} is not empty and not a run folder; choose another with -o")


def _stored_info(path: Path, overwrite: bool) -> RunInfo | None:
    """run.json of a folder; None when it is damaged and may be overwritten."""
    try:
        return RunInfo.load(path / RUN_JSON)
    except InputError as error:
        if overwrite:
            return None
        raise OutputError(f"{error}; pass --overwrite to start over") from None


def _check_same(path: Path, stored: RunInfo | None, fresh: RunInfo, overwrite: bool) -> None:
    """Raises OutputError unless ``fresh`` may take the place of, or go on with, what is stored; None is damaged."""
    if stored is None:
        return
    if stored.input.sha256 != fresh.input.sha256:
        raise OutputError(f"{path} holds the run of another input ({stored.input.path}); choose another with -o")
    changed = _difference(stored, fresh)
    if not changed or overwrite or stored.state == "failed":
        return
    if stored.state == "done" or not _differ_in_identity(stored, fresh):
        raise OutputError(f"{path} holds a run with other {changed}; pass --overwrite to start over")


def _differ_in_identity(stored: RunInfo, fresh: RunInfo) -> bool:
    """Whether two runs of one input saw the same and differ in whose head is fitted to it, if in anything."""
    same = {name: fresh.options.get(name) for name in IDENTITY_OPTIONS}
    return not _difference(stored.model_copy(update={"options": stored.options | same}), fresh)


def _difference(stored: RunInfo, fresh: RunInfo) -> str:
    """What sets two runs of one input apart, in words; empty when nothing does."""
    names = sorted((stored.options.keys() | fresh.options.keys()) - {"identity"})  # its numbers decide, not its place
    changed = [name for name in names if stored.options.get(name) != fresh.options.get(name)]
    if changed:
        told = dict.fromkeys(name.removesuffix("_sha256").replace("_", "-") for name in changed)
        return f"options ({', '.join(told)})"
    if stored.models != fresh.models:
        return "model files"
    return "" if stored.package_version == fresh.package_version else f"software (version {stored.package_version})"
