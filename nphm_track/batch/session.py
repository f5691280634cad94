"""The driver of a capture session: which step is next, what became of it, and the person's one identity in between.

Each take is observed first, and says what its frames tell about the identity. When the last take of a person has been,
their votes are merged and, with ``--refine``, the merged identity is refined; then all of them are tracked with it, and
it stays when takes are added later.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from nphm_track.batch.array import take_in_reports
from nphm_track.batch.identity import merge_votes
from nphm_track.batch.manifest import Job, Manifest, State, output_path
from nphm_track.batch.people import People, forget_unrefined, voters
from nphm_track.batch.plan import next_step, work_of
from nphm_track.batch.steps import PersonWork, Work
from nphm_track.batch.summary import write_summary
from nphm_track.batch.workers import HOPELESS, Event, Pool
from nphm_track.errors import NO_SPACE, InputError, ModelError, NphmTrackError, OutputError
from nphm_track.locking import RunLock
from nphm_track.tracking.progress import LineProgress, Progress
from nphm_track.tracking.records import input_digest, input_state
from nphm_track.tracking.run_folder import RUN_JSON

ATTEMPTS = 2
CHANGED = "its clip has changed since it was first read; 'batch retry' sets the old run aside and tracks it anew"
SUMMARY_EVERY = 30.0
"""Seconds between two versions of the summary while takes are tracked, at least."""


class Session:
    """A session's folder while this process, which holds its lock, works on it.

    Args:
        path: the folder.
        manifest: its manifest, as planned.
        pool: where steps are done.
        lock: on the folder, held.
        update_identity: let takes that were added since a person's identity was merged have their say in it; takes
            that are done are tracked again when it changes.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        pool: Pool,
        lock: RunLock,
        *,
        update_identity: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.path, self.manifest, self.pool, self._lock = path, manifest, pool, lock
        self.progress = progress or LineProgress()
        self._jobs = {job.output: job for job in manifest.jobs}
        self.people = People(path, manifest)
        self._in_flight: dict[str, Work | PersonWork] = {}  # by output, or by person
        self._lost: Counter[str] = Counter()  # attempts to refine a person's identity
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
        for report in self._reports:
            report.unlink(missing_ok=True)
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
            for job in (self._jobs[key] for key in self._in_flight if key in self._jobs):
                self._put_back(job)
            with suppress(OSError, OutputError):
                self._lock.check()
                self.manifest.save(self.path)
        self._write_summary(final=True)
        if self._stopping is not None:
            raise self._stopping

    # What to do next

    def _begin_next(self) -> bool:
        """Begin the next step that can be; False when there is none."""
        for person in self.people.waiting:
            if person not in self._in_flight:
                self._begin_identity(person)
                return True
        for job in self._jobs.values():
            if (
                job.state is State.QUEUED
                and job.output not in self._in_flight
                and (step := next_step(self.manifest, job, job.person in self.people))
            ):
                self._begin(job, step)
                return True
        return False

    def _begin(self, job: Job, step: Literal["observe", "track"]) -> None:
        try:
            output = output_path(self.path, job)
            output.parent.mkdir(parents=True, exist_ok=True)
            size, modified = input_state(self.manifest.input_path(self.path, job))
            if job.sha256 is None:
                job.size, job.modified = size, modified
            elif (size, modified) != (job.size, job.modified):
                self._check_unchanged(job)
        except (OSError, NphmTrackError) as error:
            self._fail(job, _line(error))
            return
        work = work_of(self.path, self.manifest, job, step)
        job.state, job.attempts, job.error = State.RUNNING, job.attempts + 1, ""
        self._in_flight[job.output] = work
        self._save()
        self.pool.submit(job.output, work)

    def _begin_identity(self, person: str) -> None:
        """Refine a merged identity on frames of the takes whose clips are what they were."""
        jobs = voters(self.path, [job for job in self._jobs.values() if job.person == person])
        takes = tuple(work_of(self.path, self.manifest, job, "observe") for job in jobs if self._is_there(job))
        self._in_flight[person] = work = PersonWork(self.people.waiting[person], takes)
        self.pool.submit(person, work)

    def _is_there(self, job: Job) -> bool:
        """Whether a take's clip is the one that was observed."""
        try:
            if input_state(self.manifest.input_path(self.path, job)) != (job.size, job.modified):
                self._check_unchanged(job)
        except (OSError, InputError):
            return False
        return True

    def _check_unchanged(self, job: Job) -> None:
        """Raises InputError when a clip is not the one that was read before."""
        path = self.manifest.input_path(self.path, job)
        if input_digest(path)[0] != job.sha256:
            raise InputError(CHANGED)
        job.size, job.modified = input_state(path)

    # What became of it

    def _take_in(self, event: Event) -> None:
        if event.kind == "beat":
            return
        work = self._in_flight.pop(event.key)
        if isinstance(work, PersonWork):
            self._take_in_identity(event.key, event)
            return
        job = self._jobs[event.key]
        if event.kind == "done":
            seconds = job.seconds | event.data.get("seconds", {})
            for name, value in {**event.data, "seconds": seconds}.items():
                setattr(job, name, value)
            job.attempts, job.state = 0, State.DONE if work.step == "track" else State.QUEUED
        elif event.kind == "stopped" or self._stopped_by(event) or self._ends_session(event):
            self._put_back(job)
        elif event.data["exit_code"] in HOPELESS or job.attempts >= ATTEMPTS:
            self._fail(job, event.data["error"])
        else:
            job.state, job.error = State.QUEUED, event.data["error"]
        if job.state is State.DONE:
            self.progress.advance()
        self._merge(job.person)
        self._save()

    def _take_in_identity(self, person: str, event: Event) -> None:
        """What became of the refinement of a person's identity. One that cannot be done spoils no take."""
        with self._writing():
            if event.kind == "done":
                self.people.refined(person, event.data)
            elif event.kind != "stopped" and not self._stopped_by(event) and not self._ends_session(event):
                self._lost[person] += 1
                if event.data["exit_code"] in HOPELESS or self._lost[person] >= ATTEMPTS:
                    self.progress.note(f"{person}: the identity is merged, not refined: {event.data['error']}")
                    self.people.not_refined(person, event.data["error"])
        self._save()

    def _stopped_by(self, event: Event) -> bool:
        """Whether a process died of what ends the session: a signal to the whole group, the machine going down."""
        return event.kind == "lost" and isinstance(self._stopping, KeyboardInterrupt)

    def _ends_session(self, event: Event) -> bool:
        """Whether a step failed for what every other would fail for."""
        if event.data["disk_full"]:
            self._stop(self._full())
        elif event.data["exit_code"] == ModelError.exit_code:
            self._stop(ModelError(event.data["error"]))
        else:
            return False
        return True

    def _full(self) -> OutputError:
        return OutputError(f"the disk of {self.path} is full; free some space, then the same command goes on")

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
        self._lock.check()
        with self._writing():
            self.manifest.save(self.path)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Files of the session are written: a full disk stops it, raises OutputError for other reasons."""
        try:
            yield
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise OutputError(f"{error.filename or self.path} cannot be written ({error.strerror})") from None
            self._stop(self._full())

    def _write_summary(self, *, final: bool = False) -> None:
        if final or time.monotonic() >= self._summary_due:
            with suppress(OSError):  # it can be written again at any time
                write_summary(self.path, self.manifest)
            self._summary_due = time.monotonic() + SUMMARY_EVERY

    # Identities

    def _merge(self, person: str) -> None:
        """Merge the identity of a person when every take that can have a say has had it."""
        if self._stopping is not None:
            return
        jobs = [job for job in self._jobs.values() if job.person == person]
        with self._writing():
            if error := self.people.merge(person, jobs):
                self._observe_again(jobs, error)

    def _observe_again(self, jobs: list[Job], error: str) -> None:
        """Takes whose votes are damaged are observed again; votes that do not go together cannot be helped."""
        damaged = [job for job in jobs if job.observed and not _readable(self.path / job.votes)]
        for job in damaged:
            (self.path / job.votes).unlink(missing_ok=True)
            job.observed = False
            self.progress.note(f"{job.output}: {error}")
        for job in [] if damaged else jobs:
            if job.state is State.QUEUED:
                job.state, job.error = State.FAILED, error
                self.progress.note(f"{job.output}: {error}")
                self.progress.advance()

    def _prepare(self, update_identity: bool) -> None:
        """Bring the manifest up to what is on disk: drivers die, clips change, identities are kept or reopened."""
        self._reports = take_in_reports(self.path, self.manifest)
        for job in self._jobs.values():
            if job.state is State.RUNNING:  # its driver was killed
                self._put_back(job)
            if job.observed and not (self.path / job.votes).is_file():
                job.observed = False
            self._check_done(job)
        for person, jobs in self.manifest.people().items():
            with self._writing():
                if update_identity or not self.people.keep(person, jobs):
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
            if input_state(path) != (job.size, job.modified):
                self._check_unchanged(job)
        except FileNotFoundError:
            return  # put away: the results remain
        except (OSError, InputError) as error:
            self._fail(job, _line(error))


def retry(path: Path, manifest: Manifest) -> int:
    """Queue the failed takes again; runs of clips that have changed are set aside.

    Identities that could not be refined are tried again, too. Returns how many takes and identities there are.
    """
    failed = [job for job in manifest.jobs if job.state is State.FAILED]
    for job in failed:
        if job.error == CHANGED:
            _set_aside(output_path(path, job))
            (path / job.votes).unlink(missing_ok=True)
            job.observed, job.sha256, job.identity = False, None, None
            job.quality, job.worst, job.artefacts = {}, [], []
        job.requeue()
    return len(failed) + forget_unrefined(path, manifest)


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
