"""A session as an array of jobs: each step of a take is a command of its own, for Slurm, Deadline and their like.

``batch run --plan`` writes the session; ``batch step OUT INDEX``, once for every take, observes it, and, given a second
time for every take, tracks it; ``batch run`` takes in what they left. Steps of different takes may run at once, on any
machines that see the session's folder: none writes the session's record, each leaves a report of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nphm_track.batch import steps
from nphm_track.batch.manifest import IDENTITY_JSON, IDENTITY_LOCK, Job, Manifest, Person, State
from nphm_track.batch.people import People, voters
from nphm_track.batch.plan import next_step, work_of
from nphm_track.batch.steps import PersonWork
from nphm_track.batch.workers import HOPELESS, do_step
from nphm_track.errors import InputError, TakesFailedError
from nphm_track.files.reading import read_json, reading
from nphm_track.locking import RunLock
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import durable, input_state

PATIENCE = 3600.0
"""Seconds that a step waits for another one to refine their person's identity."""


def step(session: Path, index: int, progress: Progress) -> Job:
    """Do the next step of the take at ``index`` of the session, if there is one, and leave a report of it.

    Returns the take as it is then. Raises InputError when there is no such take, or its person's others are not
    observed yet; TakesFailedError when the take failed, now or before.
    """
    manifest = Manifest.load(session)
    take_in_reports(session, manifest)
    if not 0 <= index < len(manifest.jobs):
        raise InputError(f"{session} has no take {index}; its takes are 0 to {len(manifest.jobs) - 1}")
    job = manifest.jobs[index]
    if job.state in (State.QUEUED, State.RUNNING):
        prepare_threads(manifest.threads)
        _do_next(session, manifest, job, progress)
    if job.state is State.FAILED:
        raise TakesFailedError(f"{job.output}: {job.error}")
    return job


def take_in_reports(session: Path, manifest: Manifest) -> list[Path]:
    """Bring a manifest up to what array jobs have left; the files, to be deleted when the manifest is saved.

    A failure that another attempt may mend is taken for none: the take stays queued.
    """
    found = []
    for job in manifest.jobs:
        if (path := _report(session, job)).is_file():
            found.append(path)
            with reading(path, "a step's report"):
                _take_in(job, read_json(path))
    for person in manifest.people():
        if (path := session / person / IDENTITY_JSON).is_file():
            found.append(path)
            with reading(path, "an identity's report"):
                manifest.identities[person] = Person.model_validate(read_json(path))
    return found


def _take_in(job: Job, report: dict[str, Any]) -> None:
    if report["kind"] == "done":
        data = report["data"]
        for name, value in {**data, "seconds": job.seconds | data["seconds"]}.items():
            setattr(job, name, value)
        job.state = State.DONE if report["step"] == "track" else State.QUEUED
    elif report["data"]["exit_code"] in HOPELESS:
        job.state, job.error = State.FAILED, report["data"]["error"]


def _do_next(session: Path, manifest: Manifest, job: Job, progress: Progress) -> None:
    name = next_step(manifest, job, identity_known=False)
    if name is None:
        _settle_identity(session, manifest, job.person, progress)
        name = "track"
    state = input_state(manifest.input_path(session, job))
    kind, data = do_step(steps.run, work_of(session, manifest, job, name), progress)
    if kind == "stopped":
        raise KeyboardInterrupt
    if kind == "done":
        data |= dict(zip(("size", "modified"), state, strict=True))
    report = {"step": name, "kind": kind, "data": data}
    _write(_report(session, job), report)
    _take_in(job, report)
    if kind != "done":
        job.state, job.error = State.FAILED, data["error"]


def _settle_identity(session: Path, manifest: Manifest, person: str, progress: Progress) -> None:
    """See to it that the identity of a person whose takes are all observed is known."""
    people, jobs = People(session, manifest), manifest.people()[person]
    if people.keep(person, jobs):
        return
    waited_for = [job.output for job in jobs if job.is_awaited]
    if waited_for:
        raise InputError(f"{person}: not observed yet: {', '.join(waited_for[:5])}")
    with RunLock(session / person / IDENTITY_LOCK, f"the identity of {person}").acquire(PATIENCE, note=progress.note):
        if people.keep(person, jobs):
            return
        if error := people.merge(person, jobs):
            raise InputError(error)
        if person in people.waiting:
            takes = tuple(work_of(session, manifest, job, "observe") for job in voters(session, jobs))
            kind, data = do_step(steps.run, PersonWork(people.waiting[person], takes), progress)
            if kind == "stopped":
                raise KeyboardInterrupt
            if kind == "done":
                people.refined(person, data)
            else:
                people.not_refined(person, data["error"])
        _write(session / person / IDENTITY_JSON, manifest.identities[person].model_dump())


def _report(session: Path, job: Job) -> Path:
    return (session / job.votes).with_suffix(".json")


def _write(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with durable(path) as partial:
        partial.write_text(json.dumps(report), encoding="utf-8")


def prepare_threads(count: int) -> None:
    """Results depend on the number of threads in last bits."""
    import torch

    torch.set_num_threads(count)
