"""Everybody in a shot: who is there, and a run for each person, all of them observed in one pass over the clip.

A person's run is the one that ``--face-at X,Y@TIME`` gives; ``people.json`` keeps X, Y and TIME of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from nphm_track._runtime import flushed_denormals
from nphm_track.errors import InputError, NoFaceError, OutputError
from nphm_track.faces.detection import same_face
from nphm_track.faces.follower import SAME_PERSON, FaceFollower, cosine_distance
from nphm_track.faces.landmarker import FaceLandmarker, FaceObservation
from nphm_track.tracking.clip import READING, open_input
from nphm_track.tracking.observations import column
from nphm_track.tracking.observe import observation_dtype, observe_clip, spread_rows
from nphm_track.tracking.options import TrackOptions
from nphm_track.tracking.person_choice import chosen_follower, is_still
from nphm_track.tracking.pipeline import Job, open_job, track
from nphm_track.tracking.planning import expected_frames
from nphm_track.tracking.progress import LineProgress, Progress
from nphm_track.tracking.records import durable, input_digest
from nphm_track.tracking.run_folder import RUN_JSON, Run, default_output

PEOPLE_JSON = "people.json"
LOOKS = 24
"""Frames in which people are looked for."""
LOOK_EVERY = 12
"""Frames between two looks in a clip that does not say how long it is."""
ONE_FACE = 0.5
"""Share of the frames of the one who is seen less, from which two people who are one face are one person."""
COMPARED = 512
"""Frames in which two people are compared."""
CHOICES = ("face", "face_at", "face_time", "identity")
"""Options for one person."""


class Person(BaseModel):
    """One person of a clip: the name of the run folder, and where and when the face is, as in :class:`TrackOptions`."""

    model_config = ConfigDict(extra="forbid")

    name: str
    face_at: tuple[float, float]
    face_time: float


class People(BaseModel):
    """people.json: everybody who was found in a clip, read as ``reading`` says."""

    model_config = ConfigDict(extra="forbid")

    sha256: str
    reading: dict[str, Any]
    people: list[Person]


@flushed_denormals()
def track_people(
    input: str | Path,
    output: str | Path | None = None,
    *,
    options: TrackOptions | None = None,
    overwrite: bool = False,
    break_lock: bool = False,
    progress: Progress | None = None,
    write_report: Callable[[Run], object] | None = None,
) -> list[Run]:
    """What :func:`nphm_track.track_people` does; ``write_report`` as in :func:`nphm_track.tracking.pipeline.track`."""
    options, progress = TrackOptions.build(options), progress or LineProgress()
    if write_report is None:
        options = options.model_copy(update={"report": False})
    for name in CHOICES:
        if getattr(options, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} is for one person; everybody is tracked")
    folder = Path(output or default_output(input))
    record = _people(input, folder, options, overwrite, progress)
    if not record.people:
        raise NoFaceError(f"no face found in {input}")

    open_jobs = {"overwrite": overwrite, "break_lock": break_lock}
    record.people = _observed(input, folder, record.people, options, progress, **open_jobs)
    _save(folder, record)
    runs = []
    for person in record.people:
        x, y = person.face_at
        progress.note(f"{person.name}: at {x:.0f},{y:.0f} at {person.face_time:.2f} s")
        try:
            own = options_of(person, options)
            runs.append(track(input, folder / person.name, options=own, progress=progress, write_report=write_report))
        except NoFaceError as error:
            progress.note(str(error))
    if not runs:
        raise NoFaceError(f"no head fits anybody in {input}")
    return runs


def options_of(person: Person, options: TrackOptions) -> TrackOptions:
    """The options of one person's run."""
    return TrackOptions.build(options, face_at=person.face_at, face_time=person.face_time)


