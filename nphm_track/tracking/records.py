"""Records of a run: the arrays of ``track.npz`` and the fields of ``run.json``."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import IntEnum
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nphm_track.errors import InputChangedError, InputError
from nphm_track.files.names import path_of, plain, text_of
from nphm_track.files.reading import Arrays, read_bytes, reading
from nphm_track.landmark_model import eye_distance
from nphm_track.tracking.observations import pieces
from nphm_track.version import __version__
from nphm_track.video.source import VideoInfo, image_files

RUN_JSON = "run.json"
PARTIAL = ".partial"
"""Ending of a file that is being written."""


class Status(IntEnum):
    """State of a frame in ``Track.status``."""

    TRACKED = 0
    FILLED = 1
    """Not seen, or not trusted, and filled in from the frames around it."""
    LOST = 2
    """No head: pose, codes and fitted landmarks are NaN and there is no mesh. The observed landmarks are NaN, too, when
    no face was seen; where they are there, no head fits them."""


@dataclass
class Track:
    """Everything per frame of a run, in time order. Floating point values of frames that lack them are NaN."""

    frame: NDArray[np.int64]
    """[T] index of the frame in the clip (of ``every`` frames one is tracked)."""
    time: NDArray[np.float64]
    """[T] the container's timestamp, seconds."""
    status: NDArray[np.uint8]
    """[T] ``Status``: 0 tracked, 1 filled in, 2 lost."""
    confidence: NDArray[np.float32]
    """[T] 0..1, probability that the face is there and the landmarks are right."""
    z_id: NDArray[np.float32]
    """[D_id] identity code, one for the clip."""
    z_ex: NDArray[np.float32]
    """[T, D_ex] expression codes."""
    R: NDArray[np.float64]
    """[T, 3, 3] head-to-camera rotation, OpenCV axes: x_cam = R x_head + t."""
    t: NDArray[np.float64]
    """[T, 3] head-to-camera translation, metres."""
    K: NDArray[np.float64]
    """[3, 3] pinhole intrinsics, pixels of the original (rotation-corrected) frame, pixel centres at 0.5."""
    image_size: NDArray[np.int64]
    """[2] width and height of the frame, pixels."""
    landmarks: NDArray[np.float32]
    """[T, 478, 2] observed landmarks, pixels; NaN where none were seen."""
    landmarks_fit: NDArray[np.float32]
    """[T, 68, 2] the fitted head's own iBUG-68 points, projected, pixels; NaN for points that the head model does not
    know (one with MonoNPHM's anchors knows those of ``conventions.ANCHOR_LANDMARKS``)."""
    blendshapes: NDArray[np.float32]
    """[T, 52] the landmark network's scores 0..1 in the order of ``conventions.BLENDSHAPE_NAMES``, of the face's own
    sides. What the head itself does is in ``arkit``."""
    landmark_error_px: NDArray[np.float32]
    """[T] mean distance of the known ``landmarks_fit`` to the observed points, pixels; NaN where none were seen."""
    normal_error_deg: NDArray[np.float32]
    """[T] mean angle between the head's normals and the seen ones, degrees; NaN where not measured."""
    distortion: NDArray[np.float64] = field(default_factory=lambda: np.zeros(5))
    """[5] OpenCV coefficients k1, k2, p1, p2, k3; zeros for a pinhole."""
    gaze: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2, 3), np.float32))
    """[T, 2, 3] unit vectors in head space along which left and right eye look, +z straight ahead; empty where the head
    model's heads have no eyes of their own."""
    arkit: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 51), np.float32))
    """[T, 51] weights 0..1 of ``conventions.ARKIT_BLENDSHAPES`` that move the person's rig most like the head moves,
    NaN in lost frames; empty where the template cannot be wrapped on the head model's heads."""
    refine_before: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    """[T, 3] normal error (degrees), point error (mm) and landmark error (px) of the feed-forward state; NaN where not
    measured. This and the next two are empty in a run that was not refined."""
    refine_after: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    """[T, 3] the same of the refined state."""
    rolled_back: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """[T] frames the refinement made worse; their expression and pose are the feed-forward ones."""
    image: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, "U1"))
    """[T] file names of the images that the frames are; empty for a video."""

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def misfit(self) -> NDArray[np.bool_]:
        """[T] lost frames in which a face was seen that no head fits."""
        seen = np.concatenate([np.isfinite(piece[:, 0, 0]) for piece in pieces(self.landmarks)])
        return np.asarray(seen & (self.status == Status.LOST))

    def rows(self, rows: slice) -> Track:
        """The track of some rows."""
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, values in kept.items():
            if name not in _OF_THE_CLIP and len(values):
                kept[name] = values[rows]
        return Track(**kept)

    def save(self, path: str | Path) -> None:
        """Write ``track.npz`` atomically. Arrays may be memory maps: they are streamed, not loaded."""
        save_arrays(path, {f.name: np.asanyarray(getattr(self, f.name)) for f in fields(self)})

    @classmethod
    def load(cls, path: str | Path) -> Track:
        """Read ``track.npz``. Raises InputError when it is missing, damaged or lacks an array."""
        with reading(path, "a readable track"), Arrays(path) as file:
            return cls(**{f.name: file[f.name] for f in fields(cls) if f.name in file or f.name not in _REPORT})

    def quality(self) -> dict[str, float | int | None]:
        """Counts by status, the lost frames whose face no head fits, and the landmark error of the tracked frames in
        pixels and in % of the distance between the outer eye corners; None where nothing was measured."""
        seen = (self.status == Status.TRACKED) & np.isfinite(self.landmark_error_px)
        error = self.landmark_error_px[seen]
        eyes = np.concatenate([eye_distance(piece) for piece in pieces(self.landmarks)])[seen]
        return {
            "frames": len(self),
            **{status.name.lower(): int(np.count_nonzero(self.status == status)) for status in Status},
            "misfit": int(np.count_nonzero(self.misfit)),
            "landmark_error_px": round(float(error.mean()), 3) if seen.any() else None,
            "landmark_error_percent": round(float((100 * error / eyes).mean()), 3) if seen.any() else None,
            **self._refinement(),
        }

    def _refinement(self) -> dict[str, float | int | None]:
        """Means of every term before and after, and the frames rolled back; nothing when the run was not refined."""
        if not len(self.rolled_back):
            return {}
        out: dict[str, float | int | None] = {"rolled_back": int(np.count_nonzero(self.rolled_back))}
        for i, term in enumerate(("normal_deg", "point_mm", "landmark_px")):
            for when, values in (("before", self.refine_before[:, i]), ("after", self.refine_after[:, i])):
                known = np.isfinite(values)
                out[f"refine_{term}_{when}"] = round(float(values[known].mean()), 3) if known.any() else None
        return out


