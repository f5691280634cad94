"""The identities of a session's people: merged from the votes of their takes, refined on request, then kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nphm_track.batch.identity import keep_identity, merge_votes, save_identity
from nphm_track.batch.manifest import IDENTITY_NPZ, Job, Manifest, Person, State, output_path
from nphm_track.errors import InputError
from nphm_track.tracking.identity import Identity


class People:
    """Who is known, and whose merged identity waits to be refined.

    Args:
        path: the session's folder.
        manifest: its manifest, whose ``identities`` this keeps.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self.waiting: dict[str, Identity] = {}
        """Merged identities that are to be refined, or are being refined."""
        self._known: set[str] = set()

    def __contains__(self, person: str) -> bool:
        """Whether this person's takes can be tracked."""
        return person in self._known

    def file(self, person: str) -> Path:
        return self.path / person / IDENTITY_NPZ

    def keep(self, person: str, jobs: list[Job]) -> bool:
        """Go on with the identity this person had before, if there is one. Raises OSError."""
        runs = [(output_path(self.path, job), job.identity) for job in jobs if job.identity]
        digest = keep_identity(self.file(person), runs)
        if digest is None:
            return False
        known = self.manifest.identities.get(person)
        self._settle(known if known and known.identity == digest else Person(identity=digest), person)
        return True

    def merge(self, person: str, jobs: list[Job]) -> str:
        """Merge the votes of a person's takes when every one that can have a say has had it.

        Returns what is wrong with the votes that cannot be merged. Raises OSError.
        """
        if person in self._known or person in self.waiting:
            return ""
        if any(job.is_awaited for job in jobs):
            return ""
        votes = [self.path / job.votes for job in voters(self.path, jobs)]
        if not votes or "identity" in self.manifest.options:
            return ""
        try:
            merged = merge_votes(votes)
        except InputError as error:
            return str(error)
        if any((self.manifest.options | job.options).get("refine") for job in jobs):
            self.waiting[person] = merged
        else:
            self._save(person, merged, Person(identity=merged.digest))
        return ""

    def refined(self, person: str, data: dict[str, Any]) -> None:
        """What ``steps.refine_identity`` found is the person's identity. Raises OSError."""
        del self.waiting[person]
        identity = Identity(np.array(data["z_id"], np.float32), data["model"])
        seconds = data.get("seconds", {}).get("identity")
        self._save(person, identity, Person(identity=identity.digest, key_frames=data["key_frames"], seconds=seconds))

    def not_refined(self, person: str, error: str) -> None:
        """The merged identity has to do. Raises OSError."""
        merged = self.waiting.pop(person)
        self._save(person, merged, Person(identity=merged.digest, error=error))

    def _save(self, person: str, identity: Identity, record: Person) -> None:
        save_identity(self.file(person), identity)
        self._settle(record, person)

    def _settle(self, record: Person, person: str) -> None:
        """An identity is known; takes that were tracked with an earlier one are tracked again."""
        self._known.add(person)
        self.manifest.identities[person] = record
        for job in self.manifest.jobs:
            other = job.identity != record.identity and "identity" not in self.manifest.options | job.options
            if job.person == person and job.state is State.DONE and other:
                job.requeue()


def voters(path: Path, jobs: list[Job]) -> list[Job]:
    """The takes that have had their say."""
    return [job for job in jobs if job.observed and (path / job.votes).is_file()]


def forget_unrefined(path: Path, manifest: Manifest) -> int:
    """Let identities that could not be refined be refined anew; how many."""
    people = [name for name, person in manifest.identities.items() if person.error]
    for name in people:
        del manifest.identities[name]
        (path / name / IDENTITY_NPZ).unlink(missing_ok=True)
        for job in manifest.jobs:
            if job.person == name:
                job.identity = None  # or the file would be restored from its run
    return len(people)
