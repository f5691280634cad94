"""From a folder or a list of takes to the jobs of a manifest, new or grown."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from nphm_track.batch.folders import walk
from nphm_track.batch.manifest import (
    IDENTITY_NPZ,
    LONGEST_NAME,
    THUMBNAILS,
    Job,
    Manifest,
    State,
    folded,
    name_problem,
    output_path,
)  # fmt: skip
from nphm_track.batch.steps import Work
from nphm_track.errors import InputError, OutputError
from nphm_track.files.names import plain
from nphm_track.files.reading import parse_json, read_text, reading
from nphm_track.tracking.options import FILE_OPTIONS, TrackOptions

LIST_SUFFIXES = frozenset({".csv", ".json"})
COLUMNS = ("input", "person", "name")
NOT_TEXT = "its name is not UTF-8 text; rename it"
LARGEST_LIST = 64 << 20


@dataclass
class Take:
    """A take that was found: its clip, and what is known of it. ``person`` None goes by the clip's name."""

    path: Path
    person: str | None = None
    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    skipped: str = ""


def find_takes(
    source: Path, session: Path, person: str | None = None, *, photos: bool = False
) -> tuple[Path, list[Take]]:
    """Root and takes of a folder or a list; ``person`` is a regular expression for paths relative to the root.

    In a folder each video is a take, and so is each folder that directly holds two images or more and no video. Hidden
    entries, run folders, thumbnails and the session's own folder are passed over. The person is the first-level
    folder, or the first group of ``person``; a take in no folder is a person of its own. With ``photos`` each image is
    a take, and those in no folder are of one person, who is called like ``source``.

    Raises InputError when the source cannot be used or holds no take.
    """
    pattern = _compiled(person)
    if source.is_dir():
        root, takes = (
            source,
            [Take(f.path) for f in sorted(walk(source, session.resolve(), photos=photos)) if not f.reason],
        )
        for take in takes:
            take.person = _first_folder(take.path.relative_to(root)) or (source.resolve().name if photos else None)
    elif source.suffix.lower() in LIST_SUFFIXES:
        root, takes = source.parent, _read_list(source)
    elif source.exists():
        raise InputError(f"{source}: a session is made of a folder, or of a .csv or .json list of takes")
    else:
        raise InputError(f"{source}: no such file or folder")
    for take in takes if pattern else ():
        relative = Path(os.path.relpath(take.path, root)).as_posix()
        match = pattern.search(relative) if pattern else None
        take.person = (match[1] if match and match.re.groups else match and match[0]) or None
        if take.person is None:
            take.skipped = f"'{relative}' does not match --person"
    if not takes:
        raise InputError(f"{source}: no takes in it")
    return root, takes


def passed_over(source: Path, session: Path, *, photos: bool = False) -> list[tuple[str, str]]:
    """Files and folders below ``source`` that are no takes, relative to it, each with the reason; none of a list."""
    if not source.is_dir():
        return []
    found = sorted(f for f in walk(source, session.resolve(), photos=photos) if f.reason)
    names = (f.path.relative_to(source).as_posix().encode(errors="replace").decode() for f in found)  # not all are text
    return list(zip(names, (f.reason for f in found), strict=True))


def plan(
    takes: Iterable[Take], root: Path, session: Path, before: Manifest | None, options: dict[str, Any]
) -> Manifest:
    """The manifest of a session: takes it already has keep their jobs, new ones are queued behind them.

    Raises InputError for names or options that cannot be used, OutputError when the session was begun with others.
    """
    TrackOptions.build(**options)
    options = relative_options(options, session)
    manifest = before.model_copy(deep=True) if before else Manifest(root="")
    if before and before.options != options:
        changed = sorted(k for k in before.options | options if before.options.get(k) != options.get(k))
        raise OutputError(
            f"{session} was begun with other options ({', '.join(changed)}); give the same, or another folder with -o"
        )
    manifest.options, manifest.root = options, _relative(root, session)
    if manifest.root != plain(manifest.root):
        raise InputError(f"{plain(str(root))}: {NOT_TEXT}")
    known = {job.input: job for job in manifest.jobs}
    names = Names(manifest.jobs)
    found = set()
    for take in takes:
        take.options = relative_options(take.options, session)
        input = plain(_relative(take.path, root))
        found.add(input)
        if input in known:
            _update(known[input], take)
        else:
            manifest.jobs.append(_new_job(take, input, names, options))
    for input, job in known.items():
        if input not in found and job.state in (State.QUEUED, State.FAILED, State.RUNNING):
            job.state, job.error = State.SKIPPED, "its input is not there any more"
    return manifest


def relative_options(options: dict[str, Any], session: Path) -> dict[str, Any]:
    """Options of a run with its files relative to the session's folder, so that both can be moved together."""
    files = {name: value for name, value in options.items() if _is_file(name, value)}
    return options | {name: _relative(Path(value), session) for name, value in files.items()}


def absolute_options(options: dict[str, Any], session: Path) -> dict[str, Any]:
    """What ``relative_options`` was given, with absolute files: a worker may have another working directory."""
    files = {k: os.path.normpath(session.absolute() / options[k]) for k in FILE_OPTIONS if options.get(k) is not None}
    if (model := options.get("head_model")) and "/" in model:
        files["head_model"] = os.path.normpath(session.absolute() / model)
    return options | files


def next_step(manifest: Manifest, job: Job, identity_known: bool) -> Literal["observe", "track"] | None:
    """What a queued take needs now; None when it waits for the other takes of its person."""
    if "identity" in manifest.options | job.options:
        return "track"
    if not job.observed:
        return "observe"
    return "track" if identity_known else None


