"""The run folder (version 1): its file names, the rules of resuming, and the typed result of a run.

Every file is written beside its place and moved there, so that what carries its final name is whole. Observations of
frames are appended to a log while the clip is read; a run killed at any moment goes on from the last complete record.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nphm_track.errors import UNWRITABLE, InputChangedError, InputError, NoFaceError, OutputError
from nphm_track.files.names import plain
from nphm_track.locking import RunLock
from nphm_track.rendering.ply import read_ply
from nphm_track.tracking.checks import option_problems, track_problems
from nphm_track.tracking.mesh_stream import StreamReader
from nphm_track.tracking.observations import ObservationLog
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.records import PARTIAL, RUN_JSON, InputInfo, RunInfo, Track, sync
from nphm_track.tracking.sameness import check_same, difference, saw_the_same
from nphm_track.tracking.written import RECORD, WrittenFiles

TRACK_NPZ = "track.npz"
OBSERVATIONS_NPZ = "observations.npz"
"""What a refinement needs of the observations and TRACK_NPZ does not have."""
CANONICAL_PLY = "canonical.ply"
RIG_NPZ = "rig.npz"
MESHES = "meshes"
MESH_NAME = "{:06d}.ply"
MESHES_NPZ = "meshes.npz"
"""Stands for the folder when ``mesh_format`` is npz."""
OVERLAY_MP4 = "overlay.mp4"
OVERLAY_PNG = "overlay.png"
"""Stands for the video when the input is a single image."""
TRANSFORMS_JSON = "transforms.json"
REPORT_HTML = "report.html"
FILES = (
    TRACK_NPZ, OBSERVATIONS_NPZ, RIG_NPZ, CANONICAL_PLY, MESHES_NPZ, OVERLAY_MP4, OVERLAY_PNG, TRANSFORMS_JSON,
    REPORT_HTML,
)  # fmt: skip
LOCK = "run.lock"
"""There while a process writes the folder."""
PATIENCE = 5.0
"""Seconds to wait for it: a process that was told to end may need a moment."""
WORK = "work"
OBSERVATIONS_BIN = "observations.bin"
WRITTEN_BIN = "written.bin"
REFINEMENT = "refinement"
"""Folder of the refinement's finished stages."""
VERTICES = "vertices"
"""Folder of finished blocks of MESHES_NPZ."""


