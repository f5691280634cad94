"""``nphm-track batch`` as a user meets it, with the quick stand-in for tracking."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_steps import InlinePool, write_take

from nphm_track.batch import driver
from nphm_track.cli import main

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Exit code of ``nphm-track batch ...`` in a folder with three takes in ``in``, one of them no video."""
    for name in ("anna/one.mp4", "anna/two.mp4", "ben/one.mp4"):
        write_take(tmp_path / "in" / name)
    (tmp_path / "in" / "ben" / "two.mp4").write_text("no video")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver, "local_pool", lambda manifest, workers: InlinePool())

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["nphm-track", "batch", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0)

    return call


def test_from_plan_to_retry(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("in", "-o", "out", "--dry-run") == 0
    assert "anna/one  queued  anna/one.mp4" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert run("in", "-o", "out") == 2
    said = capsys.readouterr()
    assert said.out == "3 of 4 takes done; see out/index.html\n"
    assert said.err.splitlines()[0] == "4 takes of 2 people, 4 to do"
    assert said.err.splitlines()[-1] == "nphm-track: 1 take failed; nphm-track batch status out says why"
    assert run("status", "out") == 0
    status = capsys.readouterr().out.splitlines()
    assert status[-1] == "3 done, 1 failed"
    assert any(line.startswith("ben/two: ") and "two.mp4" in line for line in status)  # in full, however long
    assert run("status", "out", "--json") == 0
    assert [job["state"] for job in json.loads(capsys.readouterr().out)["jobs"]] == ["done"] * 3 + ["failed"]
    assert run("retry", "out") == 2 and "--failed" in capsys.readouterr().err
    write_take(tmp_path / "in" / "ben" / "two.mp4")
    assert run("retry", "out", "--failed", "-q") == 0
    assert capsys.readouterr() == ("", "")
    assert run("retry", "out", "--failed") == 2 and "no take has failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("nothing", "-o", "out"), 2, "nothing: no such file or folder"),
        (("in", "-o", "in"), 5, "in is not empty and not a capture session"),
        (("in", "-o", "out", "--every", "0"), 2, "option every"),
        (("in", "-o", "out", "--identity", "gone.npz"), 2, "gone.npz: no such file"),
        (("status", "in"), 2, "not a capture session"),
        (("retry", "in", "--failed"), 2, "not a capture session"),
    ],
)
def test_one_clear_line(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, error: str
) -> None:
    assert run(*arguments) == code
    said = capsys.readouterr().err
    assert error in said and len(said.splitlines()) <= 1