def work_of(session: Path, manifest: Manifest, job: Job, step: Literal["observe", "track"]) -> Work:
    """A step of a take; its paths are absolute, since a worker may have another working directory.

    It is tracked with the identity that its person has by now.
    """
    options = absolute_options(manifest.options | job.options, session)
    identity = (session / job.person / IDENTITY_NPZ).absolute()
    if step == "track" and "identity" not in options and identity.is_file():
        options = options | {"identity": str(identity)}
    return Work(
        step=step,
        input=manifest.input_path(session, job).absolute(),
        output=output_path(session, job).absolute(),
        votes=(session / job.votes).absolute(),
        pictures=(session / THUMBNAILS / job.person / job.name).absolute(),
        options=options,
    )


def _is_file(name: str, value: Any) -> bool:
    return value is not None and (name in FILE_OPTIONS or (name == "head_model" and Path(value).exists()))


class Names:
    """Names that are still free; names that some file systems take for one count as one."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._people: dict[str, str] = {}
        self._taken: set[str] = set()
        for job in jobs:
            self._people[folded(job.person)] = job.person
            self._taken.add(folded(job.output))

    def person(self, name: str) -> str:
        """The spelling this person was first met in."""
        return self._people.setdefault(folded(name), name)

    def take(self, person: str, name: str, suffix: str) -> str:
        """``name``, with its file's suffix or a number behind it when another take has it."""
        candidates: Iterator[str] = iter([name, f"{name}-{suffix}"] if suffix else [name])
        count = 1
        while folded(f"{person}/{(free := next(candidates, ''))}") in self._taken or not free:
            if not free:
                count += 1
                candidates = iter([f"{name}-{count}"])
        self._taken.add(folded(f"{person}/{free}"))
        return free


def tidy_name(name: str) -> str:
    """A folder's name for every system made of any file's name."""
    name = "".join(c if c.isalnum() or c in "-_+ " else "_" for c in name).strip(" ._") or "take"
    name = name.encode()[: LONGEST_NAME - 10].decode(errors="ignore").rstrip()
    return f"{name}_" if name_problem(name) else name


def _new_job(take: Take, input: str, names: Names, options: dict[str, Any]) -> Job:
    is_folder = take.path.is_dir()
    stem = take.path.name if is_folder else take.path.stem
    suffix = "" if is_folder else tidy_name(take.path.suffix[1:])
    person = names.person(
        take.person if take.person and not name_problem(take.person) else tidy_name(take.person or stem)
    )
    name = names.take(person, take.name or tidy_name(stem), suffix)
    TrackOptions.build(**(options | take.options))
    job = Job(input=input, person=person, name=name, options=take.options)
    if take.skipped:
        job.state, job.error = State.SKIPPED, plain(take.skipped)
    elif plain(str(take.path)) != str(take.path):
        job.state, job.error = State.FAILED, NOT_TEXT
    return job


def _update(job: Job, take: Take) -> None:
    """What a list says anew of a take that is not done."""
    if job.state is State.SKIPPED and not take.skipped:
        job.requeue()
    if job.options != take.options:
        if job.state is State.DONE:
            raise OutputError(f"{job.output} is done, with other options; give it another name to track it again")
        job.options, job.observed = take.options, False


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern) if pattern else None
    except re.error as error:
        raise InputError(f"--person {pattern}: not a regular expression ({error})") from None


def _relative(path: Path, base: Path) -> str:
    try:
        return Path(os.path.relpath(path.absolute(), base.absolute())).as_posix()
    except ValueError:  # another drive
        return path.absolute().as_posix()


def _first_folder(relative: Path) -> str | None:
    """The person of a take: its first-level folder; a folder of images may be that itself."""
    return relative.parts[0] if len(relative.parts) > 1 or not relative.suffix else None


def _read_list(path: Path) -> list[Take]:
    """Takes of a CSV or JSON list; its columns are ``input``, ``person``, ``name`` and options of a run."""
    with reading(path, "a readable list of takes"):
        text = read_text(path, LARGEST_LIST)
        if path.suffix.lower() == ".csv":
            rows: Any = [
                {k: v for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(text.splitlines())
            ]
        else:
            rows = parse_json(text)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: not a list of takes")
    takes = [_listed(path, number, row) for number, row in enumerate(rows, start=1)]
    inputs = [os.path.normpath(take.path) for take in takes]
    if len(set(inputs)) < len(inputs):
        raise InputError(f"{path}: '{next(i for i in inputs if inputs.count(i) > 1)}' is listed twice")
    return takes


def _listed(path: Path, number: int, row: dict[Any, Any]) -> Take:
    place = f"{path}, take {number}"
    input = row.get("input")
    if not isinstance(input, str) or not input or "\0" in input:
        raise InputError(f"{place}: no input")
    for column in ("person", "name"):
        value = row.get(column)
        if value is not None and (not isinstance(value, str) or name_problem(value)):
            problem = name_problem(value) if isinstance(value, str) else "it is no text"
            raise InputError(f"{place}: {value!r} cannot be its {column}: {problem}")
    options = {key: value for key, value in row.items() if key not in COLUMNS}
    unknown = [key for key in options if key not in TrackOptions.model_fields]
    if unknown:
        raise InputError(f"{place}: unknown column {unknown[0]!r}")
    for key in FILE_OPTIONS:
        if isinstance(options.get(key), str):  # beside the list, as the inputs are
            options[key] = str((path.parent / options[key]).absolute())
    return Take(path.parent / input, row.get("person"), row.get("name"), _typed(place, options))


def _typed(place: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON values of their types; a CSV has only text."""
    try:
        if isinstance(options.get("face_at"), str):
            options["face_at"] = options["face_at"].replace(" ", ",").split(",")
        return TrackOptions(**options).model_dump(mode="json", exclude_unset=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(f"{place}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
