"""The driver of a capture session: which step is next, what became of it, and the person's one identity in between.

Each take is observed first, and says what its frames tell about the identity. When the last take of a person has been,
their votes are merged; then all of them are tracked with that identity, which stays when takes are added later.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from nphm_track.batch.identity import keep_identity, merge_votes, save_identity
from nphm_track.batch.manifest import IDENTITY_NPZ, THUMBNAILS, Job, Manifest, State, output_path
from nphm_track.batch.steps import Work
from nphm_track.batch.summary import write_summary
from nphm_track.batch.workers import Event, Pool
from nphm_track.errors import InputError, ModelError, NoFaceError, NphmTrackError, OutputError
from nphm_track.tracking.identity import load_identity
from nphm_track.tracking.progress import NullProgress, Progress
from nphm_track.tracking.records import input_digest, input_files
from nphm_track.tracking.run_folder import RUN_JSON

ATTEMPTS = 2
CHANGED = "its clip has changed since it was first read; 'batch retry' sets the old run aside and tracks it anew"
SUMMARY_EVERY = 30.0
"""Seconds between two versions of the summary while takes are tracked, at least."""
_HOPELESS = (InputError.exit_code, NoFaceError.exit_code)
"""Exit codes of errors that lie in the clip: another attempt would end the same."""


class Session:
    """A session's folder while this process, which holds its lock, works on it.

    Args:
        path: the folder.
        manifest: its manifest, as planned.
        pool: where steps are done.
        update_identity: let takes that were added since a person's identity was merged have their say in it; takes
            that are done are tracked again when it changes.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        pool: Pool,
        *,
        update_identity: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.path, self.manifest, self.pool = path, manifest, pool
        self.progress = progress or NullProgress()
        self._jobs = {job.output: job for job in manifest.jobs}
        self._in_flight: dict[str, Work] = {}
        self._identities: dict[str, str] = {}
        self._stopping: NphmTrackError | KeyboardInterrupt | None = None
        self._summary_due = 0.0
        self._prepare(update_identity)

    def run(self, interrupted: Callable[[], int] = lambda: 0) -> None:
        """Do what there is to do.

        ``interrupted`` tells how often the user asked to stop: once ends the steps in flight at the next frame, twice
        ends them now. Raises KeyboardInterrupt then; OutputError when the disk is full and ModelError when a model
        cannot be loaded, with the remaining takes still queued.
        """
        self._save()
        self.progress.stage("takes", len(self._jobs))
        self.progress.advance(sum(job.state not in (State.QUEUED, State.RUNNING) for job in self._jobs.values()))
        asked = 0
        try:
            while True:
                while self._stopping is None and self.pool.free() and self._begin_next():
                    pass
                if not self._in_flight:
                    break
                for event in self.pool.events(timeout=0.5):
                    self._take_in(event)
                if interrupted() > asked:
                    asked = interrupted()
                    self._stop(KeyboardInterrupt())
                    if asked > 1:
                        break
                self._write_summary()
        finally:
            self.pool.close()
            for key in list(self._in_flight):
                self._put_back(self._jobs[key])
            with suppress(OSError):
                self.manifest.save(self.path)
        self._write_summary(final=True)
        if self._stopping is not None:
            raise self._stopping

    # What to do next

    def _begin_next(self) -> bool:
        """Begin the next step that can be; False when there is none."""
        for job in self._jobs.values():
            if job.state is State.QUEUED and job.output not in self._in_flight and (step := self._step_of(job)):
                self._begin(job, step)
                return True
        return False

    def _step_of(self, job: Job) -> Literal["observe", "track"] | None:
        """What a queued job needs now; None when it waits for the other takes of its person."""
        if "identity" in self.manifest.options | job.options:
            return "track"
        if not job.observed:
            return "observe"
        return "track" if job.person in self._identities else None

    def _begin(self, job: Job, step: Literal["observe", "track"]) -> None:
        try:
            output = output_path(self.path, job)
            output.parent.mkdir(parents=True, exist_ok=True)
            size, modified = clip_state(self.manifest.input_path(self.path, job))
            if job.sha256 is None:
                job.size, job.modified = size, modified
            elif (size, modified) != (job.size, job.modified):
                self._check_unchanged(job)
        except (OSError, NphmTrackError) as error:
            self._fail(job, _line(error))
            return
        options = self.manifest.options | job.options
        if job.person in self._identities and "identity" not in options:
            options = options | {"identity": str((self.path / job.person / IDENTITY_NPZ).absolute())}
        work = Work(
            step=step,
            input=self.manifest.input_path(self.path, job).absolute(),  # a worker may have another working directory
            output=output.absolute(),
            votes=(self.path / job.votes).absolute(),
            pictures=(self.path / THUMBNAILS / job.person / job.name).absolute(),
            options=options,
        )
        job.state, job.attempts, job.error = State.RUNNING, job.attempts + 1, ""
        self._in_flight[job.output] = work
        self._save()
        self.pool.submit(job.output, work)

    def _check_unchanged(self, job: Job) -> None:
        """Raises InputError when a clip is not the one that was read before."""
        path = self.manifest.input_path(self.path, job)
        if input_digest(path)[0] != job.sha256:
            raise InputError(CHANGED)
        job.size, job.modified = clip_state(path)

    # What became of it

    def _take_in(self, event: Event) -> None:
        job, work = self._jobs[event.key], self._in_flight[event.key]
        if event.kind == "beat":
            return
        del self._in_flight[event.key]
        if event.kind == "done":
            seconds = job.seconds | event.data.get("seconds", {})
            for name, value in {**event.data, "seconds": seconds}.items():
                setattr(job, name, value)
            job.attempts, job.state = 0, State.DONE if work.step == "track" else State.QUEUED
        elif event.kind == "stopped":
            self._put_back(job)
        elif event.data["disk_full"]:
            self._put_back(job)
            self._stop(OutputError(f"the disk of {self.path} is full; free some space, then the same command goes on"))
        elif event.data["exit_code"] == ModelError.exit_code:
            self._put_back(job)
            self._stop(ModelError(event.data["error"]))
        elif event.data["exit_code"] in _HOPELESS or job.attempts >= ATTEMPTS:
            self._fail(job, event.data["error"])
        else:
            job.state, job.error = State.QUEUED, event.data["error"]
        if job.state is State.DONE:
            self.progress.advance()
        self._merge(job.person)
        self._save()

    def _fail(self, job: Job, error: str) -> None:
        job.state, job.error = State.FAILED, error
        self.progress.note(f"{job.output}: {error}")
        self.progress.advance()
        self._merge(job.person)

    def _put_back(self, job: Job) -> None:
        """A job that was interrupted, through no fault of its own."""
        job.state, job.attempts = State.QUEUED, max(0, job.attempts - 1)

    def _stop(self, reason: NphmTrackError | KeyboardInterrupt) -> None:
        if self._stopping is None:
            self._stopping = reason
            self.pool.stop()

    def _save(self) -> None:
        try:
            self.manifest.save(self.path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise OutputError(f"{self.path} cannot be written ({error.strerror})") from None
            self._stop(OutputError(f"the disk of {self.path} is full; free some space, then the same command goes on"))

    def _write_summary(self, *, final: bool = False) -> None:
        if final or time.monotonic() >= self._summary_due:
            with suppress(OSError):  # it can be written again at any time
                write_summary(self.path, self.manifest)
            self._summary_due = time.monotonic() + SUMMARY_EVERY

    # Identities

    def _merge(self, person: str) -> None:
        """Merge the identity of a person when every take that can have a say has had it."""
        if person in self._identities or self._stopping is not None:
            return
        jobs = [job for job in self._jobs.values() if job.person == person]
        if any(job.state in (State.QUEUED, State.RUNNING) and not job.observed for job in jobs):
            return
        votes = [self.path / job.votes for job in jobs if job.observed and (self.path / job.votes).is_file()]
        if not votes or "identity" in self.manifest.options:
            return
        path = self.path / person / IDENTITY_NPZ
        try:
            save_identity(path, merge_votes(votes))
            digest = load_identity(path).digest
        except InputError as error:  # a damaged file of votes: its take is observed again
            self._observe_again(jobs, str(error))
            return
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            self._stop(OutputError(f"{path} cannot be written ({error.strerror})"))
            if not full:
                raise OutputError(f"{path} cannot be written ({error.strerror})") from None
            return
        self._settle(person, digest)

    def _settle(self, person: str, digest: str) -> None:
        """A person's identity is known; takes that were tracked with an earlier one are tracked again."""
        self._identities[person] = digest
        for job in self._jobs.values():
            other = job.identity != digest and "identity" not in self.manifest.options | job.options
            if job.person == person and job.state is State.DONE and other:
                job.requeue()

    def _observe_again(self, jobs: list[Job], error: str) -> None:
        for job in jobs:
            if job.observed and not _readable(self.path / job.votes):
                (self.path / job.votes).unlink(missing_ok=True)
                job.observed = False
                self.progress.note(f"{job.output}: {error}")

    def _prepare(self, update_identity: bool) -> None:
        """Bring the manifest up to what is on disk: drivers die, clips change, identities are kept or reopened."""
        for job in self._jobs.values():
            if job.state is State.RUNNING:  # its driver was killed
                self._put_back(job)
            if job.observed and not (self.path / job.votes).is_file():
                job.observed = False
            self._check_done(job)
        for person, jobs in self.manifest.people().items():
            path = self.path / person / IDENTITY_NPZ
            digest = keep_identity(path, [(output_path(self.path, job), job.identity) for job in jobs if job.identity])
            if digest and not update_identity:
                self._settle(person, digest)
            else:
                self._merge(person)

    def _check_done(self, job: Job) -> None:
        """A finished take whose clip is another now is not what it says it is."""
        if job.state is not State.DONE:
            return
        if not (output_path(self.path, job) / RUN_JSON).is_file():
            job.requeue()
            return
        path = self.manifest.input_path(self.path, job)
        try:
            if clip_state(path) != (job.size, job.modified):
                self._check_unchanged(job)
        except FileNotFoundError:
            return  # put away: the results remain
        except (OSError, InputError) as error:
            self._fail(job, _line(error))


def clip_state(path: Path) -> tuple[int, int]:
    """Bytes and time of modification of a clip [ns]: while they stay, so does the clip. Raises OSError."""
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    states = [file.stat() for file in input_files(path)]
    return sum(s.st_size for s in states), max((s.st_mtime_ns for s in states), default=0)


def retry(path: Path, manifest: Manifest) -> int:
    """Queue the failed takes again; runs of clips that have changed are set aside. Returns how many there are."""
    failed = [job for job in manifest.jobs if job.state is State.FAILED]
    for job in failed:
        if job.error == CHANGED:
            _set_aside(output_path(path, job))
            (path / job.votes).unlink(missing_ok=True)
            job.observed, job.sha256, job.identity = False, None, None
            job.quality, job.worst, job.artefacts = {}, [], []
        job.requeue()
    return len(failed)


def _set_aside(output: Path) -> None:
    """Rename a run folder to the first free ``<name>.old``, ``<name>.old2``, ..."""
    if output.exists():
        count = 1
        while (aside := output.with_name(f"{output.name}.old{count if count > 1 else ''}")).exists():
            count += 1
        output.rename(aside)


def _line(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or 'its clip'}: {error.strerror or error}"
    return str(error)


def _readable(votes: Path) -> bool:
    try:
        merge_votes([votes])
    except InputError:
        return False
    return True