def lost_words(quality: Mapping[str, float | int | None]) -> str:
    """How many frames are lost and why, from a run's ``quality``."""
    lost, misfit = quality.get("lost") or 0, quality.get("misfit") or 0
    return f"{lost} lost" + (f" ({lost - misfit} without a face, {misfit} whose head does not fit)" if misfit else "")


def save_arrays(path: str | Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an ``.npz`` atomically, uncompressed. Arrays may be memory maps: they are streamed, not loaded."""
    with replacing(Path(path)) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, array in arrays.items():
            _write_array(archive, name, array)


def _write_array(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    """Add an array to an .npz, piece by piece."""
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    with archive.open(name + ".npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for piece in pieces(array) if array.ndim else (array,):
            member.write(np.ascontiguousarray(piece).tobytes())


_OF_THE_CLIP = frozenset({"z_id", "K", "image_size", "distortion"})
"""Arrays that have no row for each frame."""
_REPORT = frozenset({"gaze", "arkit", "refine_before", "refine_after", "rolled_back", "image"})
"""Arrays that runs of earlier versions do not have."""


LARGEST_SIDE = 32_768
"""Pixels; twice what any video format allows."""


class InputInfo(BaseModel):
    """What was tracked; the digest decides whether a run folder belongs to it."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="Absolute; a file URI where the name is not UTF-8.")
    relative: str | None = Field(default=None, description="The same, from the run folder.")
    sha256: str
    size: int = Field(description="Bytes.")
    width: int = Field(
        gt=0,
        le=LARGEST_SIDE,
        description="Pixels of the picture as it is shown: turned, and resampled to square pixels.",
    )
    height: int = Field(gt=0, le=LARGEST_SIDE, description="Pixels, likewise.")
    fps: float | None = Field(default=None, description="Average frames per second; None for images.")
    duration: float | None = Field(
        default=None, description="Seconds; None for images or when the container does not say."
    )
    rotation: int = Field(default=0, description="Degrees, as the container's tag gives them.")
    shown: list[str] = Field(default=[], description="What else was done to show the pictures as the file asks.")
    kind: Literal["video", "image", "folder"] = "video"

    @classmethod
    def of(cls, path: str | Path, video: VideoInfo, run: str | Path | None = None) -> InputInfo:
        """Describe an opened input, of the run folder ``run``; reads all of it, for the digest."""
        path = Path(path)
        sha256, size = input_digest(path)
        return cls(
            path=text_of(path.absolute()),
            relative=None if run is None else relative_path(path, Path(run)),
            sha256=sha256,
            size=size,
            width=video.width,
            height=video.height,
            fps=video.frame_rate,
            duration=video.duration,
            rotation=video.rotation,
            shown=list(video.notes),
            kind=video.kind,
        )

    @property
    def place(self) -> Path:
        """``path`` for opening."""
        return path_of(self.path)

    def __str__(self) -> str:
        rate = f" at {self.fps:.4g} frames/s" if self.fps else ""
        length = f", {self.duration:.1f} s" if self.duration else ""
        return "; ".join([f"{self.path}: {self.width}x{self.height}{rate}{length}", *self.shown])


def relative_path(path: Path, folder: Path) -> str | None:
    """A place seen from ``folder``, with forward slashes; None on another drive, or when it is no text."""
    try:
        relative = Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()
        return os.fsencode(relative).decode("utf-8")
    except ValueError:
        return None


def input_files(path: Path) -> list[Path]:
    """The files an input consists of: itself, or the images of a folder."""
    return sorted(image_files(path)) if path.is_dir() else [path]


def input_digest(path: Path) -> tuple[str, int]:
    """SHA-256 and size in bytes of an input; a folder's digest covers its images and their names.

    Raises InputError when it cannot be read.
    """
    lines, size = [], 0
    for file in input_files(path):
        try:
            with open(file, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
                size += stream.tell()
        except OSError as error:
            raise InputError(f"{file}: it cannot be read ({error.strerror})") from None
        lines.append(f"{plain(file.name)} {digest}\n")
    return (hashlib.sha256("".join(lines).encode()).hexdigest() if path.is_dir() else digest), size


def input_state(path: Path) -> tuple[int, int]:
    """Bytes and time of modification [ns] of an input: while they stay, so does its digest. Raises OSError."""
    states = [file.stat() for file in input_files(path)]
    return sum(s.st_size for s in states), max((s.st_mtime_ns for s in states), default=0)


class InputWatch:
    """Notices when an input changes under a run.

    Args:
        path: of the input. Make the watch before anything is read from it.
    """

    EVERY = 1.0
    """Seconds between two looks, at least."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._state = self._now()
        self._next = 0.0

    def check(self, sha256: str, *, at_once: bool = False) -> None:
        """Raises InputChangedError when the input has another digest than ``sha256`` by now."""
        if not at_once and time.monotonic() < self._next:
            return
        state = self._now()
        if state is None or state != self._state:
            if state is None or input_digest(self.path)[0] != sha256:
                raise InputChangedError(f"{self.path} has changed while it was tracked")
            self._state = state
        self._next = time.monotonic() + self.EVERY

    def _now(self) -> tuple[int, int] | None:
        try:
            return input_state(self.path)
        except (OSError, InputError):
            return None


class MadeBy(BaseModel):
    """The process that worked on a run last."""

    model_config = ConfigDict(extra="forbid")

    command: list[str] = Field(description="Its arguments, the program first.")
    host: str
    python: str = Field(description="Version.")
    packages: dict[str, str] = Field(description="Packages this one depends on to their versions.")
    device: str = Field(description="Torch device of the networks.")

    @classmethod
    def this_process(cls, device: str) -> MadeBy:
        return cls(
            command=[plain(argument) for argument in sys.argv],
            host=platform.node(),
            python=platform.python_version(),
            packages=dependencies(),
            device=device,
        )


def dependencies() -> dict[str, str]:
    """Versions of the installed packages that this one depends on; empty when it is not installed itself."""
    found = {}
    with suppress(metadata.PackageNotFoundError):
        for line in metadata.requires("nphm-track") or []:
            if "extra ==" not in line:
                name = re.split(r"[^\w.-]", line)[0]
                found[name] = metadata.version(name)
    return found


class RunInfo(BaseModel):
    """run.json."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    input: InputInfo
    options: dict[str, Any]
    models: dict[str, str] = Field(default_factory=dict, description="Model name to SHA-256 of its weights.")
    threads: int | None = Field(
        default=None, ge=1, description="Threads of one operation, which last bits depend on; a resumed run keeps them."
    )
    package_version: str = __version__
    made_by: MadeBy | None = None
    state: Literal["running", "done", "failed", "interrupted"] = "running"
    message: str = Field(default="", description="Why a run failed; empty otherwise.")
    timings: dict[str, float] = Field(default_factory=dict, description="Stage to seconds, summed over resumes.")
    cpu_seconds: dict[str, float] = Field(default_factory=dict, description="The same in seconds of all CPUs.")
    quality: dict[str, int | float | None] = Field(default_factory=dict, description="``Track.quality``.")
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    updated: datetime = Field(default_factory=lambda: datetime.now(UTC))

    def save(self, path: str | Path) -> None:
        self.updated = datetime.now(UTC)
        with durable(Path(path)) as partial:
            partial.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> RunInfo:
        """Raises InputError when the file is missing, damaged or of another schema version."""
        with reading(path, "a run's record"):
            try:
                return cls.model_validate_json(read_bytes(path))
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                raise InputError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; moved to ``path`` when the block ends well, removed otherwise."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def durable(path: Path) -> Iterator[Path]:
    """Like ``replacing``; once the block ends, the file survives a power cut."""
    with replacing(path) as partial:
        yield partial
        sync(partial)
    with suppress(OSError):  # not every system opens folders
        sync(path.parent)


def sync(path: Path) -> None:
    """Make sure that a file, or the names in a folder, have reached the disk. Raises OSError."""
    file = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)
