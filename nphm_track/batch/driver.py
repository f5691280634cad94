"""Capture sessions from Python: plan one, work on it, try failed takes again.

>>> from nphm_track import TrackOptions
>>> from nphm_track.batch import driver
>>> driver.work(out, lambda: driver.planned(folder, out, TrackOptions()), workers=4)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nphm_track.batch import limits, steps
from nphm_track.batch.manifest import SESSION_JSON, SESSION_LOCK, Manifest, State
from nphm_track.batch.plan import find_takes, plan
from nphm_track.batch.session import Session, retry
from nphm_track.batch.workers import LocalPool, Pool
from nphm_track.errors import InputError, OutputError
from nphm_track.locking import RunLock
from nphm_track.tracking.options import FILE_OPTIONS, TrackOptions
from nphm_track.tracking.progress import LineProgress, NullProgress, Progress

WORKER_MEMORY = 1.2e9
"""Bytes a worker needs on a 1080p clip, with its share of the file cache."""


def planned(
    source: Path,
    session: Path,
    options: TrackOptions,
    *,
    person: str | None = None,
    photos: bool = False,
    threads: int | None = None,
) -> Manifest:
    """What a session of this folder or list is: the manifest it has, grown by the takes that are new.

    ``person`` and ``photos`` as in :func:`nphm_track.batch.plan.find_takes`.

    Nothing is written. Raises InputError when the source cannot be used, OutputError when the folder is not this
    session's.
    """
    before = None
    if (session / SESSION_JSON).exists():
        before = Manifest.load(session)
    elif session.is_dir() and any(
        not entry.name.startswith((SESSION_LOCK, f"{SESSION_JSON}.partial")) for entry in session.iterdir()
    ):
        raise OutputError(f"{session} is not empty and not a capture session; choose another with -o")
    elif session.exists() and not session.is_dir():
        raise OutputError(f"{session} is a file, not a folder")
    root, takes = find_takes(source, session, person, photos=photos)
    given = options.model_dump(mode="json", exclude_unset=True)
    for name in FILE_OPTIONS:
        if (path := getattr(options, name)) is not None and not path.exists():  # or every single take would fail
            raise InputError(f"{path}: no such file or folder")
    manifest = plan(takes, root, session, before, given)
    if threads is not None:
        if before and before.threads != threads and any(job.state is State.DONE for job in before.jobs):
            raise OutputError(
                f"{session} was begun with {before.threads} threads a worker; results would differ in last bits"
            )
        manifest.threads = threads
    return manifest


def save_plan(session: Path, manifest: Manifest, *, break_lock: bool = False) -> None:
    """Write a planned session that steps of an array work on. Raises OutputError when it cannot be written."""
    with _locked(session, break_lock, NullProgress()):
        manifest.save(session)


def retried(session: Path) -> Manifest:
    """The manifest of a session with its failed takes queued again. Call it with the session's lock held."""
    manifest = Manifest.load(session)
    if not retry(session, manifest):
        raise InputError(f"{session}: no take has failed")
    return manifest


def work(
    session: Path,
    manifest: Callable[[], Manifest],
    *,
    pool: Pool | None = None,
    workers: int | None = None,
    ray: str | None = None,
    slurm: str | None = None,
    update_identity: bool = False,
    break_lock: bool = False,
    progress: Progress | None = None,
    interrupted: Callable[[], int] = lambda: 0,
) -> Manifest:
    """Hold the session's lock and do what there is to do.

    Args:
        manifest: gives the manifest once the lock is held.
        pool: where steps are done; default ``workers`` local processes, tasks on the Ray cluster at ``ray``, or jobs of
            Slurm with the options ``slurm``.
        break_lock: take the session from a process that holds its lock.
        update_identity, progress, interrupted: those of :class:`Session`.

    Raises OutputError when another process works on the session or it cannot be written; what ``Session.run`` raises.
    """
    with _locked(session, break_lock, progress or LineProgress()) as lock:
        jobs = manifest()
        if pool is None and slurm:
            pool = slurm_pool(session, jobs, workers, slurm)
        pool = pool or (ray_pool(jobs, workers, ray) if ray else local_pool(jobs, workers))
        Session(session, jobs, pool, lock, update_identity=update_identity, progress=progress).run(interrupted)
        return jobs


@contextmanager
def _locked(session: Path, break_lock: bool, progress: Progress) -> Iterator[RunLock]:
    """A session's folder, made if need be, that belongs to this process."""
    try:
        session.mkdir(parents=True, exist_ok=True)
        lock = RunLock(session / SESSION_LOCK, f"the session {session}")
        lock.acquire(break_lock=break_lock, note=progress.note)
    except OSError as error:
        raise OutputError(f"{session} cannot be written ({error.strerror})") from None
    with lock:
        yield lock


def local_pool(manifest: Manifest, workers: int | None) -> LocalPool:
    """Processes for a session: one a GPU when the takes are tracked on one, else as many as cores and memory allow."""
    gpus = 0
    if str(manifest.options.get("device", "cpu")) == "cuda":
        import torch

        gpus = torch.cuda.device_count()
    fitting = min(limits.processors() // manifest.threads, int(limits.memory() // WORKER_MEMORY))
    count = workers or gpus or max(1, fitting)
    open_jobs = sum(job.state in (State.QUEUED, State.RUNNING) for job in manifest.jobs)
    return LocalPool(max(1, min(count, open_jobs)), steps.run, threads=manifest.threads, gpus=gpus)


def ray_pool(manifest: Manifest, workers: int | None, address: str) -> Pool:
    """Tasks on a Ray cluster, each with a GPU when the takes are tracked on one."""
    from nphm_track.batch.ray_pool import RayPool

    gpus = str(manifest.options.get("device", "cpu")) == "cuda"
    return RayPool(address, steps.run, threads=manifest.threads, count=workers, gpus=gpus)


def slurm_pool(session: Path, manifest: Manifest, workers: int | None, options: str) -> Pool:
    """Jobs of a Slurm cluster, each with a GPU when the takes are tracked on one."""
    from nphm_track.batch.slurm_pool import SlurmPool

    gpus = str(manifest.options.get("device", "cpu")) == "cuda"
    return SlurmPool(options, session, steps.run, threads=manifest.threads, count=workers, gpus=gpus)


def plan_line(manifest: Manifest) -> str:
    """What is about to happen, in one line."""
    taken = [job for job in manifest.jobs if job.state is not State.SKIPPED]
    waiting = sum(job.state in (State.QUEUED, State.RUNNING) for job in taken)
    people, skipped = len({job.person for job in taken}), len(manifest.jobs) - len(taken)
    line = f"{len(taken)} takes of {people} {'person' if people == 1 else 'people'}, {waiting} to do"
    return f"{line}, {skipped} skipped" if skipped else line