class RunFolder:
    """A run being written, by this process alone.

    As a context manager it records in run.json how it ended, and turns what the system says about a folder that cannot
    be written into an OutputError.
    """

    def __init__(self, path: Path, info: RunInfo) -> None:
        self.path = path
        self.info = info
        self.was_done = False
        """All that is missing from this run are some of its files; ``track.npz`` is whole."""
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
        threads: int | None = None,
        overwrite: bool = False,
        break_lock: bool = False,
        whole: Callable[[Run], bool] = lambda run: True,
        note: Callable[[str], None] = lambda line: None,
    ) -> RunFolder:
        """Make a run folder, or go on with the one that is there if input, options and models are the same.

        A run that failed is started over when they differ: there is nothing in it to lose.

        Args:
            models, threads: of the run; those of one that is gone on with stay.
            overwrite: start over, deleting the files a run owns and no others.
            break_lock: take the folder from a process that keeps it locked.
            whole: whether a run that is done has all its files; one that has not is gone on with.
            note: told what there is to wait for.

        Raises OutputError when the folder belongs to another input or is no run folder, holds another run of this input
        and ``overwrite`` is off, is being written by another process, or cannot be written.
        """
        path = Path(path)
        fresh = RunInfo(input=input_info, options=options.fingerprint(), models=dict(models or {}), threads=threads)
        folder = cls(path, fresh)
        try:
            stored = None
            if (path / RUN_JSON).exists():
                stored = _stored_info(path, overwrite)
                check_same(path, stored, fresh, overwrite)
                same = stored is not None and not overwrite and not difference(stored, fresh)
                folder.was_done = same and stored is not None and stored.state == "done"
                if stored and folder.was_done and whole(Run(path, stored)):
                    folder._lock.sweep()
                    shutil.rmtree(path / WORK, ignore_errors=True)  # its writer may have been killed before it did
                    return cls(path, stored)
            else:
                _check_empty(path)
                path.mkdir(parents=True, exist_ok=True)
                folder._new = True
            folder._lock.acquire(PATIENCE, break_lock=break_lock, note=note)
            if folder._untouched_since(stored, overwrite):
                if not folder._new:
                    folder._take_over(stored, overwrite)
                folder.update(state="running", message="")
                return folder
        except OSError as error:
            folder._lock.release()
            raise OutputError(f"{path} cannot be written ({error.strerror})") from None
        except BaseException:
            folder._lock.release()
            raise
        folder._lock.release()  # another process has been at it while we waited
        return cls.open(
            path, input_info, options, models=models, threads=threads, overwrite=overwrite, whole=whole, note=note
        )

    @property
    def complete(self) -> bool:
        """The run is done: nothing is left to do."""
        return self.info.state == "done"

    @property
    def track(self) -> Path:
        return self.path / TRACK_NPZ

    @property
    def earlier_track(self) -> Path:
        """Where ``track`` is when a run is made again of the observations that it is a part of."""
        return self.path / WORK / TRACK_NPZ

    @property
    def observations(self) -> Path:
        return self.path / OBSERVATIONS_NPZ

    @property
    def canonical(self) -> Path:
        return self.path / CANONICAL_PLY

    @property
    def rig(self) -> Path:
        return self.path / RIG_NPZ

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
        return ObservationLog(self.path / WORK / OBSERVATIONS_BIN, dtype, self._lock.check)

    def stage_log(self, name: str, dtype: np.dtype[Any]) -> ObservationLog:
        """The log of a finished stage of the refinement."""
        return ObservationLog(self.refinement / name, dtype, self._lock.check)

    def written(self) -> WrittenFiles:
        """The list of finished files, with those that an earlier, unfinished run left."""
        return WrittenFiles(self.path, ObservationLog(self.path / WORK / WRITTEN_BIN, RECORD, self._lock.check))

    def update(self, **changes: Any) -> None:
        """Set fields of run.json and save it. Raises OutputError when the folder is not this process's any more."""
        self._lock.check()
        self.info = self.info.model_copy(update=changes)
        try:
            self.info.save(self.path / RUN_JSON)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written ({error.strerror})") from None

    def so_far(self) -> Run:
        """What has been written, to be read as a finished run is."""
        return Run(self.path, self.info)

    def finish(self, **changes: Any) -> Run:
        """Mark the run done, drop the intermediates and return the result. Call it last.

        Everything the run wrote has reached the disk before run.json says that it is done.
        """
        for file in self._files():
            if file.is_file():
                sync(file)
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
        if isinstance(error, OSError) and (error.errno in UNWRITABLE or not self.path.is_dir()):
            raise OutputError(f"cannot write {error.filename or self.path} ({error.strerror})") from error

    def _record(self, error: BaseException) -> None:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        with suppress(OSError, OutputError):  # the error on its way out says more
            if isinstance(error, NoFaceError | InputChangedError):  # nothing to go on from
                self.clear()
            if self._new and isinstance(error, InputError) and not self.track.exists():
                self.discard()  # an input that cannot be used leaves nothing behind
                return
            self.update(state="interrupted" if stopped else "failed", message="" if stopped else plain(str(error)))

    def discard(self) -> None:
        """Delete all that the run has written, and its folder where nothing else is in it. Call it last."""
        self.clear()
        (self.path / RUN_JSON).unlink()
        self._lock.release()
        self.path.rmdir()

    def _files(self) -> Iterator[Path]:
        """Everything that a run may have written, but run.json and what is in ``work``."""
        yield from (self.path / name for name in FILES)
        for entry in (self.path / MESHES).glob("*.ply"):
            if entry.stem.isdigit():
                yield entry

    def clear(self, *, observations: bool = True) -> None:
        """Delete what a run writes except run.json, and nothing else; killed half-way, it is still a run folder.

        Without ``observations`` these stay: their log, or what was kept of it and the track beside it.
        """
        self.update(state="interrupted")
        kept = set() if observations else {self.observations}
        if observations:
            (self.path / WORK / OBSERVATIONS_BIN).unlink(missing_ok=True)
            self.earlier_track.unlink(missing_ok=True)
        elif self.observations.is_file() and self.track.is_file():
            self.earlier_track.parent.mkdir(exist_ok=True)
            self.track.replace(self.earlier_track)
        for file in self._files():
            if file in kept:
                continue
            file.unlink(missing_ok=True)
            file.with_name(file.name + PARTIAL).unlink(missing_ok=True)
        (self.path / OVERLAY_MP4).with_suffix(".partial.mp4").unlink(missing_ok=True)  # ffmpeg goes by the last suffix
        for entry in (self.path / MESHES).glob(f"*.ply{PARTIAL}"):
            if entry.name.partition(".")[0].isdigit():
                entry.unlink()
        (self.path / WORK / WRITTEN_BIN).unlink(missing_ok=True)
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
        """Go on with an earlier run, from its observations when these would be the same, or start over."""
        if stored is not None and not overwrite and not difference(stored, self.info):
            self.info = stored
            return
        keep = stored is not None and not overwrite and saw_the_same(stored, self.info)
        if keep and stored is not None:
            self.info = self.info.model_copy(
                update={"threads": stored.threads, "timings": stored.timings, "cpu_seconds": stored.cpu_seconds}
            )
        fresh, self.info = self.info, stored or self.info
        self.clear(observations=not keep)
        self.info = fresh


