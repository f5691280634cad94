"""Safeguards taken out one by one: a test must fail for each.

Every mutant is a copy of the package with one safeguard broken, on which only the tests named for it are run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import Only, Out, Report, table

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutant:
    """A safeguard: the text in a file of the package that makes it, what takes its place, and who must notice."""

    file: str
    before: str
    after: str
    tests: str


MUTANTS = {
    "files are written in their places": Mutant(
        "tracking/records.py", "yield partial\n        os.replace(partial, path)", "yield path",
        "tests/tracking/test_run_folder.py -k TestReplacing",
    ),
    "the follower's state is forgotten": Mutant(
        "tracking/observe.py", 'follower.restore(last["state"])', "pass", "tests/tracking/test_observe.py",
    ),
    "shots are counted anew": Mutant(
        "tracking/observe.py", 'self.shot = int(last["shot"])', "pass", "tests/tracking/test_observe.py",
    ),
    "logs end in mid-batch": Mutant(
        "tracking/observe.py", "done = done // BATCH * BATCH", "pass", "tests/tracking/test_observe.py",
    ),
    "workers outlive their driver": Mutant(
        "batch/workers.py", "os._exit(1)  # the session has ended", "pass",
        "tests/batch/test_processes.py -k outlive",
    ),
    "checksums of records are not looked at": Mutant(
        "tracking/observations.py", "if not good.all():", "if False:", "tests/tracking/test_run_folder.py -k Log",
    ),
    "meshes are believed by their names": Mutant(
        "tracking/written.py", "return known is not None and path.stat().st_size == known[0] and _state(path) == known",
        "return path.exists()", "tests/tracking/test_render.py -k WrittenBlocks",
    ),
    "files of a run do not reach the disk before it is done": Mutant(
        "tracking/run_folder.py", "sync(file)", "pass", "tests/tracking/test_run_folder.py -k reached",
    ),
    "a lock file's owner is not looked at again under the claim": Mutant(
        "locking.py", "if Owner.read(self.path) != dead:", "if False:", "tests/test_locking.py -k second_to",
    ),
    "claims claim nothing": Mutant(
        "locking.py", "with self._claim(dead), self._draft(owner) as draft:", "with self._draft(owner) as draft:",
        "tests/test_locking.py -k never_two",
    ),
    "silent owners are dead at once": Mutant(
        "locking.py", "return False if still > 2 * BEAT and still + self._age > LEASE else None", "return False",
        "tests/test_locking.py",
    ),
    "old locks are dead whatever their heart does": Mutant(
        "locking.py", "still > 2 * BEAT and ", "", "tests/test_locking.py -k jumps",
    ),
    "owners write on when their lock is broken": Mutant(
        "tracking/observations.py", "self._guard()\n        records", "records",
        "tests/tracking/test_run_folder.py -k broken_lock",
    ),
    "a changed clip is not noticed": Mutant(
        "tracking/records.py", "if state is None or state != self._state:", "if False:",
        "tests/tracking/test_run_folder.py -k change_is_noticed",
    ),
    "workers hear what is meant for the session": Mutant(
        "batch/workers.py", "with _environment(environment), _unheard():", "with _environment(environment):",
        "tests/batch/test_processes.py -k request_to_end",
    ),
    "a second request breaks the first": Mutant(
        "cli/signals.py", "if not first:", "if True:", "tests/cli/test_signals.py -k second",
    ),
    "frames that are passed over are no work": Mutant(
        "video/source.py", "self.read_on()", "pass", "tests/video/test_reader.py -k passed_over",
    ),
    "any page may talk to the viewer": Mutant(
        "viewer/access.py", "return origin is None or", "return True or", "tests/viewer/test_viewer.py -k own_page",
    ),
}  # fmt: skip


def run(out: Out, only: Only = None) -> Report:
    """Says of each mutant whether it was caught."""
    rows = []
    for name, mutant in MUTANTS.items():
        if not only or name.startswith(tuple(only)):
            rows.append([name, mutant.tests, caught(mutant)])
            print(*rows[-1], sep=" | ", flush=True)
    missed = [row[0] for row in rows if row[2] != "caught"]
    return Report({"missed": missed}, [table(["safeguard taken out", "tests", ""], rows)], not missed)


def caught(mutant: Mutant) -> str:
    """``caught`` when a test fails."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch)
        for name in ("nphm_track", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("models", "pyproject.toml"):
            (copy / name).symlink_to(ROOT / name)
        path = copy / "nphm_track" / mutant.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutant.before) != 1:
            return "the safeguard is not there"
        path.write_text(text.replace(mutant.before, mutant.after), encoding="utf-8")
        tests, *select = mutant.tests.split()
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", tests, *select]
        environment = os.environ | {"PYTHONPATH": str(copy)}
        code = subprocess.run(command, cwd=copy, env=environment, capture_output=True).returncode
    return {0: "missed", 1: "caught"}.get(code, f"pytest ended with {code}")
