"""The manifest of a capture session, ``session.json``: every take, what became of it, and where its results are.

Paths in it are relative with forward slashes, so that a session can be moved together with its takes: inputs to
``root``, ``root`` and outputs to the session's folder.
"""

from __future__ import annotations

import os
import unicodedata
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from nphm_track.errors import InputError, OutputError
from nphm_track.files.reading import read_bytes, reading
from nphm_track.tracking.records import durable
from nphm_track.version import __version__

SESSION_JSON = "session.json"
LARGEST = 1 << 30
"""Bytes of a session's record: 100,000 takes have 100 MB."""
SESSION_LOCK = "session.lock"
INDEX_HTML = "index.html"
QUALITY_CSV = "quality.csv"
THUMBNAILS = "thumbnails"
VOTES = "votes"
IDENTITY_NPZ = "identity.npz"
IDENTITY_JSON = "identity.json"
IDENTITY_LOCK = "identity.lock"
RESERVED = frozenset({
    SESSION_JSON, SESSION_LOCK, INDEX_HTML, QUALITY_CSV, THUMBNAILS, VOTES, IDENTITY_NPZ, IDENTITY_JSON, IDENTITY_LOCK,
    "work",
})  # fmt: skip
"""Names in a session's folder that no person and no take can have."""
LONGEST_NAME = 120
"""Bytes; file systems allow 255, and a run puts suffixes to names."""
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


class State(StrEnum):
    """What became of a take."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


def name_problem(name: str) -> str:
    """Why a name cannot be one folder's on every system; empty when it can."""
    if not name or name != name.strip() or name.startswith(".") or name.endswith("."):
        return "it is empty, or begins or ends with a dot or a space"
    if any(c in '/\\:*?"<>|' or (unicodedata.category(c)[0] in "CZ" and c != " ") for c in name):
        return 'it holds one of / \\ : * ? " < > | or a character that cannot be seen'
    if len(name.encode()) > LONGEST_NAME:
        return f"it is longer than {LONGEST_NAME} bytes"
    if name.casefold() in RESERVED or name.casefold().partition(".")[0] in _DEVICES:
        return "it is reserved"
    return ""


def _safe_name(name: str) -> str:
    if problem := name_problem(name):
        raise ValueError(f"{name!r} cannot name a folder: {problem}")
    return name


class Job(BaseModel):
    """One take."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    input: str = Field(min_length=1, description="The clip, relative to the session's root.")
    person: Annotated[str, AfterValidator(_safe_name)]
    name: Annotated[str, AfterValidator(_safe_name)] = Field(description="The take's, unique for its person.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of this take alone.")
    state: State = State.QUEUED
    observed: bool = Field(default=False, description="The first step is done: its votes on the identity are written.")
    attempts: int = Field(default=0, ge=0, description="Times it was begun and not finished or interrupted.")
    seconds: dict[str, float] = Field(default_factory=dict, description="Step to seconds of its last attempt.")
    sha256: str | None = Field(default=None, description="Of the clip that was tracked.")
    size: int | None = Field(default=None, description="Bytes of the clip, to notice a change.")
    modified: int | None = Field(default=None, description="Its time of modification, nanoseconds, likewise.")
    identity: str | None = Field(default=None, description="Digest of the identity code it was tracked with.")
    artefacts: list[str] = Field(default_factory=list, description="Files and folders of the run, relative to it.")
    quality: dict[str, int | float | None] = Field(default_factory=dict, description="That of run.json.")
    worst: list[int] = Field(default_factory=list, description="Frames worth a look, worst first.")
    error: str = Field(default="", description="Why it failed or was skipped.")

    @property
    def output(self) -> str:
        """The run folder, relative to the session's."""
        return f"{self.person}/{self.name}"

    @property
    def votes(self) -> str:
        """What the take says about the person's identity, a file relative to the session's folder."""
        return f"{self.person}/{VOTES}/{self.name}.npz"

    @property
    def is_awaited(self) -> bool:
        """Its say on the identity is still to come."""
        return self.state in (State.QUEUED, State.RUNNING) and not self.observed

    def requeue(self) -> None:
        self.state, self.attempts, self.error = State.QUEUED, 0, ""


class Person(BaseModel):
    """What is known of a person's identity."""

    model_config = ConfigDict(extra="forbid")

    identity: str = Field(description="Digest of the identity code.")
    key_frames: list[str] = Field(default_factory=list, description="What it was refined on: take and frame.")
    seconds: float | None = Field(default=None, description="Time its refinement took.")
    error: str = Field(default="", description="Why it was not refined and is the merged one.")


class Manifest(BaseModel):
    """session.json."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    package_version: str = __version__
    root: str = Field(description="Where the inputs are, relative to the session's folder (absolute on another drive).")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of every take.")
    threads: int = Field(
        default=1,
        ge=1,
        description="Threads of a worker; part of the session, since results depend on it in last bits.",
    )
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    updated: datetime = Field(default_factory=lambda: datetime.now(UTC))
    jobs: list[Job] = Field(default_factory=list)
    identities: dict[str, Person] = Field(default_factory=dict, description="Of each person whose takes share one.")

    @model_validator(mode="after")
    def _outputs_differ(self) -> Manifest:
        seen: set[str] = set()
        for job in self.jobs:
            if (key := folded(job.output)) in seen:
                raise ValueError(f"two takes share the folder {job.output}")
            seen.add(key)
        return self

    def count(self, state: State) -> int:
        return sum(job.state is state for job in self.jobs)

    def input_path(self, session: Path, job: Job) -> Path:
        """Where a job's clip is."""
        return Path(os.path.normpath(session / self.root / job.input))

    def people(self) -> dict[str, list[Job]]:
        people: dict[str, list[Job]] = {}
        for job in self.jobs:
            people.setdefault(job.person, []).append(job)
        return people

    def save(self, session: Path) -> None:
        """Write ``session.json`` so that a power cut leaves the old one or the new one. Raises OSError."""
        self.updated = datetime.now(UTC)
        with durable(session / SESSION_JSON) as partial:
            partial.write_text(self.model_dump_json(indent=1, exclude_defaults=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, session: Path) -> Manifest:
        """Raises InputError when there is none, or it is damaged or of another schema version."""
        path = session / SESSION_JSON
        if not path.exists():
            raise InputError(f"{session} is not a capture session: it has no {SESSION_JSON}")
        with reading(path, "a session's record"):
            try:
                return cls.model_validate_json(read_bytes(path, LARGEST))
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                place = ".".join(map(str, first["loc"]))
                raise InputError(f"{path}: {place + ': ' if place else ''}{first['msg']}") from None


def folded(name: str) -> str:
    """What names have in common that some file systems take for one."""
    return unicodedata.normalize("NFC", name).casefold()


def output_path(session: Path, job: Job) -> Path:
    """The run folder of a job. Raises OutputError when a link leads it out of the session's folder."""
    path = session / PurePosixPath(job.output)
    if not path.resolve().is_relative_to(session.resolve()):
        raise OutputError(f"{path} leads out of {session}")
    return path
