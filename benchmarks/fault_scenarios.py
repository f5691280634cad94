"""Scripted mishaps: what is done to a run, its files and its clip, and how every command must answer.

Each scenario says what is right and what was seen. Run folders are copies of one of a short clip; scenarios that track
it again are left out without --track. Nothing of a scenario outlives it.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults import contents, write_clip
from benchmarks.harness import Only, Out, Report, table
from benchmarks.mishaps import FILES, IMAGES, LISTS, LOCKS, OUTPUT, RUN_JSON, TRACK_NPZ, Damage, save_picture
from benchmarks.surroundings import CONCURRENT, FAST, MACHINE, SCANS, SIDE_FILES, USERS, Place, Scenario, call
from nphm_track import locking
from nphm_track.batch.limits import PLENTY, memory
from nphm_track.locking import RunLock
from nphm_track.viewer.access import is_own

READERS = (
    ("doctor",),
    ("report",),
    ("export", "-f", "landmarks", "--overwrite"),
    ("render-overlay", "--style", "mesh"),
)


def run(out: Out, only: Only = None, track: bool = False) -> Report:
    """The table, wrong ones first."""
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as scratch, quick_locks():
        folder = Path(scratch)
        clip = write_clip(folder / "clip.mp4", 4)
        made = call(clip, "-o", folder / "whole", *FAST)
        assert made.code == 0, made
        for name, scenario in scenarios(track):
            if only and not name.startswith(tuple(only)):
                continue
            place = Place(folder / "place", clip, folder / "whole")
            place.folder.mkdir()
            try:
                wrong = scenario(place)
            except Exception as error:
                wrong = f"{type(error).__name__}: {error}"
            rows.append([name, "wrong: " + wrong if wrong else "right"])
            print(*rows[-1], sep=": ", flush=True)
            shutil.rmtree(place.folder)
    rows.sort(key=lambda row: row[1] == "right")
    bad = [row for row in rows if row[1] != "right"]
    parts = [f"{len(rows)} scenarios, {len(bad)} wrong", table(["scenario", "seen"], rows)]
    return Report({"scenarios": len(rows), "wrong": bad}, parts, not bad)


@contextlib.contextmanager
def quick_locks() -> Iterator[None]:
    before = locking.BEAT, locking.LEASE
    locking.BEAT, locking.LEASE = 0.05, 0.5
    try:
        yield
    finally:
        locking.BEAT, locking.LEASE = before


def scenarios(track: bool) -> Iterator[tuple[str, Scenario]]:
    """Every one with its name."""
    for name, damage in RUN_JSON.items():
        yield f"run.json: {name}", refused_by_all(damage)
    for name, damage in TRACK_NPZ.items():
        yield f"track.npz: {name}", refused_by_all(damage)
    for name, make in IMAGES.items():
        yield f"images: {name}", one_line_for(make)
    for name, text in LISTS.items():
        yield f"takes: {name}", list_of_takes(text)
    for name, lock in LOCKS.items():
        yield f"lock: {name}", locked(*lock)
    for name, asked in VIEWER.items():
        yield f"view: {name}", viewer(*asked)
    for name, limits in MEMORY.items():
        yield f"memory: {name}", limited(*limits)
    for name, (damage, code) in OUTPUT.items():
        yield f"output: {name}", output(damage, code)
    for group, table_ in (("side file", SIDE_FILES), ("scan", SCANS), ("the user's", USERS)):
        for name, scenario in table_.items():
            yield f"{group}: {name}", scenario
    if track:
        for group, table_ in (("at once", CONCURRENT), ("machine", MACHINE)):
            for name, scenario in table_.items():
                yield f"{group}: {name}", scenario
        for name, damage in FILES.items():
            yield f"files: {name}", completed(damage)


# A finished run whose record is damaged: every command says so in one line


def refused_by_all(damage: Damage) -> Scenario:
    def scenario(place: Place) -> str:
        path = place.run()
        damage(path)
        wrong = []
        for command, *options in READERS:
            ending = call(command, path, *options)
            if ending.crashed or ending.code not in (2, 5):
                wrong.append(f"{command} {ending.code} {ending.line}")
        return "; ".join(wrong)

    return scenario


# A folder of images that holds something else


def one_line_for(make: Damage, code: int = 2) -> Scenario:
    def scenario(place: Place) -> str:
        folder = place.folder / "images"
        folder.mkdir()
        for k in range(2):
            save_picture(folder / f"{k}.png")
        make(folder / "zz.png")
        ending = call(folder, "-o", place.folder / "out", *FAST)
        left = (place.folder / "out").exists()
        wrong = ending.crashed or ending.code != code or left
        return f"{ending.code} {ending.line}{' (a folder is left)' * left}" if wrong else ""

    return scenario


# Lists and folders of takes


def list_of_takes(content: str | bytes) -> Scenario:
    def scenario(place: Place) -> str:
        path = place.folder / "takes.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        ending = call("batch", path, "-o", place.folder / "session")
        return f"{ending.code} {ending.line}" if ending.crashed or ending.code != 2 else ""

    return scenario


# Locks


def locked(owner: Damage, code: int, *options: str) -> Scenario:
    def scenario(place: Place) -> str:
        path = place.folder / "run"
        path.mkdir()
        held = owner(path / "run.lock")
        ending = call(place.folder / "nothing.mp4", "-o", path, *FAST)  # refused before any lock is taken
        if ending.code != 2 or ending.crashed:
            return f"{ending.code} {ending.line}"
        try:
            RunLock(path / "run.lock", "the run").acquire(break_lock="--break-lock" in options).release()
            seen = 0
        except Exception as error:
            seen = getattr(error, "exit_code", 1)
        left = [entry.name for entry in path.iterdir()]
        del held
        return "" if seen == code and (code or not left) else f"{seen}, left {left}"

    return scenario


# The viewer, memory, output


def viewer(host: str | None, origin: str | None, right: bool) -> Scenario:
    return lambda place: "" if is_own(host, origin, "127.0.0.1") == right else f"answered: {not right}"


VIEWER: dict[str, tuple[str | None, str | None, bool]] = {
    "its own page": ("localhost:8080", "http://localhost:8080", True),
    "a program": ("127.0.0.1:8080", None, True),
    "a forwarded port": ("localhost:9000", "http://localhost:9000", True),
    "IPv6": ("[::1]:8080", "http://[::1]:8080", True),
    "a page on the web": ("localhost:8080", "http://evil.example", False),
    "the same page, encrypted": ("localhost:8080", "https://evil.example:8080", False),
    "another port's page": ("localhost:8080", "http://localhost:3000", False),
    "a sandboxed page": ("localhost:8080", "null", False),
    "a rebound name": ("evil.example:8080", "http://evil.example:8080", False),
    "a name that begins alike": ("localhost.evil.example", None, False),
    "no host": (None, None, False),
    "no name at all": ("[", None, False),
}


def limited(cgroup: str, files: dict[str, str], right: float) -> Scenario:
    def scenario(place: Place) -> str:
        for name, content in {"proc/self/cgroup": cgroup, **files}.items():
            (place.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (place.folder / name).write_text(content)
        seen = memory(place.folder)
        return "" if seen == right else f"{seen:g} bytes"

    return scenario


V1, V2 = "sys/fs/cgroup/memory", "sys/fs/cgroup"
MEMORY: dict[str, tuple[str, dict[str, str], float]] = {
    "version 2": ("0::/\n", {f"{V2}/memory.max": "2000", f"{V2}/memory.current": "500"}, 1500),
    "version 2, no limit": ("0::/\n", {f"{V2}/memory.max": "max"}, PLENTY),
    "version 2, of a parent": ("0::/a/b\n", {f"{V2}/a/memory.max": "700"}, 700),
    "version 1": ("3:memory:/\n", {f"{V1}/memory.limit_in_bytes": "2000"}, 2000),
    "version 1, of a container": ("3:memory:/docker/x\n", {f"{V1}/memory.limit_in_bytes": "2000"}, 2000),
    "all used": ("0::/\n", {f"{V2}/memory.max": "2000", f"{V2}/memory.current": "2500"}, 0),
    "files that say nothing": ("0::/\n", {f"{V2}/memory.max": "?", f"{V2}/memory.stat": "?"}, PLENTY),
}


def output(make: Damage, code: int) -> Scenario:
    def scenario(place: Place) -> str:
        make(place.folder / "run")
        before = contents(place.folder)
        ending = place.track()
        same = contents(place.folder) == before
        wrong = ending.crashed or ending.code != code or not same
        return f"{ending.code} {ending.line}{'' if same else ' (files have changed)'}" if wrong else ""

    return scenario


# Files of a finished run that are missing or damaged: the same command makes them again


def completed(damage: Damage) -> Scenario:
    def scenario(place: Place) -> str:
        path = place.run()
        damage(path)
        ending = place.track(path)
        checked = call("doctor", path)
        right, found = contents(place.whole), contents(path)
        wrong = [f"{name} differs" for name in right if found.get(name) != right[name]]
        wrong += [f"{name} is left over" for name in found if name not in right]
        wrong += [f"{end.code} {end.line}" for end in (ending, checked) if end.code or end.crashed]
        return "; ".join(wrong)

    return scenario