class Run:
    """A finished run, read on demand."""

    def __init__(self, path: str | Path, info: RunInfo) -> None:
        self.path = Path(path)
        self.info = info
        self._track: Track | None = None
        self._stream: StreamReader | None = None

    @property
    def track(self) -> Track:
        """Everything per frame, loaded at first use. Raises InputError when it cannot be read or holds other numbers
        than a run of this input does.
        """
        if self._track is None:
            track = Track.load(self.path / TRACK_NPZ)
            if problems := track_problems(self.info, track):
                more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
                raise InputError(f"{self.path / TRACK_NPZ}: {problems[0]}{more}")
            self._track = track
        return self._track

    def between(self, first: int | None, last: int | None) -> Run:
        """The same run with the frames ``first`` to ``last`` of the clip alone. Raises InputError when it has none."""
        frame = self.track.frame
        rows = np.flatnonzero((frame >= (first or 0)) & (frame <= (np.inf if last is None else last)))
        if not len(rows):
            raise InputError(f"{self.path} has no frame in {first or 0} to {'its end' if last is None else last}")
        part = Run(self.path, self.info)
        part._track = self.track.rows(slice(rows[0], rows[-1] + 1))
        return part

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
    if problems := option_problems(info):
        raise InputError(f"{path}: {problems[0]}")
    return Run(path, info)


@contextmanager
def writing_into(run: Run) -> Iterator[None]:
    """The exclusive right to write into the folder of a finished run.

    Raises OutputError when another process keeps it for longer than ``PATIENCE``, or the folder cannot be written.
    """
    lock = RunLock(run.path / LOCK, str(run.path))
    try:
        lock.acquire(PATIENCE)
    except OSError as error:
        raise OutputError(f"{run.path} cannot be written ({error.strerror})") from None
    try:
        yield
    finally:
        lock.release()


def default_output(input: str | Path) -> Path:
    """Run folder of an input nobody named one for: ``<stem>_nphm`` in the working directory."""
    return Path(f"{Path(input).resolve().stem}_nphm")


def _overlay_name(input_info: InputInfo) -> str:
    return OVERLAY_PNG if input_info.kind == "image" else OVERLAY_MP4


def _check_empty(path: Path) -> None:
    """Raises OutputError unless a new run may go to ``path``; run.json is written first, so nothing else is ours."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file, not a folder")
    ours = (RUN_JSON + PARTIAL, LOCK)
    if path.is_dir() and not all(entry.name.startswith(ours) for entry in path.iterdir()):
        raise OutputError(f"{path} is not empty and not a run folder; choose another with -o")


def _stored_info(path: Path, overwrite: bool) -> RunInfo | None:
    """run.json of a folder; None when it is damaged and may be overwritten."""
    try:
        return RunInfo.load(path / RUN_JSON)
    except InputError as error:
        if overwrite:
            return None
        raise OutputError(f"{error}; pass --overwrite to start over") from None