def find_people(clip: str | Path, options: TrackOptions) -> list[Person]:
    """Everybody in some frames of a clip, in the order in which they appear, from left to right."""
    follower = FaceFollower(FaceLandmarker.from_pretrained(device=options.device))
    known: list[_Known] = []
    with open_input(clip, options) as source:
        count = expected_frames(source, options)
        every = options.every * (max(1, count // LOOKS) if count else LOOK_EVERY)
    with open_input(clip, options.model_copy(update={"every": every})) as source:
        for frame in source:
            faces = follower.faces(frame.image, thorough=True)
            for person, (face, signature) in _assigned(known, faces):
                person.see(face, signature, frame.time - source.origin)
    return [
        Person(name=f"person-{number}", face_at=one.at, face_time=one.moment) for number, one in enumerate(known, 1)
    ]


class _Known:
    """Somebody who was seen: what the face looks like, where it was last, and where it was largest."""

    def __init__(self) -> None:
        self.looks: list[NDArray[np.float32]] = []
        self.box: NDArray[np.float32] = np.zeros(4, np.float32)
        self.size, self.at, self.moment = 0.0, (0.0, 0.0), 0.0

    def see(self, face: FaceObservation, signature: NDArray[np.float32], time: float) -> None:
        self.looks.append(signature)
        self.box = face.box
        size = float(np.ptp(face.landmarks[:, :2], axis=0).max())
        if size > 1.1 * self.size:
            x, y = face.landmarks[:, :2].mean(0).astype(float).round(1).tolist()
            # Rounded down: the frame of the choice is the first one from this moment on.
            self.size, self.at, self.moment = size, (x, y), max(0.0, np.floor(time * 1e4) / 1e4)

    def distance(self, face: FaceObservation, signature: NDArray[np.float32]) -> float:
        """How unlike a face is, 0..2; one at the last place is taken for the same as long as it is not another's."""
        looks = cosine_distance(signature, np.mean(self.looks, 0))
        return looks - (SAME_PERSON if same_face(face.box, self.box[None])[0] else 0.0)


_Face = tuple[FaceObservation, NDArray[np.float32]]


def _assigned(known: list[_Known], faces: Sequence[_Face]) -> list[tuple[_Known, _Face]]:
    """Each face of a frame with its person, the most alike first; those who are not known yet are added."""
    ranked = sorted((p.distance(*f), i, k) for i, f in enumerate(faces) for k, p in enumerate(known))
    owner: dict[int, int] = {}
    for distance, i, k in ranked:
        if distance < SAME_PERSON and i not in owner and k not in owner.values():
            owner[i] = k
    pairs = []
    for i, face in enumerate(faces):
        if i not in owner:
            known.append(_Known())
            owner[i] = len(known) - 1
        pairs.append((known[owner[i]], face))
    return pairs


def _people(input: str | Path, folder: Path, options: TrackOptions, overwrite: bool, progress: Progress) -> People:
    """Those that people.json names, if it is of this input; else those that are found."""
    place = folder / PEOPLE_JSON
    if (folder / RUN_JSON).exists():
        raise OutputError(f"{folder} is the run of one person; choose another folder with -o")
    if folder.is_dir() and any(folder.iterdir()) and not place.exists():
        raise OutputError(f"{folder} is not empty and holds no {PEOPLE_JSON}; choose another with -o")
    with open_input(input, options):  # says why an input cannot be used, before all of it is read
        sha256 = input_digest(Path(input))[0]
    reading = {name: getattr(options, name) for name in READING}
    if place.exists():
        try:
            stored = People.model_validate_json(place.read_bytes())
        except (OSError, ValidationError):
            raise OutputError(f"{place} is damaged; delete it to look for people again") from None
        if stored.sha256 != sha256:
            raise OutputError(f"{folder} holds the people of another input; choose another with -o")
        if stored.reading == reading and not overwrite:
            return stored
    progress.stage("people")
    people = find_people(input, options)
    progress.note(f"{len(people)} people found")
    record = People(sha256=sha256, reading=reading, people=people)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror})") from None
    _save(folder, record)
    return record


def _save(folder: Path, record: People) -> None:
    try:
        with durable(folder / PEOPLE_JSON) as partial:
            partial.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror})") from None


def _observed(
    input: str | Path,
    folder: Path,
    people: Sequence[Person],
    options: TrackOptions,
    progress: Progress,
    *,
    overwrite: bool,
    break_lock: bool,
) -> list[Person]:
    """Observe everybody whose run needs it; those who stay: seen again, and nobody whom another follows, too."""
    with ExitStack() as stack:
        jobs = [
            stack.enter_context(
                open_job(input, folder / p.name, options_of(p, options), overwrite, break_lock, progress)
            )
            for p in people
        ]
        waiting = [k for k, job in enumerate(jobs) if not (job.folder.complete or job.folder.track.exists())]
        if not waiting:
            return list(people)
        logs = _observe_together([jobs[k] for k in waiting], progress)
        dropped = set()
        for k, log in zip(waiting, logs, strict=True):
            if not column(log, "seen").any():
                dropped.add(k)
            elif is_still(log):
                progress.note(f"{people[k].name} is a still picture of a face")
        for (k, log), (other, others) in combinations(zip(waiting, logs, strict=True), 2):
            if not dropped & {k, other} and _one_face(log, others):
                dropped.add(other if column(log, "seen").sum() >= column(others, "seen").sum() else k)
        for k in waiting:
            if k in dropped:
                progress.note(f"{people[k].name} is nobody else; left out")
                jobs[k].folder.discard()
            else:
                jobs[k].folder.update(state="interrupted")
        return [person for k, person in enumerate(people) if k not in dropped]


def _observe_together(jobs: Sequence[Job], progress: Progress) -> list[NDArray[Any]]:
    """The logs of some people of one clip."""
    first = jobs[0]
    landmarker = FaceLandmarker.from_pretrained(device=first.device)
    followers = [chosen_follower(landmarker, first.source.info.path, job.options) for job in jobs]
    codes = first.code_predictor(landmarker)
    dtype = observation_dtype(len(followers[0].state()), codes)
    with ExitStack() as stack:
        logs = [stack.enter_context(job.folder.log(dtype)) for job in jobs]
        progress.stage("faces", expected_frames(first.source, first.options))
        observe_clip(first.source, list(zip(followers, logs, strict=True)), codes, progress, first.check_input)
        first.check_input()
        return [log.read() for log in logs]


def _one_face(log: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two people are one face most of the time."""
    both = column(log, "seen") & column(other, "seen")
    rows = spread_rows(both, COMPARED)
    if not len(rows):
        return False
    shared = np.mean(
        [
            same_face(_box(a), _box(b)[None])[0]
            for a, b in zip(log["landmarks"][rows], other["landmarks"][rows], strict=True)
        ]
    )
    fewer = min(column(log, "seen").sum(), column(other, "seen").sum())
    return bool(shared * both.sum() > ONE_FACE * fewer)


def _box(landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([landmarks[:, :2].min(0), landmarks[:, :2].max(0)])
